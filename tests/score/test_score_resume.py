"""A scoring run can be repeated, stopped and resumed, and its folder added to."""

import os
import shutil
import signal
from dataclasses import replace

import pytest
from helpers import write_lines
from observers import crash, on
from score.scoring import (
    ITEMS,
    LITERARY,
    PER_TOKEN,
    bytes_of,
    config_of,
    few_of,
    keys_of,
    rows_of,
    summary_of,
)

from cqa.errors import DataError
from cqa.interrupt import Interrupted
from cqa.schema.events import ModelStart, RowsWritten, ScoreEvent
from cqa.score.run import score


def test_the_same_command_again_computes_nothing(scored, tmp_path):
    shutil.copytree(scored[0].out, tmp_path / "out")
    events: list[ScoreEvent] = []
    again = score(replace(scored[0], out=tmp_path / "out"), on_event=events.append)
    assert again.to_json() == scored[2]
    assert {event.event for event in events} == {"start", "note", "model", "scored"}
    assert bytes_of(tmp_path / "out") == bytes_of(scored[0].out)


@pytest.mark.parametrize("n_rows", [0, 3, 4, 7], ids=lambda n: f"{n}-rows")
def test_line_torn_by_a_kill_is_cut_and_what_is_missing_computed(data, run, few, tmp_path, n_rows):
    shutil.copytree(few, tmp_path / "out")
    lines = bytes_of(few).splitlines(keepends=True)
    left = b"".join(lines[:n_rows]) + lines[n_rows][: len(lines[n_rows]) // 2]
    (tmp_path / "out" / "scores.jsonl").write_bytes(left)
    events: list[ScoreEvent] = []
    score(few_of(data, tmp_path / "out", adapter=(run / "epoch-01",)), on_event=events.append)
    assert sum(e.n for e in events if e.event == "rows") == len(lines) - n_rows
    assert bytes_of(tmp_path / "out") == bytes_of(few)
    assert summary_of(tmp_path / "out") == summary_of(few)


@pytest.mark.parametrize("n_passes", [1, 3])
def test_run_killed_between_two_passes_is_resumed_to_the_same_bytes(
    data, run, few, tmp_path, n_passes
):
    config = few_of(data, tmp_path / "out", adapter=(run / "epoch-01",))
    with pytest.raises(KeyboardInterrupt):
        score(config, on_event=on(RowsWritten, n_passes, crash))
    assert 0 < len(rows_of(config.out)) < 8
    assert not (config.out / "summary.json").exists()
    score(config)
    assert bytes_of(config.out) == bytes_of(few)
    assert summary_of(config.out) == summary_of(few)


@pytest.mark.parametrize(("signum", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_signal_ends_a_run_after_the_pass_in_hand_and_leaves_it_to_be_resumed(
    data, run, few, tmp_path, signum, code
):
    config = few_of(data, tmp_path / "out", adapter=(run / "epoch-01",))
    with pytest.raises(Interrupted) as caught:
        score(config, on_event=on(ModelStart, 2, lambda: os.kill(os.getpid(), signum)))
    assert caught.value.exit_code == code
    assert bytes_of(few).startswith(bytes_of(config.out))
    assert 4 < len(rows_of(config.out)) < 8
    score(config)
    assert bytes_of(config.out) == bytes_of(few)


@pytest.mark.parametrize(("batch_tokens", "n_passes"), [(1, 19), (200, 7), (4096, 1)])
def test_batches_change_no_byte(data, scored, tmp_path, batch_tokens, n_passes):
    config = config_of(data, tmp_path / "out", tokens=True, batch_tokens=batch_tokens)
    events: list[ScoreEvent] = []
    score(config, on_event=events.append)
    assert sum(event.event == "rows" for event in events) == n_passes
    base = bytes_of(scored[0].out).splitlines(keepends=True)[: len(ITEMS)]
    assert bytes_of(config.out) == b"".join(base)


def test_base_is_scored_once_for_adapters_that_come_later(data, run, few, tmp_path):
    config = few_of(data, tmp_path / "out")
    score(config)
    base = bytes_of(config.out)
    events: list[ScoreEvent] = []
    score(replace(config, adapter=(run / "epoch-01",)), on_event=events.append)
    assert sum(e.n for e in events if e.event == "rows") == 4
    assert bytes_of(config.out).startswith(base)
    assert bytes_of(config.out) == bytes_of(few)


def test_another_adapter_under_the_same_name_is_scored_anew(data, run, tmp_path):
    out, summaries = tmp_path / "out", []
    for epoch in (1, 2):
        adapter = tmp_path / f"copy-{epoch}" / "adapter"
        shutil.copytree(run / f"epoch-0{epoch}", adapter)
        summaries.append(score(few_of(data, out, adapter=(adapter,))).to_json())
    rows = [row for row in rows_of(out) if row["adapter"] == "adapter"]
    assert len({row["model_key"] for row in rows}) == 2
    assert len(rows) == 8
    first, second = (s["groups"]["literary"]["adapter"]["mean_ddi_nats"] for s in summaries)
    assert first != second


@pytest.mark.parametrize(
    "changes",
    [{"boundary": "joint"}, {"null_token": "<|im_start|>"}, {"score_eos": True}, {"dtype": "bf16"}],
    ids=lambda changes: next(iter(changes)),
)
def test_other_conventions_are_another_model_key(data, few, tmp_path, changes):
    config = few_of(data, tmp_path / "out", **changes)
    score(config)
    assert keys_of(config.out)[None] != keys_of(few)[None]


def test_tokens_asked_for_later_are_written(data, tmp_path):
    config = few_of(data, tmp_path / "out")
    score(config)
    score(replace(config, tokens=True))
    key = keys_of(config.out)[None]
    latest = {row["id"]: row for row in rows_of(config.out) if row["model_key"] == key}
    assert all(o.keys() >= PER_TOKEN for row in latest.values() for o in row["options"])


@pytest.mark.parametrize(
    "change",
    [{"context": "Another."}, {"good": " Another."}, {"bad": " Another."}, {"group": "factual"}],
    ids=lambda change: next(iter(change)),
)
def test_changed_item_under_a_known_id_is_refused(data, few, run, tmp_path, change):
    out = tmp_path / "out"
    shutil.copytree(few, out)
    changed = write_lines(tmp_path / "changed.jsonl", [{**LITERARY[0], **change}])
    message = f"^{changed}:1: expected item `lit-01` as this folder holds it, got .*\nhint: .*--out"
    with pytest.raises(DataError, match=message):
        score(few_of(data, out, pairs=(changed,), adapter=(run / "epoch-02",)))
    assert bytes_of(out) == bytes_of(few)
