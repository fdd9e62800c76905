"""Files of texts changed at random: what train, score and validate make of them.

A case is a function of its number. Where a file is taken, the ids are those that the tokenizer's
own file gives, the learned ids are those of the answers that are to be learned, and `validate` says
so; where it is refused, `validate` refuses it at the same `file:line`.
"""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer as Backend
from tokenizers.normalizers import NFC
from transformers import AutoTokenizer

from cqa.data.samples import read_samples
from cqa.data.validate import validate_files
from cqa.errors import DataError
from cqa.score.config import ScoreConfig
from cqa.score.encoded import Items
from cqa.study.config import ValidateConfig
from cqa.study.validate import ModelEncoder
from cqa.train.config import TrainConfig
from cqa.train.plan import Plan, make_plan

WORDS = [
    "lamp", " lit", " she", "\n", "  ", " door", "'s", "7", "12,3", " é", "e\u0301", "在", "▁",
    "👩", "…", " <s>", "<unk>", "</s>", "<|endoftext|>", "<|im_", "\u2028", "\u00a0", "\ufb01", "ß",
]  # fmt: skip
COMMON = 12  # the first of them stand in most texts
FLAGS: list[dict[str, Any]] = [
    {}, {}, {}, {"weight": 0}, {"weight": 1}, {"train": False}, {"loss": True}, {"name": "Ann"},
    {"weight": None}, {"weight": 2}, {"tool_calls": [1]}, {"tool_calls": []}, {"note": "x"},
]  # fmt: skip
TEMPLATES = {
    "chatml": "{% for m in messages %}[{{ m.role }}]{{ m.content }}[/]\n{% endfor %}"
    "{% if add_generation_prompt %}[assistant]{% endif %}",
    "thoughts": "{% for m in messages %}[{{ m.role }}]"
    "{% if loop.last and m.role == 'assistant' %}(none)\n\n{% endif %}{{ m.content }}[/]\n"
    "{% endfor %}{% if add_generation_prompt %}[assistant]{% endif %}",
    "trims": "{% for m in messages %}[{{ m.role }}]{{ m.content | trim }}[/]\n{% endfor %}"
    "{% if add_generation_prompt %}[assistant]{% endif %}",
    "drops-system": "{% for m in messages if m.role != 'system' %}[{{ m.role }}]{{ m.content }}[/]"
    "{% endfor %}{% if add_generation_prompt %}[assistant]{% endif %}",
}


def text(rng: random.Random) -> str:
    """Return a short text, odd here and there."""
    some = [rng.choice(WORDS[: COMMON if rng.random() < 0.9 else None]) for _ in range(6)]
    return "".join(some) or "x"


def messages(rng: random.Random) -> dict[str, Any]:
    """Return a conversation whose turns may carry flags."""
    turns = [{"role": "system", "content": text(rng)}] if rng.random() < 0.3 else []
    for _ in range(rng.choice([1, 1, 2, 3])):
        turns += [{"role": r, "content": text(rng)} for r in ("user", "assistant")]
    at = rng.randrange(len(turns))
    turns[at] = {**turns[at], **rng.choice(FLAGS)}
    return {"messages": turns}


def change(rng: random.Random, record: dict[str, Any]) -> dict[str, Any]:
    """Return a record of which something is gone, doubled, renamed or of another type."""
    key = rng.choice(list(record))
    match rng.randrange(8):
        case 0:
            return {k: v for k, v in record.items() if k != key}
        case 1:
            return {**record, key: rng.choice([None, "", 7, [], {}, ["a", "b"], True])}
        case 2:
            return {**record, rng.choice(["id", "tags", "system", "weight", "x"]): rng.choice(
                [None, "", 7, "a", ["a"]]
            )}  # fmt: skip
        case _:
            return record


def training_file(rng: random.Random, path: Path) -> Path:
    """Write a training file."""
    chats = rng.random() < 0.6
    records = [
        messages(rng) if chats else {"prompt": text(rng), "response": text(rng)} for _ in range(2)
    ]
    return written(path, [*records[:1], change(rng, records[1])])


def items_file(rng: random.Random, path: Path) -> Path:
    """Write a file of pairs."""
    kinds: list[dict[str, Any]] = [
        {"context": text(rng), "good": text(rng), "bad": text(rng)},
        {"context": text(rng), "options": [text(rng) for _ in range(3)], "answer": 1},
        {"prompt": text(rng), "chosen": text(rng), "rejected": [text(rng), text(rng)]},
        {"context": text(rng), "good": text(rng), "bad": [text(rng), text(rng)], "id": 5},
    ]
    return written(path, [rng.choice(kinds[:2]), change(rng, rng.choice(kinds))])


def written(path: Path, records: list[dict[str, Any]]) -> Path:
    """Write records as JSON Lines."""
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    return path


def verdict(call: Any) -> tuple[Any, str | None]:
    """Return what a call gives, and the place at which it refuses."""
    try:
        return call(), None
    except DataError as error:
        return None, str(error.where)


class Models:
    """Tokenizers to try texts on, and templates as files."""

    def __init__(self, folders: dict[str, Path], folder: Path) -> None:
        """Keep the folders of models, and write the templates."""
        self.folders = folders
        self.templates = {"plain": "plain"}
        for name, source in TEMPLATES.items():
            (folder / f"{name}.jinja").write_text(source, encoding="utf-8")
            self.templates[name] = str(folder / f"{name}.jinja")


def run_case(models: Models, number: int, folder: Path) -> str:
    """Run one case; return what came of it."""
    rng = random.Random(number)
    name = rng.choice(list(models.folders))
    model = str(models.folders[name])
    template = models.templates[rng.choice(list(models.templates))]
    allow = rng.random() < 0.2
    settings: dict[str, Any] = {"model": model, "template": template, "allow_special": allow}
    encoder = ModelEncoder(model, ValidateConfig(**settings))
    out = folder / "out"
    if rng.random() < 0.5:
        path = training_file(rng, folder / "t.jsonl")
        config = TrainConfig(**settings, data=(path,), out=out, validation="0")
        plan, refused = verdict(lambda: make_plan(config))
        if plan is not None:
            compare_samples(plan, path, models.folders[name])
    else:
        path = items_file(rng, folder / "p.jsonl")
        score_config = ScoreConfig(**settings, pairs=(path,), out=out)
        items = Items(score_config, encoder.tokenizer, encoder.positions)
        n_items, refused = verdict(items.check)
        if n_items is not None:
            compare_items(items, models.folders[name])
    (report,) = validate_files([path], encoder=encoder)
    assert bool(report.errors) == (refused is not None), (number, report.errors, refused)
    if refused is not None:
        places = [error.split(": ")[0] for error in report.errors]
        assert refused in places, (number, report.errors, refused)
    return "refused" if refused is not None else "taken"


def compare_samples(plan: Plan, path: Path, model: Path) -> None:
    """Compare ids and learned ids of samples with what other code makes of the same file."""
    theirs = AutoTokenizer.from_pretrained(model)
    normalizer = Backend.from_file(str(model / "tokenizer.json")).normalizer
    # Llama's normalizer only marks spaces, which decoding undoes
    normal = normalizer.normalize_str if isinstance(normalizer, NFC) else str
    for sample, raw in zip(plan.train, read_samples(path), strict=True):
        learned = [i for i, m in zip(sample.ids, sample.loss_mask, strict=True) if m]
        spelt = plan.tokenizer.decode_following(learned)
        answers = [turn.text for turn in raw.turns if turn.role == "assistant" and not turn.masked]
        strip = str.strip if plan.tokenizer.chat_template else str
        at = 0
        for answer in answers:  # in order, and nothing else but what closes them
            wanted = normal(strip(answer))
            found = spelt.find(wanted, at)
            assert found >= at, (spelt, wanted)
            between = spelt[at:found].replace("[/]", "").strip()
            assert between == "", (spelt, between)
            at = found + len(wanted)
        if plan.tokenizer.chat_template:
            messages = [{"role": turn.role, "content": turn.text} for turn in raw.turns]
            last = max(k for k, m in enumerate(messages) if m["role"] == "assistant")
            whole = theirs.apply_chat_template(
                messages[: last + 1], chat_template=plan.tokenizer.chat_template, tokenize=False
            )
            rest = sample.ids[len(plan.tokenizer.bos_ids) :]
            assert plan.tokenizer.decode(rest) == normal(whole)


def compare_items(items: Items, model: Path) -> None:
    """Compare the ids of every context, and of context and option at once, with the file's."""
    file = Backend.from_file(str(model / "tokenizer.json"))
    tokenizer = items.tokenizer
    for encoded in items.encoded():
        context = encoded.item.context
        for text, option in zip(encoded.item.options, encoded.options, strict=True):
            prompt = tokenizer.render_context(context, text)
            ids = file.encode(prompt, add_special_tokens=False).ids
            assert option.context_ids == (*tokenizer.bos_ids, *ids)
            if not option.boundary_mismatch:
                ids = file.encode(prompt + text, add_special_tokens=False).ids
                assert option.context_ids + option.option_ids == (*tokenizer.bos_ids, *ids)
