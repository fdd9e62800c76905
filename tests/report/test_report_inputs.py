"""What a report is made of: settings of the scoring run, and files that are damaged."""

import gc
import json
import shutil
from pathlib import Path

import pytest
from helpers import read_lines, write_lines
from report.common import report_on
from synthetic import make_folder, make_items, make_rows, make_run

from cqa.errors import ConfigError, DataError, ResourceError
from cqa.output_folder import filled
from cqa.report.config import ReportConfig
from cqa.report.item_table import scored_items
from cqa.report.write import read_focus, write_report
from cqa.score_folder import with_checksum


def test_settings_of_the_scoring_run_hold_unless_given_anew(tmp_path):
    items = [item for item in make_items(2) if item["kind"] == "pair"]
    adapters = [None, "epoch-02"]
    folder = make_folder(
        tmp_path / "scores", items=items, adapters=adapters, cutoff="2023", margin=1.5
    )
    own = read_focus(folder, ReportConfig(out=tmp_path)).summary
    anew = read_focus(folder, ReportConfig(out=tmp_path, cutoff="2024", margin=9)).summary
    assert (own.cutoff, anew.cutoff) == ("2023", "2024")
    margins = [s.groups["factual"]["epoch-02"].equivalence.margin for s in (own, anew)]
    assert margins == [1.5, 9]


(OF_ANOTHER_MODEL,) = (
    json.dumps(with_checksum(row | {"model_key": "x"})) + "\n"
    for row in make_rows(make_items(1)[:1], [None])
)


def test_rows_of_an_earlier_name_are_of_the_adapter_as_it_is_called_now(tmp_path):
    """Two runs' epoch-01, scored one after the other, then both in one command."""
    items = [item for item in make_items(3) if item["kind"] == "pair"]
    adapters = [None, "run/epoch-01", "run2/epoch-01"]
    folder = make_folder(tmp_path / "scores", items=items, adapters=adapters)
    expected = read_focus(folder, ReportConfig(out=tmp_path))
    rows = read_lines(folder / "scores.jsonl")
    for row in rows:
        del row["row_digest"]
        row["adapter"] = row["adapter"] and "epoch-01"
    write_lines(folder / "scores.jsonl", map(with_checksum, rows))
    focus = read_focus(folder, ReportConfig(out=tmp_path))
    assert focus.summary == expected.summary
    assert scored_items(focus).items == scored_items(expected).items


def test_groups_are_those_of_the_scoring_run_unless_named_anew(tmp_path):
    items = [item for item in make_items(2) if item["kind"] == "pair"]
    folder = make_folder(tmp_path / "scores", items=items, primary="factual", control="literary")
    own = read_focus(folder, ReportConfig(out=tmp_path))
    assert (own.primary, own.control) == ("factual", "literary")
    anew = read_focus(folder, ReportConfig(out=tmp_path, primary="literary", control="factual"))
    assert (anew.primary, anew.control) == ("literary", "factual")
    with pytest.raises(ConfigError, match="expected --primary to name a group of pairs"):
        read_focus(folder, ReportConfig(out=tmp_path, primary="poems"))


@pytest.mark.parametrize("name", ["scores.jsonl", "items.jsonl", "meta.json"])
def test_a_folder_without_scores_is_refused(scored, tmp_path, name):
    shutil.copytree(scored, tmp_path / "scores")
    (tmp_path / "scores" / name).unlink()
    with pytest.raises(DataError, match=f"with {name}, got one without") as caught:
        report_on(tmp_path / "scores", tmp_path / "out")
    assert "cqa-fast score writes it" in caught.value.hint
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("meta.json", "{", r"meta\.json: expected a JSON object"),
        ("meta.json", "{}", r"meta\.json: expected `settings`, got none"),
        ("meta.json", {"models": []}, "expected the base first among the models, and once"),
        ("meta.json", {"settings": []}, r"expected `settings` to be an object, got: \[\]"),
        ("meta.json", {"models": [1]}, r"expected `models\[0\]` to be an object, got: 1"),
        ("meta.json", {"too_long": {"p": 2}}, r"expected `too_long\.p` to be text, got: 2"),
        ("meta.json", {"settings": {}}, r"meta\.json: settings: expected `model`, got none"),
        ("meta.json", {"item_lines": [[2, 1]]}, "expected `item_lines` to rise from 1"),
        ("meta.json", {"item_lines": [[1, 3]]}, "expected the items that meta.json stands for"),
        ("meta.json", {"item_lines": [[1, 300]]}, "expected the items that meta.json stands for"),
        ("items.jsonl", '{"id": "x"}\n', r"items\.jsonl:1: expected `item_key`, got none"),
        (
            "scores.jsonl",
            json.dumps(with_checksum({})) + "\n",
            r"scores\.jsonl:1: expected `id`, got none",
        ),
        ("scores.jsonl", OF_ANOTHER_MODEL, "expected 28 items scored under the base, got 0"),
        ("scores.jsonl", "{", r"scores\.jsonl:1: expected a whole last line, got a torn one"),
        ("items.jsonl", "{", r"items\.jsonl:1: expected a whole last line, got a torn one"),
        ("scores.jsonl", "{}\n", r"scores\.jsonl:1: expected the row as it was written, got a dam"),
        ("scores.jsonl", "not json\n", r"scores\.jsonl:1: expected one JSON object"),
    ],
)
def test_damaged_files_are_refused_with_their_place(scored, tmp_path, name, text, message):
    path = Path(shutil.copytree(scored, tmp_path / "scores")) / name
    if isinstance(text, dict):
        text = json.dumps(json.loads(path.read_text()) | text)
    path.write_text(text)
    with pytest.raises(DataError, match=message):
        report_on(tmp_path / "scores", tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        (
            "run.json",
            '{"settings": {"data": 3}}',
            r"run\.json: settings: expected `data` to be an array, got: 3",
        ),
        (
            "log.jsonl",
            '{"event": "step", "epoch": [], "loss_nats": 1}',
            "`epoch` to be a whole number",
        ),
        ("log.jsonl", '{"event": "eval", "epoch": 1}', r"log\.jsonl:1: expected `eval_loss_nats`"),
    ],
)
def test_damaged_run_is_refused_with_its_place(scored, tmp_path, name, text, message):
    run = make_run(tmp_path / "run")
    (run / name).write_text(text)
    with pytest.raises(DataError, match=message):
        report_on(scored, tmp_path / "out", run=run)


def test_a_run_without_its_files_is_refused(scored, tmp_path):
    with pytest.raises(DataError, match=r"run\.json: expected a JSON object"):
        report_on(scored, tmp_path / "out", run=tmp_path / "run")


def test_an_out_that_cannot_be_written_is_refused(few, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="expected --out to be a folder, got a file"):
        report_on(few, tmp_path / "file")
    out = tmp_path / "report"
    with filled(out, "report"):
        (out / "tables").write_text("")
    with pytest.raises(ResourceError, match=r"tables/.*\.csv: expected to write, got: File exists"):
        report_on(few, out)
    assert not list(out.rglob("*.*g")), "a figure took its place though a table could not"
    assert not (out / "report.html").exists()


@pytest.mark.parametrize("enabled", [True, False])
def test_the_garbage_collector_is_afterwards_as_it_was(tmp_path, monkeypatch, enabled):
    within = []

    def fail(*_):
        within.append(gc.isenabled())
        raise DataError("damaged")

    monkeypatch.setattr("cqa.report.write.make_report", fail)
    was = gc.isenabled()
    (gc.enable if enabled else gc.disable)()
    try:
        with pytest.raises(DataError):
            write_report(tmp_path, ReportConfig(out=tmp_path / "out"))
        assert (within, gc.isenabled()) == ([False], enabled)
    finally:
        (gc.enable if was else gc.disable)()
