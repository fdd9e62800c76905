"""Scores of an engine that gives no entropy: n/a where it would stand, all else as with it."""

import csv
import json

import pytest
from helpers import read_lines, write_lines
from synthetic import make_folder

from cqa.report.config import ReportConfig
from cqa.report.source import read_source
from cqa.report.write import write_report
from cqa.score_folder import CHECKSUM, with_checksum
from cqa.stats.summary import summarise

ENTROPIES = ("entropy_given_context_nats", "entropy_null_nats")
PER_TOKEN = ("H(X|Y), nats/token", "H(X), nats/token", "H(X|Y) of true continuations, nats/token")


def without_entropy(folder, concerns=lambda row: True):
    """Make some rows of a folder of scores those of an engine that gives no entropy."""
    rows = read_lines(folder / "scores.jsonl")
    for row in rows:
        del row[CHECKSUM]
        for option in row["options"] if concerns(row) else ():
            option.update(dict.fromkeys(ENTROPIES))
    write_lines(folder / "scores.jsonl", [with_checksum(row) for row in rows])


@pytest.fixture(scope="module")
def reports(tmp_path_factory):
    """The same scores and the reports on them, with entropies and without."""
    folder = tmp_path_factory.mktemp("entropy")
    for name in ("with", "without"):
        make_folder(folder / name / "scores")
        if name == "without":
            without_entropy(folder / name / "scores")
        write_report(folder / name / "scores", ReportConfig(out=folder / name / "report"))
    return folder


def summary_of(folder):
    return summarise(read_source(folder).scores).to_json()


def cells(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_the_summary_says_none_and_the_verdict_says_why(reports):
    known, unknown = (summary_of(reports / name / "scores") for name in ("with", "without"))
    for models in unknown["groups"].values():
        assert all(entry.pop("entropy_per_token") is None for entry in models.values())
    for models in known["groups"].values():
        assert all(entry.pop("entropy_per_token")["null"]["after"] > 0 for entry in models.values())
    for models in unknown["continuations"].values():
        for entry in models.values():
            for part in (entry, *entry["domains"].values()):
                assert part.pop("entropy_per_token_nats") is None
    for models in known["continuations"].values():
        for entry in models.values():
            for part in (entry, *entry["domains"].values()):
                assert part.pop("entropy_per_token_nats")["after"] > 0
    found = {f["name"]: f for f in unknown["verdict"].pop("findings")}
    assert found["entropy"]["mark"] == "n/a"
    assert found["entropy"]["reason"] == "the engine that scored gives no entropy"
    assert all(found["entropy"][key] is None for key in ("estimate", "ci95", "p", "p_alone"))
    expected = {f["name"]: f for f in known["verdict"].pop("findings")}
    assert expected.pop("entropy")["estimate"] is not None
    assert {name: f for name, f in found.items() if name != "entropy"} == expected
    assert unknown == known


def test_tables_say_n_a(reports):
    tables = {name: reports / name / "report" / "tables" for name in ("with", "without")}
    names = {path.name for path in tables["with"].glob("*.csv")}
    assert names == {path.name for path in tables["without"].glob("*.csv")}
    for name in names - {"entropy.csv", "scores_long.csv"}:
        assert (tables["with"] / name).read_bytes() == (tables["without"] / name).read_bytes()
    known, unknown = (cells(tables[name] / "entropy.csv") for name in ("with", "without"))
    assert {row["quantity"] for row in known} > set(PER_TOKEN)
    for before, after in zip(known, unknown, strict=True):
        if before["quantity"] in PER_TOKEN:
            assert float(before["before"]) > 0
            numbers = {key: text for key, text in after.items() if key in before.keys() - {
                "group", "adapter", "quantity"}}  # fmt: skip
            assert set(numbers.values()) == {"n/a"}
        else:
            assert before == after


def test_the_page_and_the_long_table_say_n_a(reports):
    rows = cells(reports / "without" / "report" / "tables" / "scores_long.csv")
    assert all(row[key] == "n/a" for row in rows for key in ENTROPIES)
    assert all(float(row["logp_given_context_nats"]) < 0 for row in rows)
    text = (reports / "without" / "report" / "report.md").read_text()
    assert "the engine that scored gives no entropy" in text
    assert "nan" not in text.lower()
    page = (reports / "without" / "report" / "report.html").read_text()
    assert "the engine that scored gives no entropy" in page


def test_one_item_without_entropy_leaves_no_mean_of_the_others(tmp_path):
    folder = make_folder(tmp_path / "scores")
    without_entropy(folder, lambda row: row["id"] in ("literary-1", "text-f0"))
    found = summary_of(folder)
    for adapter, entry in found["groups"]["literary"].items():
        assert entry["entropy_per_token"] is None
        assert found["groups"]["factual"][adapter]["entropy_per_token"]["null"]["before"] > 0
    text = found["continuations"]["factual"]["epoch-05"]
    assert text["entropy_per_token_nats"] is None
    assert text["domains"]["news"]["entropy_per_token_nats"] is None
    assert text["domains"]["popular science"]["entropy_per_token_nats"]["before"] > 0
    verdict = {f["name"]: f["mark"] for f in found["verdict"]["findings"]}
    assert verdict["entropy"] == "n/a"
    json.dumps(found, allow_nan=False)
