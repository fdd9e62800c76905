"""A file of any length: memory does not grow with it, and a killed run goes on where it was."""

import gc
import json
import os
import signal
import subprocess
import sys
import time
import tracemalloc
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import DEMO, ROOT, read_lines
from synthetic import make_items, make_rows, records

from cqa.data.items import parse_pair
from cqa.data.tokenizer import Tokenizer
from cqa.model.load import BaseModel, load_model
from cqa.score.config import ScoreConfig
from cqa.score.engine import SequenceStats
from cqa.score.prefix_batch import encode_item, passes
from cqa.score.run import ScoreResult, score
from cqa.stats.summary import Scores, summarise

MODEL = DEMO / "model"
TEXT_CHARS = 220


def write_pairs(path: Path, n: int, n_chars: int) -> Path:
    """Write pairs that are all different, a line at a time."""
    with path.open("w", encoding="utf-8") as file:
        for i in range(n):
            context = f"{i} " + "It rained. " * (n_chars // 11)
            pair = {"id": f"row-{i}", "context": context, "good": f" She ran {i}.", "bad": " No."}
            file.write(json.dumps(pair) + "\n")
    return path


class AnySequence(dict):
    """Stands in for the decoder: some numbers for every sequence."""

    def __missing__(self, sequence: tuple[Any, tuple[int, ...]]) -> SequenceStats:
        n = len(sequence[1])
        return SequenceStats([-1.5] * n, [0.5] * n, [0] * n)


@pytest.fixture
def stubbed(monkeypatch) -> None:
    """No decoder, and a tokenizer that is there already, so that rows alone take memory."""
    tokenizer = Tokenizer(MODEL)
    monkeypatch.setattr(
        "cqa.score.decoder_engine.run_prefix_batch", lambda decoder, prefixes: AnySequence()
    )
    monkeypatch.setattr("cqa.score.run.Tokenizer", lambda folder, **options: tokenizer)
    monkeypatch.setattr("cqa.score.run.versions", dict)  # reads more than a small file's rows


def peak_bytes(folder: Path, base: BaseModel, n: int) -> int:
    """Return the peak of what scoring n pairs into a new folder allocates."""
    folder.mkdir(exist_ok=True)
    pairs = write_pairs(folder / f"{n}.jsonl", n, TEXT_CHARS)
    settings = {"summary": False, "batch_tokens": 1000}
    config = ScoreConfig(model=str(MODEL), pairs=(pairs,), out=folder / f"out-{n}", **settings)
    tracemalloc.start()
    try:
        score(config, base=base)
        score(config, base=base)  # all of it resumed: every line of the folder is looked at
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@pytest.fixture
def no_collector() -> Iterator[None]:
    """Leave CPython's lists of freed tuples, up to 2,000 of each length, as full as they get.

    The collector empties them now and then, and what fills them anew looks like growth.
    """
    gc.collect()
    gc.disable()
    yield
    gc.enable()


@pytest.mark.usefixtures("stubbed", "no_collector")
def test_peak_memory_without_a_summary_grows_by_a_few_bytes_a_row(tmp_path):
    few, many = 200, 500  # both write files longer than the block that is read at once
    base = load_model(MODEL, device=torch.device("cpu"), dtype=torch.float32)
    peak_bytes(tmp_path / "first", base, many)  # fills every cache that has an end
    growth_bytes = peak_bytes(tmp_path, base, many) - peak_bytes(tmp_path, base, few)
    assert abs(growth_bytes) / (many - few) < 30


def test_summary_takes_half_a_kilobyte_a_row():
    few, many = 200, 800
    items = [f"row-{i}" for i in range(many)]
    (item,) = make_items(1)[:1]

    def peak(n: int) -> int:
        (row,) = records(make_rows([item], [None]))
        rows = (replace(row, id=items[i]) for i in range(n))
        tracemalloc.start()
        summarise(Scores(rows))
        found = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return found

    peak(5)
    assert (peak(many) - peak(few)) / (many - few) < 550  # 290 B of it are held


@pytest.mark.usefixtures("stubbed")
def test_without_a_summary_none_of_other_rows_is_left(tmp_path):
    pairs = write_pairs(tmp_path / "p.jsonl", 3, 40)
    config = {"model": str(MODEL), "pairs": (pairs,), "out": tmp_path / "out"}
    score(ScoreConfig(**config))
    assert (tmp_path / "out" / "summary.json").exists()
    assert score(ScoreConfig(**config, summary=False)) == ScoreResult(3, 1, None)
    assert not (tmp_path / "out" / "summary.json").exists()


def killed_after(command: list[str], file: Path, n_lines: int) -> int:
    """Run a command, kill it (SIGKILL) when a file has that many lines; return the lines left."""
    environment = {**os.environ, "PYTHONPATH": f"{ROOT / 'cli'}{os.pathsep}{ROOT}"}
    environment["OMP_NUM_THREADS"] = str(torch.get_num_threads())  # which decides the last bits
    with subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL) as process:
        deadline = time.monotonic() + 120
        while process.poll() is None and time.monotonic() < deadline:
            if file.exists() and file.read_bytes().count(b"\n") >= n_lines:
                process.send_signal(signal.SIGKILL)
                break
            time.sleep(0.002)
        process.wait()
    assert process.returncode == -signal.SIGKILL
    return file.read_bytes().count(b"\n")


def on_rows(seen: list[int]) -> Any:
    return lambda event: seen.append(event.n) if event.event == "rows" else None


def test_killed_run_goes_on_at_the_row_where_it_stopped(tmp_path):
    n = 60
    pairs = write_pairs(tmp_path / "p.jsonl", n, 40)

    def config_of(out: str) -> ScoreConfig:
        return ScoreConfig(
            model=str(MODEL), pairs=(pairs,), out=tmp_path / out, batch_tokens=120, device="cpu"
        )

    score(config_of("whole"))
    arguments = ["--model", MODEL, "--pairs", pairs, "--out", tmp_path / "killed"]
    command = [sys.executable, "-m", "cqa_fast", "score", *arguments, "--batch-tokens", 120]
    command += ["--device", "cpu"]
    held = killed_after([str(part) for part in command], tmp_path / "killed" / "scores.jsonl", 10)
    assert 10 <= held < n
    seen: list[int] = []
    score(config_of("killed"), on_event=on_rows(seen))
    assert sum(seen) == n - held
    for name in ("scores.jsonl", "items.jsonl", "summary.json"):
        whole, killed = (tmp_path / out / name for out in ("whole", "killed"))
        assert killed.read_bytes() == whole.read_bytes()


def ids_of(folder: Path) -> Iterator[str]:
    return (row["id"] for row in read_lines(folder / "scores.jsonl"))


@pytest.mark.usefixtures("stubbed")
def test_rows_merge_by_id_whatever_the_order_of_the_files(tmp_path):
    pairs = write_pairs(tmp_path / "p.jsonl", 9, 40)
    lines = pairs.read_bytes().splitlines(keepends=True)
    some, rest = tmp_path / "some.jsonl", tmp_path / "rest.jsonl"
    some.write_bytes(b"".join(lines[6:2:-1]))
    rest.write_bytes(b"".join([lines[8], *lines[:3], lines[7]]))
    out = tmp_path / "out"
    counts = []
    for files in ((some,), (rest, some), (pairs,), (some,)):
        result = score(ScoreConfig(model=str(MODEL), pairs=files, out=out))
        counts.append(result.summary.statistics.base["ungrouped"].n)
    assert counts == [4, 9, 9, 4]  # of the files given, not of all that the folder holds
    assert list(ids_of(out)) == [f"row-{i}" for i in (6, 5, 4, 3, 8, 0, 1, 2, 7)]


def test_items_that_add_no_branch_do_not_make_a_pass_without_end():
    tokenizer = Tokenizer(MODEL)
    pair = {"context": "It rained.", "good": " She ran.", "bad": " She sat."}
    items = (
        encode_item(
            parse_pair({**pair, "id": f"row-{i}"}, f"p.jsonl:{i + 1}"),
            tokenizer, "split", score_eos=False, max_positions=1024,
        )
        for i in range(250)
    )  # fmt: skip
    assert [len(group) for group, _ in passes(items, tokenizer, 100)] == [100, 100, 50]
