"""Tokenizers of three models, and folders with altered ones."""

import json
import shutil
import unicodedata
from functools import cache
from pathlib import Path

from helpers import DEMO, SHARED, read_lines, shared

from cqa.data.tokenizer import Tokenizer

END = "<|endoftext|>"
NAMES = ["cqa-demo", "stories260k", "qwen2.5-tokenizer"]
BOUNDARIES = ["split", "joint"]
CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def folder_of(name: str) -> Path:
    return DEMO / "model" if name == "cqa-demo" else shared(f"models/{name}")


@cache
def loaded(name: str) -> Tokenizer:
    return Tokenizer(folder_of(name))


def texts() -> list[str]:
    """Return real passages, English and Chinese where they are available."""
    files = [DEMO / "literary.jsonl", DEMO / "factual.jsonl"]
    files += [SHARED / f"data/pairs/{name}.jsonl" for name in ("zh_xcopa", "literary_figurative")]
    records = [r for file in files if file.exists() for r in read_lines(file)[:30]]
    found = [f"{r['context'][-80:]}{r['good'][:60]}" for r in records]
    return [text for text in found if unicodedata.is_normalized("NFC", text)]


TEXTS = texts()


def edited(folder: Path, **parts: object) -> Path:
    """Copy the demo's tokenizer as that of a Qwen2 model, with parts of tokenizer.json replaced."""
    shutil.copytree(DEMO / "model", folder, ignore=shutil.ignore_patterns("*.safetensors"))
    file = folder / "tokenizer.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **parts}))
    return folder


def model_folder(folder: Path, *files: str, **written: object) -> Path:
    """Make a model folder of some of the demo's files, and of new JSON files."""
    folder.mkdir()
    for file in files:
        shutil.copy(DEMO / "model" / file, folder)
    for stem, value in written.items():
        (folder / f"{stem}.json").write_text(json.dumps(value), encoding="utf-8")
    return folder
