"""Scoring that is killed, finds the disk full or runs out of memory: the same bytes in the end."""

import json
from pathlib import Path

import pytest
import torch
from faults import (
    Crashes,
    assert_every_failure_is_continued,
    assert_every_state_is_continued,
    no_space,
    scores_contents,
)
from helpers import read_lines, tiny_run, write_lines

from cqa.errors import ResourceError
from cqa.score import decoder_engine
from cqa.score.config import ScoreConfig
from cqa.score.run import score

PAIRS = [
    {"id": "p1", "context": "the lamp", "good": " was lit", "bad": " ran"},
    {"id": "p2", "context": "she", "good": " waited by", "bad": " was a lamp"},
    {"id": "p3", "context": "the door", "options": [" a", " b"], "answer": 1},
    {"id": "p4", "context": "a lamp", "good": " was", "bad": " by"},
]
TEXTS = [{"id": "t1", "context": "the lamp was", "continuation": " lit and she waited"}]


@pytest.fixture(scope="module")
def inputs(tmp_path_factory) -> Path:
    """A folder with a model, a training run of two epochs, and items."""
    folder = tiny_run(tmp_path_factory.mktemp("inputs"))
    write_lines(folder / "pairs.jsonl", PAIRS)
    write_lines(folder / "texts.jsonl", TEXTS)
    return folder


def config_of(inputs: Path, out: Path, **changes: object) -> ScoreConfig:
    settings = {
        "batch_tokens": 30,
        "run": (inputs / "run",),
        "epochs": (2,),
        "tokens": True,
        **changes,
    }
    return ScoreConfig(
        model=str(inputs / "model"), pairs=(inputs / "pairs.jsonl",), out=out, device="cpu",
        continuations=(inputs / "texts.jsonl",), **settings,
    )  # fmt: skip


@pytest.fixture(scope="module")
def crashes(inputs, tmp_path_factory) -> Crashes:
    folder = tmp_path_factory.mktemp("crashes")
    watched = Crashes(folder / "scores", folder / "copies")
    with watched.watched():
        score(config_of(inputs, folder / "scores"))
    return watched


def test_run_killed_or_cut_off_at_any_write_is_continued_to_the_same_bytes(inputs, crashes):
    assert len(read_lines(crashes.folder / "scores.jsonl")) == 10
    assert len(crashes.states) > 20
    assert_every_state_is_continued(
        crashes, lambda out: score(config_of(inputs, out)), scores_contents
    )


def test_identity_of_every_model_is_on_disk_before_its_first_row(crashes):
    for copy in crashes.states.values():
        if (copy / "scores.jsonl").exists():
            lines = (copy / "scores.jsonl").read_bytes().splitlines(keepends=True)
            keys = {json.loads(line)["model_key"] for line in lines if line.endswith(b"\n")}
            if keys:
                meta = json.loads((copy / "meta.json").read_text())
                assert keys <= {model["model_key"] for model in meta["models"]}


@pytest.mark.parametrize("error", [no_space, KeyboardInterrupt], ids=["full-disk", "second-ctrl-c"])
def test_run_whose_write_fails_anywhere_ends_cleanly_and_is_continued(inputs, tmp_path, error):
    def work(out: Path) -> None:
        score(config_of(inputs, out))

    assert_every_failure_is_continued(
        tmp_path, error, begin=work, go_on=work, contents=scores_contents
    )


ERRORS = {
    "cuda": lambda: torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB"),
    "cpu": lambda: RuntimeError(
        "[enforce fail at alloc_cpu.cpp:132] err == 0. DefaultCPUAllocator: can't allocate memory: "
        "you tried to allocate 123 bytes. Error code 12 (Cannot allocate memory)"
    ),
    "c++": lambda: RuntimeError("std::bad_alloc"),
    "cublas": lambda: RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublas…`"),
    "python": MemoryError,
}


def limit_memory(monkeypatch, rows: int, error) -> list[int]:
    """Let passes of more rows run out of memory; return the rows of those that did not."""
    fed: list[int] = []
    real = decoder_engine.run_prefix_batch

    def run_prefix_batch(decoder, prefixes):
        if prefixes.n_rows > rows:
            raise error()
        fed.append(prefixes.n_rows)
        return real(decoder, prefixes)

    monkeypatch.setattr(decoder_engine, "run_prefix_batch", run_prefix_batch)
    return fed


@pytest.mark.parametrize("error", ERRORS.values(), ids=ERRORS)
def test_pass_that_runs_out_of_memory_is_halved_and_no_byte_changes(
    inputs, crashes, tmp_path, monkeypatch, error
):
    fed = limit_memory(monkeypatch, 20, error)
    config = config_of(inputs, tmp_path / "scores", batch_tokens=4096)
    score(config)
    assert max(fed) <= 20
    assert (config.out / "scores.jsonl").read_bytes() == scores_contents(crashes.folder)[
        "scores.jsonl"
    ]


def test_budget_is_halved_once_for_all_passes_that_follow(inputs, tmp_path, monkeypatch):
    tried: list[int] = []
    real = decoder_engine.run_prefix_batch

    def run_prefix_batch(decoder, prefixes):
        tried.append(prefixes.n_rows)
        if prefixes.n_rows > 30:
            raise MemoryError
        return real(decoder, prefixes)

    monkeypatch.setattr(decoder_engine, "run_prefix_batch", run_prefix_batch)
    many = [{**item, "id": f"{item['id']}-{k}", "context": item["context"] + f" {k}"}
            for k in range(20) for item in PAIRS]  # fmt: skip
    pairs = write_lines(tmp_path / "many.jsonl", many)
    base = config_of(inputs, tmp_path / "scores", run=(), epochs=(), batch_tokens=200)
    score(ScoreConfig(**{**vars(base), "pairs": (pairs,)}))
    assert len(read_lines(tmp_path / "scores" / "scores.jsonl")) == 81
    too_much = [rows for rows in tried if rows > 30]
    assert len(too_much) <= 4  # 200, 100, 50: then every pass fits


def test_item_that_does_not_fit_alone_ends_the_run_by_name(inputs, tmp_path, monkeypatch):
    limit_memory(monkeypatch, 14, MemoryError)
    config = config_of(inputs, tmp_path / "scores", run=(), epochs=())
    with pytest.raises(
        ResourceError, match=r"enough memory for item `p2` alone.*\nhint: "
    ) as caught:
        score(config)
    assert caught.value.exit_code == 6
    assert caught.value.where == f"{inputs / 'pairs.jsonl'}:2"
    assert [row["id"] for row in read_lines(config.out / "scores.jsonl")] == ["p1"]


def test_error_that_is_not_about_memory_is_not_taken_for_one(inputs, tmp_path, monkeypatch):
    limit_memory(monkeypatch, 0, lambda: RuntimeError("mat1 and mat2 shapes cannot be multiplied"))
    with pytest.raises(RuntimeError, match="shapes"):
        score(config_of(inputs, tmp_path / "scores", run=(), epochs=()))


def test_model_that_does_not_fit_ends_the_run_before_anything_is_written(
    inputs, tmp_path, monkeypatch
):
    def no_memory(*_: object, **__: object) -> None:
        raise ERRORS["cpu"]()

    monkeypatch.setattr("cqa.score.decoder_engine.open_model", no_memory)
    with pytest.raises(
        ResourceError, match=r"enough memory for the model, got none\nhint: --dtype"
    ):
        score(config_of(inputs, tmp_path / "scores"))
    assert not (tmp_path / "scores").exists()
