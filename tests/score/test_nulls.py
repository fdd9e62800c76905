"""Without the second null: the same bits in everything else, and n/a where it would stand."""

import csv
import json

import pytest
from score.scoring import config_of, rows_of

from cqa.errors import ConfigError
from cqa.report.config import ReportConfig
from cqa.report.write import write_report
from cqa.score.run import score
from cqa.score_folder import CHECKSUM

SECOND = "logp_null2_nats"


@pytest.fixture(scope="module")
def one_null(data, run, tmp_path_factory):
    """A folder of scores with one null context, and a report on it."""
    folder = tmp_path_factory.mktemp("one_null")
    config = config_of(data, folder / "scores", run=(run,), tokens=True, nulls=1)
    score(config)
    write_report(config.out, ReportConfig(out=folder / "report", run=run))
    return folder


def test_rows_are_those_with_two_nulls_but_for_the_second(one_null, rows):
    ours = rows_of(one_null / "scores")
    key_of = {row["adapter"]: row["model_key"] for row in rows}
    assert {row["model_key"] for row in ours}.isdisjoint(key_of.values())
    for mine, theirs in zip(ours, rows, strict=True):
        assert all(option[SECOND] is None for option in mine["options"])
        assert all(option[SECOND] is not None for option in theirs["options"])
        options = [o | {SECOND: None} for o in theirs["options"]]
        expected = theirs | {"options": options, "model_key": mine["model_key"]}
        for own in (mine, expected):
            own.pop(CHECKSUM)
        assert json.dumps(mine) == json.dumps(expected)


def test_the_report_says_what_is_left_out(one_null):
    text = (one_null / "report" / "report.md").read_text()
    assert "no second one" in text
    with (one_null / "report" / "tables" / "readings.csv").open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if "second ∅" in row["reading"]]
    assert rows
    assert all(row["mean_ddi"] in ("", "n/a") and row["p"] in ("", "n/a") for row in rows)


@pytest.mark.parametrize("n", [0, 3])
def test_other_numbers_of_nulls_are_refused(data, tmp_path, n):
    with pytest.raises(ConfigError, match=f"expected nulls of 1 or 2, got: {n}"):
        config_of(data, tmp_path / "out", nulls=n)
