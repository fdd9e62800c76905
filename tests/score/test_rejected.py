"""Items with which something is wrong: refused before any work, or rows of rejected.jsonl."""

import json
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from cqa_fast.main import main
from helpers import read_lines, tiny_run, write_lines
from observers import crash, on
from score.test_shards import contents, edit

from cqa.errors import DataError
from cqa.report.config import ReportConfig
from cqa.report.write import write_report
from cqa.schema.events import Note, RowsWritten, ScoreEvent
from cqa.schema.shard import ShardItems
from cqa.score.adapters import find_adapters
from cqa.score.checked import Checked
from cqa.score.config import ScoreConfig
from cqa.score.encoded import Items
from cqa.score.engines import engine_of
from cqa.score.merge import merge
from cqa.score.run import checked_items, score

GOOD = [
    {"id": f"g{k}", "group": "literary", "context": f"the lamp {k}", "good": f" é{k}", "bad": " a"}
    for k in range(5)
]  # fmt: skip
BAD: dict[str, tuple[str, str | None, str]] = {  # line, id, what the reason says
    "no-json": ("not json", None, "expected one JSON object, got other text"),
    "array": ("[1]", None, "expected one JSON object, got: an array"),
    "no-good": ('{"id": "b3", "context": "a", "bad": " b"}', "b3", "expected text in `good`"),
    "number": ('{"id": 4, "context": "a", "good": 1, "bad": " b"}', "4", "expected text in `good`"),
    "odd-id": ('{"id": ["x"], "context": "a", "good": " a", "bad": " b"}', None, "in `id`"),
    "same": ('{"id": "b6", "context": "a", "good": " b", "bad": " b"}', "b6", "to differ"),
    "long": (
        json.dumps({"id": "b7", "context": "lamp " * 300, "good": " a", "bad": " b"}), "b7",
        "expected at most 256 tokens",
    ),
    "special": (
        '{"id": "b8", "context": "a<|endoftext|>", "good": " a", "bad": " b"}', "b8", "<|endoft",
    ),
    "double": ('{"id": "g1", "context": "a", "good": " a", "bad": " b"}', "g1", "each id once"),
    "alike": (
        '{"id": "b10", "context": "a", "good": " \\u00e9", "bad": " e\\u0301"}', "b10",
        "options that differ in their tokens",
    ),
}  # fmt: skip


@pytest.fixture(scope="module")
def inputs(tmp_path_factory) -> Path:
    """A folder with a model and a training run of two epochs."""
    return tiny_run(tmp_path_factory.mktemp("inputs"))


@pytest.fixture
def files(inputs, tmp_path) -> Path:
    """A folder with the same items, with bad lines between them and without."""
    write_lines(tmp_path / "good.jsonl", GOOD)
    good = [json.dumps(record) for record in GOOD]
    bad = [line for line, _, _ in BAD.values()]
    lines = [*good[:2], *bad[:5], *good[2:4], *bad[5:], good[4]]
    (tmp_path / "mixed.jsonl").write_text("".join(f"{line}\n" for line in lines))
    texts = ['{"context": "the lamp", "continuation": " was lit"}', '{"id": "t2", "context": "a"}']
    (tmp_path / "texts.jsonl").write_text("".join(f"{line}\n" for line in texts))
    return tmp_path


def config_of(inputs: Path, files: Path, out: Path, **changes: Any) -> ScoreConfig:
    settings = {
        "pairs": (files / "mixed.jsonl",), "run": (inputs / "run",), "epochs": (2,),
        "on_error": "skip", "batch_tokens": 30, **changes,
    }  # fmt: skip
    return ScoreConfig(model=str(inputs / "model"), out=out, device="cpu", **settings)


def test_bad_items_are_rows_with_place_id_and_reason(inputs, files):
    events: list[ScoreEvent] = []
    result = score(config_of(inputs, files, files / "out"), on_event=events.append)
    rows = read_lines(files / "out" / "rejected.jsonl")
    numbers = [3, 4, 5, 6, 7, 10, 11, 12, 13, 14]
    assert [row["where"] for row in rows] == [f"{files / 'mixed.jsonl'}:{n}" for n in numbers]
    for row, (_, item_id, reason) in zip(rows, BAD.values(), strict=True):
        assert row["id"] == item_id
        assert reason in row["reason"]
    assert json.loads((files / "out" / "meta.json").read_text())["n_rejected"] == 10
    assert result.to_json()["n_rejected"] == 10
    notes = [event.text for event in events if isinstance(event, Note)]
    first = ", ".join(f"{files / 'mixed.jsonl'}:{n}" for n in numbers[:5])
    assert f"rejected: 10 ({first}, …; rejected.jsonl has all, with reasons)" in notes


def test_what_is_left_has_the_bytes_of_a_file_without_the_bad_items(inputs, files):
    score(config_of(inputs, files, files / "out"))
    good = config_of(inputs, files, files / "good", pairs=(files / "good.jsonl",), on_error="stop")
    plain = score(good)
    for name in ("scores.jsonl", "items.jsonl"):
        assert (files / "out" / name).read_bytes() == (files / "good" / name).read_bytes()
    assert not (files / "good" / "rejected.jsonl").exists()
    assert plain.to_json()["n_rejected"] == 0


@pytest.mark.parametrize("kind", BAD)
def test_every_kind_is_refused_by_default_before_any_work(inputs, files, kind):
    line, _, reason = BAD[kind]
    mixed = files / "one.jsonl"
    mixed.write_text("".join(json.dumps(r) + "\n" for r in GOOD) + line + "\n")
    with pytest.raises(DataError) as caught:
        score(config_of(inputs, files, files / "out", pairs=(mixed,), on_error="stop"))
    assert reason in caught.value.message
    assert str(caught.value.where).startswith(f"{mixed}:6")
    assert not (files / "out").exists()


def test_run_that_is_resumed_has_them_once(inputs, files, monkeypatch):
    monkeypatch.chdir(files)
    score(config_of(inputs, files, Path("out")))
    expected = contents(Path("out"))
    config = config_of(inputs, files, files / "killed")
    with pytest.raises(KeyboardInterrupt):
        score(config, on_event=on(RowsWritten, 2, crash))
    score(config)
    score(config)
    names = ("scores.jsonl", "items.jsonl", "rejected.jsonl", "summary.json")
    found = contents(config.out)
    assert {name: found[name] for name in names} == {name: expected[name] for name in names}


def test_rows_are_of_the_last_command(inputs, files):
    out = files / "out"
    score(config_of(inputs, files, out))
    score(config_of(inputs, files, out, pairs=(files / "good.jsonl",)))
    assert not (out / "rejected.jsonl").exists()
    assert json.loads((out / "meta.json").read_text())["n_rejected"] == 0


@pytest.mark.parametrize("count", [1, 3, 7])
def test_merged_shards_are_byte_equal_with_their_rejected_rows(inputs, files, monkeypatch, count):
    changes = {"continuations": (files / "texts.jsonl",), "too_long": "drop"}
    (files / "one").mkdir()
    monkeypatch.chdir(files / "one")
    score(config_of(inputs, files, Path("out"), **changes))
    expected = contents(Path("out"))
    assert expected["rejected.jsonl"].count(b"\n") == 10
    monkeypatch.chdir(files)
    shards = [Path(f"s{k}") for k in range(1, count + 1)]
    for k, folder in enumerate(shards, start=1):
        score(config_of(inputs, files, folder, shard=f"{k}/{count}", **changes))
    merge(Path("out"), shards)
    assert contents(Path("out")) == expected


def test_shard_whose_items_were_checked_elsewhere_is_that_which_checks_them(
    inputs, files, monkeypatch
):
    changes = {
        "continuations": (files / "texts.jsonl",), "too_long": "drop",
        "null2": "marginal:2", "summary": False,
    }  # fmt: skip
    job = config_of(inputs, files, files / "whole", **changes)
    folder = inputs / "model"
    engine = engine_of(job, folder, find_adapters(job))
    items = checked_items(job, folder, engine, n_shards=3)
    alone = checked_items(job, folder, engine)
    assert (items.part, items.groups, items.digest) == (alone.part, alone.groups, alone.digest)
    dealt: list[Checked] = pickle.loads(pickle.dumps(items.dealt()))
    assert sum(checked.part.n_items for checked in dealt) == items.part.n_items == 5
    for k, checked in enumerate(dealt, start=1):
        shard = config_of(inputs, files, files / "out", shard=f"{k}/3", **changes)
        score(shard)
        expected = contents(shard.out)
        shutil.rmtree(shard.out)
        with monkeypatch.context() as patch:
            patch.setattr(Items, "check", None)  # no item is read for it
            score(shard, checked=checked)
        assert contents(shard.out) == expected
        shutil.rmtree(shard.out)


def drop(shard: Path) -> None:
    (shard / "rejected.jsonl").write_bytes(b"")


def drop_one(shard: Path) -> None:
    drop(shard)
    edit(shard / "meta.json", lambda meta: meta.update(n_rejected=0))


def tear(shard: Path) -> None:
    path = shard / "rejected.jsonl"
    path.write_bytes(path.read_bytes().removesuffix(b"\n"))


def rename(shard: Path) -> None:
    path = shard / "rejected.jsonl"
    path.write_bytes(path.read_bytes().replace(b'"b3"', b'"b2"'))


@pytest.mark.parametrize("damage", [drop, drop_one, rename, tear])
def test_rejected_rows_that_are_lost_are_told(inputs, files, damage: Callable[[Path], None]):
    shard = files / "s1"
    score(config_of(inputs, files, shard, shard="1/1"))
    assert len(ShardItems.from_json(json.loads((shard / "shard.json").read_text()), "").rejected)
    damage(shard)
    with pytest.raises(
        DataError, match=r"expected (the 10 rejected|shard.json and meta.json|a whole last line)"
    ):
        merge(files / "out", [shard])
    assert not (files / "out").exists()


def test_job_without_a_good_item_is_refused(inputs, files):
    bad = files / "bad.jsonl"
    bad.write_text("no\nnor this\n")
    message = f"^{bad}: expected an item that can be scored, got none\nhint: the first .* {bad}:1: "
    with pytest.raises(DataError, match=message):
        score(config_of(inputs, files, files / "out", pairs=(bad,)))
    for k in (1, 2):
        score(config_of(inputs, files, files / f"s{k}", pairs=(bad,), shard=f"{k}/2"))
    with pytest.raises(DataError, match=f"hint: the first rejected is {bad}:1: "):
        merge(files / "out", [files / "s1", files / "s2"])


def test_item_that_chooses_and_is_reported_is_rejected(inputs, files):
    chooser = write_lines(
        files / "dev.jsonl",
        [
            {**GOOD[0], "id": "d1"},
            {"id": "d2", "context": "she", "good": " was", "bad": " a"},
        ],
    )
    changes = {"pairs": (files / "good.jsonl",), "choose_on": chooser}
    score(config_of(inputs, files, files / "out", **changes))
    (row,) = read_lines(files / "out" / "rejected.jsonl")
    assert (row["where"], row["id"]) == (f"{chooser}:1", "d1")
    assert "not reported" in row["reason"]


def test_table_and_report_say_how_many(inputs, files):
    out = files / "out"
    args = [
        "score", "--model", inputs / "model", "--run", inputs / "run", "--epochs", 2, "--pairs",
        files / "mixed.jsonl", "--on-error", "skip", "--out", out, "--device", "cpu",
    ]  # fmt: skip
    done = CliRunner().invoke(main, list(map(str, args)))
    assert done.exit_code == 0, done.stderr
    assert "left out, malformed or not to be encoded (--on-error skip): 10" in done.stdout
    write_report(out, ReportConfig(out=files / "report"))
    text = (files / "report" / "report.md").read_text()
    assert "10 lines of the files could not be scored as an item and were left out" in text
