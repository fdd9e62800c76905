"""Summary and report are of the same rows: the last command's items, and all that compares."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from helpers import tiny_run, write_lines
from observers import crash, on

from cqa.errors import DataError
from cqa.family import read_family
from cqa.report.config import ReportConfig
from cqa.report.write import make_report, read_focus
from cqa.schema.events import RowsWritten
from cqa.score.config import ScoreConfig
from cqa.score.run import score

WORDS = ("the lamp", "she", "the door", "a lamp", "by the", "he ran", "was", "a door")
PAIRS = [
    {"id": f"p{k}", "context": words, "good": " was lit", "bad": " ran", "group": "literary"}
    for k, words in enumerate(WORDS)
]


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    """A folder with a model, and two runs whose epochs differ."""
    folder = tiny_run(tmp_path_factory.mktemp("trained"))
    shutil.move(folder / "run", folder / "kept")
    shutil.rmtree(folder / "model")
    (folder / "train.jsonl").unlink()
    shutil.move(folder / "kept", folder / "run2")
    tiny_run(folder)
    for k in (1, 2):  # alpha is part of an adapter
        path = folder / "run2" / f"epoch-0{k}" / "adapter_config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | {"lora_alpha": 40 + k}))
    return folder


@pytest.fixture
def config(trained, tmp_path) -> ScoreConfig:
    pairs = write_lines(tmp_path / "pairs.jsonl", PAIRS)
    return ScoreConfig(
        model=str(trained / "model"), pairs=(pairs,), out=tmp_path / "scores", device="cpu"
    )


def of(trained: Path, *names: str) -> tuple[Path, ...]:
    return tuple(trained / name for name in names)


def summary_of(config: ScoreConfig) -> dict[str, Any]:
    return json.loads((config.out / "summary.json").read_text())


def assert_report_says_the_same(config: ScoreConfig) -> dict[str, Any]:
    """Return summary.json, when the report's own statistics are equal to it."""
    held, focus = summary_of(config), read_focus(config.out, ReportConfig(out=config.out))
    computed = json.loads(json.dumps(focus.summary.to_json()))
    assert computed == {key: held[key] for key in computed}
    meta = json.loads((config.out / "meta.json").read_text())
    assert (held["digest"], held["items_digest"]) == (meta["digest"], meta["items_digest"])
    return held


def test_items_that_the_last_command_no_longer_has_are_in_neither(config, trained):
    config = replace(config, adapter=of(trained, "run/epoch-01"))
    score(config)
    write_lines(config.pairs[0], PAIRS[2:5])
    held = score(config).to_json()
    assert held["groups"]["literary"]["epoch-01"]["n"] == 3
    assert assert_report_says_the_same(config)["base"]["literary"]["n"] == 3
    report = make_report(config.out, ReportConfig(out=config.out))
    assert len(report.found.items) == 3
    assert {item.id for item in report.found.items} == {"p2", "p3", "p4"}


def test_renamed_items_count_once_in_whatever_order_they_come(config):
    score(config)
    renamed = [{**pair, "id": f"new-{pair['id']}"} for pair in PAIRS]
    write_lines(config.pairs[0], [renamed[3], *renamed[:3], PAIRS[5], *renamed[6:]])
    score(config)
    assert assert_report_says_the_same(config)["base"]["literary"]["n"] == 7
    digest = summary_of(config)["items_digest"]
    write_lines(config.pairs[0], [PAIRS[5], *renamed[6:], *renamed[:4]])
    score(config)
    assert assert_report_says_the_same(config)["items_digest"] == digest


def test_two_adapters_that_were_once_called_alike_are_told_apart(config, trained):
    first, second = of(trained, "run/epoch-01", "run2/epoch-01")
    score(replace(config, adapter=(first,)))
    score(replace(config, adapter=(second,)))
    held = assert_report_says_the_same(config)
    (earlier,) = held["groups"]["literary"].keys() - {"epoch-01"}
    assert earlier.startswith("epoch-01@")
    assert set(held["families"]["literary"]["changes"]) == {"epoch-01", earlier}
    score(replace(config, adapter=(first, second)))
    held = assert_report_says_the_same(config)
    assert list(held["groups"]["literary"]) == ["run/epoch-01", "run2/epoch-01"]
    score(replace(config, adapter=(second,)))
    held = assert_report_says_the_same(config)
    assert list(held["groups"]["literary"]) == ["run/epoch-01", "epoch-01"]


def test_scoring_fewer_epochs_sheds_no_correction(config, trained):
    whole = score(replace(config, run=(trained / "run",))).to_json()
    fewer = score(replace(config, run=(trained / "run",), epochs=(1,))).to_json()
    assert fewer["families"] == whole["families"]
    assert set(fewer["model_keys"]) == {"base", "epoch-01", "epoch-02"}
    assert assert_report_says_the_same(config) == fewer
    report = make_report(config.out, ReportConfig(out=config.out, run=trained / "run"))
    assert not [text for text in report.caveats if "trained epochs were scored" in text]


def test_an_adapter_that_never_saw_these_items_is_not_in_the_family(config, trained):
    score(replace(config, run=(trained / "run",)))
    other = [{**pair, "id": f"o{pair['id']}", "context": "so " + pair["context"]} for pair in PAIRS]
    write_lines(config.pairs[0], other)
    held = score(replace(config, run=(trained / "run",), epochs=(1,))).to_json()
    assert set(held["model_keys"]) == {"base", "epoch-01"}
    assert assert_report_says_the_same(config)["not_in_family"] == []


def test_an_adapter_that_was_scored_in_another_way_is_named_as_outside(config, trained):
    score(replace(config, run=(trained / "run",), score_eos=True))
    held = score(replace(config, run=(trained / "run",), epochs=(1,))).to_json()
    assert held["not_in_family"] == [{"adapter": "epoch-02", "differs_in": ["score_eos"]}]
    assert set(held["model_keys"]) == {"base", "epoch-01"}
    report = make_report(config.out, ReportConfig(out=config.out))
    assert [text for text in report.caveats if text.startswith("epoch-02 was scored on these")]


def test_an_incomplete_adapter_is_left_out_of_the_family_by_name(config, trained):
    config = replace(config, adapter=of(trained, "run/epoch-01"), batch_tokens=12)
    score(replace(config, adapter=()))
    with pytest.raises(KeyboardInterrupt):
        score(config, on_event=on(RowsWritten, 1, crash))
    assert not (config.out / "summary.json").exists()
    score(replace(config, adapter=of(trained, "run/epoch-02")))
    held = assert_report_says_the_same(config)["families"]["literary"]
    assert list(held["changes"]) == ["epoch-02"]
    assert 0 < held["incomplete"]["epoch-01"] < len(PAIRS)


def test_a_stopped_rerun_leaves_no_summary_of_other_rows(config, trained):
    score(config)
    with pytest.raises(KeyboardInterrupt):
        score(
            replace(config, adapter=of(trained, "run/epoch-01")),
            on_event=on(RowsWritten, 1, crash),
        )
    assert not (config.out / "summary.json").exists()
    assert len(json.loads((config.out / "meta.json").read_text())["models"]) == 2


def test_items_that_meta_json_does_not_stand_for_are_refused(config):
    score(config)
    path = config.out / "items.jsonl"
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join(lines[1:]))
    with pytest.raises(DataError, match=r"items\.jsonl: expected the items that meta\.json stands"):
        read_family(config.out)
    score(config)  # the same command mends it
    assert assert_report_says_the_same(config)["base"]["literary"]["n"] == len(PAIRS)


def test_the_run_that_scoring_named_is_used_and_another_one_refused(config, trained, tmp_path):
    run = Path(shutil.copytree(trained / "run", tmp_path / "run"))
    score(replace(config, run=(run,)))
    asked = ReportConfig(out=tmp_path / "report")
    found = read_focus(config.out, asked).source.run
    assert (found.folder, found.scored) == (run, {"epoch-01": 1, "epoch-02": 2})
    with pytest.raises(DataError, match=f"^{trained / 'run2'}: expected the run whose adapters"):
        read_focus(config.out, replace(asked, run=trained / "run2"))
    shutil.rmtree(run)
    report = make_report(config.out, asked)
    assert [text for text in report.caveats if f"n/a: {run} is not there (--run)" in text]
    shutil.copytree(trained / "run2", run)
    report = make_report(config.out, asked)
    assert report.focus.source.run is None
    assert [text for text in report.caveats if "has none of them (--run)" in text]
