"""Mutated inputs of every kind: each must be taken, or refused with one of our own errors.

    make fuzz                            ten thousand cases, and five thousand comparisons
    python tests/fuzz.py --seed 7        others

A case is a sound file, damaged at random: bytes changed, moved, cut, or, for JSON, values replaced
by others that JSON allows. A traceback, a hang or a demand for gigabytes is a failure, and the
input that caused it is kept. Then each file in turn is a pipe, a device, a socket, a folder or a
link that leads nowhere; outputs, pages and environments are odd (tests/surroundings.py); and whole
model folders and adapters are changed and compared with transformers and PEFT (see
tests/differential/cases.py).
"""

from __future__ import annotations

import argparse
import json
import random
import resource
import shutil
import signal
import sys
import tempfile
import traceback
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow
import torch
from differential.cases import run_cases
from helpers import tiny_model, write_lines
from pyarrow import parquet
from surroundings import SPECIAL, put_special, surroundings

from cqa.claims.conditioning.claim import Conditioning
from cqa.claims.conditioning.config import ConditioningConfig
from cqa.claims.run import run_study
from cqa.config import read_settings, resolve
from cqa.data.items import read_items
from cqa.data.lengths import encode_samples, fit_lengths
from cqa.data.samples import encode_sample, read_samples
from cqa.data.tokenizer import Tokenizer
from cqa.data.unique import each_once, file_line_id
from cqa.data.validate import report_text, validate_files
from cqa.errors import CqaError
from cqa.model.adapter import read_adapter
from cqa.model.load import load_model
from cqa.model.lora import LoraSpec, TrainableLora
from cqa.model.origin import check_origin
from cqa.model.projection import MODULES
from cqa.report.all_tables import all_tables
from cqa.report.caveats import caveats
from cqa.report.config import ReportConfig
from cqa.report.item_table import items_table, scored_items
from cqa.report.page import Report, markdown_page
from cqa.report.studies import read_studies
from cqa.report.verdict import make_page
from cqa.report.write import read_focus
from cqa.score.config import ScoreConfig
from cqa.score.prefix_batch import encode_item
from cqa.score.results import Results
from cqa.score.run import score
from cqa.train.checkpoint import Log, load_state, open_run
from cqa.train.config import TrainConfig
from cqa.train.loop import train
from cqa.train.plan import make_plan

CPU = torch.device("cpu")
SECONDS = 20  # no case may take longer
TEMPLATE = """{%- for m in messages %}{% if loop.first %}{{ bos_token }}{% endif %}
[{{ m.role }}]{{ m.content | trim }}{{ [m.role, 'x' * 3] | join('-') ~ 7 % 4 }}
{% endfor %}{% if add_generation_prompt %}[assistant]{% endif %}"""
GIGABYTES = 24  # of address space
ODD: list[Any] = [
    None, True, False, 0, -1, 1.5, -0.0, 1e300, 10**9, 10**30, "", " ", "x", "0", "1e5", "nan",
    "..", "/etc/passwd", "../x", "a" * 300, "\0", "\ud800", "\u2028", "\ufeff", "é", "e\u0301",
    "在", [], {}, [[]], [{}], {"": 0}, ["x"], [None], {"a": {"b": []}},
]  # fmt: skip
PIECES = [
    b'"', b"{", b"}", b"[", b"]", b",", b":", b"\n", b"\r\n", b"\0", b"\xff", b"\xef\xbb\xbf",
    b"null", b"NaN", b"1e999", b"-1", b"9" * 5000, b"\\ud800", b"\xe2\x80\xa8", b"[" * 2000,
    b"true",
]  # fmt: skip


def damage_bytes(rng: random.Random, data: bytes) -> bytes:
    """Change, cut, double or insert some bytes."""
    out = bytearray(data)
    for _ in range(rng.randint(1, 4)):
        at = rng.randrange(len(out) + 1)
        match rng.randrange(5):
            case 0:
                out[at : at + 1] = bytes([rng.randrange(256)])
            case 1:
                del out[at : at + rng.choice([1, 3, 30, len(out)])]
            case 2:
                out[at:at] = rng.choice(PIECES)
            case 3:
                start = rng.randrange(len(out) + 1)
                out[at:at] = out[start : start + rng.randint(1, 60)]
            case 4:
                del out[at:]
    return bytes(out)


def damage_value(rng: random.Random, value: Any) -> Any:
    """Replace, drop, double or add something within a JSON value."""
    inner = rng.random() < 0.8
    if inner and isinstance(value, dict) and value:
        key = rng.choice(list(value))
        match rng.randrange(6):
            case 0:
                return {k: v for k, v in value.items() if k != key}
            case 1:
                return {**value, rng.choice(["", "x", "auto_map", "id", "\ud800"]): rng.choice(ODD)}
            case _:
                return {**value, key: damage_value(rng, value[key])}
    if inner and isinstance(value, list) and value:
        at = rng.randrange(len(value))
        match rng.randrange(5):
            case 0:
                return value[:at] + value[at + 1 :]
            case 1:
                return value + value[at : at + 1]
            case _:
                return [*value[:at], damage_value(rng, value[at]), *value[at + 1 :]]
    return rng.choice(ODD)


def damage_json(rng: random.Random, data: bytes) -> bytes:
    """Damage a JSON file, or one line of a JSON Lines file, as a value."""
    lines = data.splitlines() if data.count(b"\n") > 1 and data.startswith(b'{"') else [data]
    at = rng.randrange(len(lines))
    value = damage_value(rng, json.loads(lines[at]))
    lines[at] = json.dumps(value, ensure_ascii=rng.random() < 0.9).encode("utf-8", "surrogatepass")
    return b"\n".join(lines)


def damage_header(rng: random.Random, data: bytes) -> bytes:
    """Damage the JSON header of a safetensors file, keeping its length right."""
    n = int.from_bytes(data[:8], "little")
    header = damage_json(rng, data[8 : 8 + n])
    return len(header).to_bytes(8, "little") + header + data[8 + n :]


@dataclass(frozen=True)
class Target:
    """A file to damage, and what reads it."""

    file: str  # within the folder of sound files
    damages: tuple[Callable[[random.Random, bytes], bytes], ...]
    read: Callable[[Path], object]  # takes the folder


class Sound:
    """A folder of sound inputs and outputs of a tiny model, and what reads each of them."""

    def __init__(self, folder: Path) -> None:
        """Make a model, data, a stopped training run, an adapter and a scoring folder."""
        self.folder = folder
        self.model = tiny_model(folder / "model")
        samples = [
            {"id": "a", "prompt": "the lamp", "response": " was lit", "tags": ["x"]},
            {"id": "b", "prompt": "she waited", "response": " by the door"},
            {"prompt": "在门口", "response": "等着"},
        ]
        write_lines(folder / "train.jsonl", samples)
        asked, told = {"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}
        chats = [
            {"messages": [asked, told, {**told, "weight": 0}]},
            {"messages": [told], "id": "z"},
        ]
        write_lines(folder / "chat.jsonl", chats)
        write_lines(
            folder / "alpaca.jsonl",
            [{"instruction": "a", "input": "b", "output": "c", "history": [["d", "e"]]}],
        )
        write_lines(
            folder / "pairs.jsonl",
            [
                {
                    "id": "p",
                    "context": "she",
                    "good": " waited",
                    "bad": " ran",
                    "group": "literary",
                },
                {"id": "q", "context": "a", "options": ["b", "c"], "answer": 1, "n": [1, {"x": 2}]},
            ],
        )
        preferences = [
            {"prompt": "she", "chosen": " waited", "rejected": [" ran", " sat"]},
            {"chosen": [asked, told], "rejected": [asked, {**told, "content": "c"}], "id": 4},
        ]
        write_lines(folder / "preferences.jsonl", preferences)
        table = 'id,context,good,bad\n7,she," waited, ""long""", ran\n8,a,"b\nc",d\n'
        (folder / "pairs.csv").write_text(table)
        (folder / "pairs.tsv").write_text(table.replace(",", "\t"))
        parquet.write_table(
            pyarrow.Table.from_pylist(preferences[:1] * 9), folder / "pairs.parquet"
        )
        (folder / "chat.jinja").write_text(TEMPLATE)
        write_lines(
            folder / "texts.jsonl", [{"id": "t", "context": "the", "continuation": " door"}]
        )
        (folder / "settings.yaml").write_text(
            "model: m\ndata: train.jsonl\nout: run\nepochs: 3\nlr: 1e-4\ntargets: [q, v]\n"
            "rslora: yes\nvalidation: 0.1\nmax-tokens: null\n"
        )
        train(self.training(folder))
        score(self.scoring(folder))
        texts = ["it rained", "it was dry", "the sun was up"]
        lines = [
            {"condition": z, "context": "she", "good": " waited", "bad": " ran"} for z in texts
        ]
        write_lines(folder / "conditioning.jsonl", lines)
        self.read_study(folder)
        self.tokenizer = Tokenizer(self.model)
        spec = LoraSpec(2, 32.0, True, MODULES)
        columns = spec.rank_columns()
        base = load_model(self.model, device=CPU, dtype=torch.float32, rank_columns=columns)
        self.decoder, self.digest = base.decoder, base.digest
        self.lora = TrainableLora(self.decoder, spec, 0)

    def training(self, folder: Path) -> TrainConfig:
        """Return the settings of the run in the folder."""
        return TrainConfig(
            model=str(self.model), data=(self.folder / "train.jsonl",), out=folder / "run",
            epochs=2, rank=2, validation="0", device="cpu", lr=1e-2,
        )  # fmt: skip

    def scoring(self, folder: Path) -> ScoreConfig:
        """Return the settings of the scores in the folder."""
        return ScoreConfig(
            model=str(self.model), pairs=(folder / "pairs.jsonl",), device="cpu",
            continuations=(folder / "texts.jsonl",), run=(folder / "run",), epochs=(2,),
            out=folder / "scores",
        )  # fmt: skip

    def read_training_file(self, path: Path) -> None:
        """Read and encode samples."""
        encoded = [encode_sample(s, self.tokenizer) for s in read_samples(path)]
        fit_lengths(encoded, 40, "truncate")
        report_text(validate_files([path]))

    def read_item_file(self, path: Path) -> None:
        """Read, encode and keep items."""
        items = list(
            each_once(
                read_items([path], continuations=path.name == "texts.jsonl"), name=file_line_id
            )
        )
        for item in items:
            for boundary in ("split", "joint"):
                encode_item(item, self.tokenizer, boundary, score_eos=True, max_positions=200)
        with tempfile.TemporaryDirectory() as out:
            results = Results(Path(out))
            results.write_items(items)
            results.close()
        report_text(validate_files([path]))

    def read_template(self, folder: Path) -> None:
        """Render with a template, to score and to train."""
        tokenizer = Tokenizer(self.model, template=str(folder / "chat.jinja"))
        (item, *_) = read_items([folder / "pairs.jsonl"])
        encode_item(item, tokenizer, "split", score_eos=False, max_positions=200)
        encode_samples(read_samples(folder / "chat.jsonl"), tokenizer, 99, "refuse")

    def read_model(self, folder: Path) -> None:
        """Load a base model."""
        load_model(folder / "model", device=CPU, dtype=torch.float32, rank_columns={"q": 2})

    def read_tokenizer(self, folder: Path) -> None:
        """Load a tokenizer and encode with it."""
        tokenizer = Tokenizer(folder / "model")
        tokenizer.limit_ids(304)
        for boundary in ("split", "joint"):
            tokenizer.encode_pair("she waited", " by the door", boundary)

    def read_origin(self, folder: Path) -> None:
        """Read what an adapter was made of."""
        check_origin(
            folder / "run" / "epoch-02",
            model_digest=self.digest,
            tokenizer_digest=self.tokenizer.digest,
        )

    def read_adapter_files(self, folder: Path) -> None:
        """Read an adapter's config and weights."""
        read_adapter(folder / "run" / "epoch-02", self.decoder)

    def read_run(self, folder: Path) -> None:
        """Open a training run to continue it."""
        config = self.training(folder)
        plan = make_plan(config)
        step = open_run(plan, resume=True)
        if step:
            load_state(plan, self.lora)
        Log(config.out, step, plan.steps_per_epoch).close()

    def read_scores(self, folder: Path) -> None:
        """Continue a scoring run."""
        score(self.scoring(folder))

    def read_study(self, folder: Path) -> None:
        """Continue a study."""
        config = ConditioningConfig(
            model=str(self.model), pairs=(folder / "conditioning.jsonl",), out=folder / "study",
            device="cpu",
        )  # fmt: skip
        run_study(Conditioning(config), config)

    def read_for_report(self, folder: Path) -> None:
        """Read what a report is made from, and decide what it says."""
        config = ReportConfig(run=folder / "run", out=folder / "report")
        focus = read_focus(folder / "scores", config)
        found = scored_items(focus)
        tables = [*all_tables(focus), items_table(focus, found)]
        studies = read_studies([folder / "study"], focus.source.meta.models[0])
        markdown_page(Report(focus, make_page(focus), caveats(focus), tables, {}, found, studies))

    def read_settings(self, path: Path) -> None:
        """Read settings."""
        resolve(TrainConfig, read_settings(path))

    def targets(self) -> list[Target]:
        """Return every kind of file and its reader."""
        lines, tree, tensors = (
            (damage_bytes, damage_json),
            (damage_bytes, damage_json, damage_json),
            (damage_bytes, damage_header, damage_header),
        )
        adapter = "run/epoch-02/adapter_"
        samples, items = (lines, self.read_training_file), (lines, self.read_item_file)
        files = {
            **dict.fromkeys(("train.jsonl", "chat.jsonl", "alpaca.jsonl"), samples),
            **dict.fromkeys(("pairs.jsonl", "texts.jsonl", "preferences.jsonl"), items),
            **dict.fromkeys(
                ("pairs.csv", "pairs.tsv", "pairs.parquet"), ((damage_bytes,), self.read_item_file)
            ),
            "settings.yaml": ((damage_bytes,), self.read_settings),
        }
        return [
            *(Target(f, d, lambda folder, f=f, r=r: r(folder / f)) for f, (d, r) in files.items()),
            Target("chat.jinja", (damage_bytes,), self.read_template),
            Target("model/config.json", tree, self.read_model),
            Target("model/model.safetensors", tensors, self.read_model),
            Target("model/tokenizer.json", tree, self.read_tokenizer),
            Target("model/tokenizer_config.json", tree, self.read_tokenizer),
            Target(f"{adapter}config.json", tree, self.read_adapter_files),
            Target(f"{adapter}model.safetensors", tensors, self.read_adapter_files),
            Target("run/epoch-02/origin.json", tree, self.read_origin),
            Target("run/run.json", tree, self.read_run),
            Target("run/state.safetensors", tensors, self.read_run),
            Target("run/log.jsonl", lines, self.read_run),
            Target("scores/scores.jsonl", lines, self.read_scores),
            Target("scores/items.jsonl", lines, self.read_scores),
            Target("scores/meta.json", tree, self.read_scores),
            Target("scores/meta.json", tree, self.read_for_report),
            Target("scores/items.jsonl", lines, self.read_for_report),
            Target("run/run.json", tree, self.read_for_report),
            Target("run/log.jsonl", lines, self.read_for_report),
            Target("conditioning.jsonl", lines, self.read_study),
            Target("study/rows.jsonl", lines, self.read_study),
            Target("study/study.json", tree, self.read_study),
            Target("study/study.json", tree, self.read_for_report),
        ]


class Hang(BaseException):
    """A case took too long."""


def _hang(*_: object) -> None:
    raise Hang


def fuzz(n_cases: int, seed: int, folder: Path) -> tuple[Counter[str], list[str]]:
    """Run cases over all targets in turn; return the outcomes, and the failures with their file."""
    sound = Sound(folder / "sound")
    targets = sound.targets()
    outcomes: Counter[str] = Counter()
    failures = []
    before = signal.signal(signal.SIGALRM, _hang)
    try:
        for case in range(n_cases):
            target = targets[case % len(targets)]
            rng = random.Random(f"{seed}/{case}")
            outcome, failure, damaged = _run(sound, target, rng, folder / "case")
            outcomes[f"{target.file}: {outcome}"] += 1
            if failure:
                kept = folder / f"failure-{case}-{Path(target.file).name}"
                kept.write_bytes(damaged)  # the reader may have replaced it
                failures.append(f"case {case}, {target.file}: {failure}; kept as {kept}")
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
    return outcomes, failures


def _run(
    sound: Sound, target: Target, rng: random.Random, folder: Path
) -> tuple[str, str | None, bytes]:
    """Damage one file in a copy of the sound folder and read it."""
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(sound.folder, folder)
    damaged = rng.choice(target.damages)(rng, (folder / target.file).read_bytes())
    (folder / target.file).write_bytes(damaged)
    return *_read(target, folder), damaged


def special_files(folder: Path) -> tuple[Counter[str], list[str]]:
    """Put every special file in the place of every file; return the outcomes and the failures."""
    sound = Sound(folder / "sound")
    outcomes: Counter[str] = Counter()
    failures = []
    before = signal.signal(signal.SIGALRM, _hang)
    try:
        for target in sound.targets():
            for kind in SPECIAL:
                shutil.rmtree(folder / "case", ignore_errors=True)
                shutil.copytree(sound.folder, folder / "case", symlinks=True)
                put_special(kind, folder / "case" / target.file)
                outcome, failure = _read(target, folder / "case")
                outcomes[f"{kind}: {outcome}"] += 1
                if failure:
                    failures.append(f"{kind} as {target.file}: {failure}")
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
    return outcomes, failures


def _read(target: Target, folder: Path) -> tuple[str, str | None]:
    """Read a file; return how that ended, and what was wrong with it."""
    signal.alarm(SECONDS)
    try:
        target.read(folder)
    except CqaError as error:
        return f"refused with {error.exit_code}", _unclear(error)
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt):
            raise
        last = traceback.extract_tb(error.__traceback__)[-1]
        place = f"{Path(last.filename).name}:{last.lineno}"
        return "failed", f"{type(error).__name__} at {place}: {str(error)[:200]}"
    finally:
        signal.alarm(0)
    return "taken", None


def _unclear(error: CqaError) -> str | None:
    """Say what is wrong with a message: it must print, in a few lines, and name an exit code."""
    text = str(error)
    if not text.strip() or error.exit_code not in (2, 3, 4, 5, 6):
        return f"an error without a message or a code of its own: {error!r}"
    return f"a message of {len(text)} characters" if len(text) > 2000 else None


def main() -> None:
    """Fuzz, say what came of it, and end with 1 if anything failed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cases", type=int, default=10_000)
    parser.add_argument("--surroundings", type=int, default=600)
    parser.add_argument("--comparisons", type=int, default=5_000)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    resource.setrlimit(resource.RLIMIT_AS, (GIGABYTES << 30, GIGABYTES << 30))
    folder = Path(tempfile.mkdtemp(prefix="cqa-fuzz-"))
    outcomes, failures = fuzz(arguments.cases, arguments.seed, folder)
    for name, run in (
        ("special", special_files),
        ("surroundings", partial(surroundings, arguments.surroundings, arguments.seed)),
        ("compared", partial(run_cases, arguments.comparisons, arguments.seed)),
    ):
        (folder / name).mkdir()
        found, failed = run(folder / name)
        outcomes += found
        failures += failed
    for name, count in sorted(outcomes.items()):
        print(f"{count:>6}  {name}")
    n_cases = outcomes.total()
    print(f"{n_cases} cases, seed {arguments.seed}: {len(failures)} failures")
    print("\n".join(failures))
    if failures:
        sys.exit(1)
    shutil.rmtree(folder)


if __name__ == "__main__":
    main()
