"""Every score in tidy form, in the report and as a DataFrame: the same rows."""

import csv
import io
import itertools
import re
import shutil
import sys
from pathlib import Path

import pandas
import pytest
from helpers import ROOT
from score.scoring import rows_of
from synthetic import make_folder, make_items

import cqa
from cqa.errors import ConfigError, DataError
from cqa.escape import from_csv
from cqa.report.long_table import LongRow, long_rows, write_long_csv
from cqa.report.source import read_source
from cqa.report.tables import plain

NAMES = list(LongRow._fields)
NASTY = ("a, b", 'a "b"', "a\nb", "a\rb", "=1+1", "-", "n/a", ",", "é 漢字")


@pytest.fixture(scope="module")
def folder(scored) -> Path:
    return scored[0].out


def test_a_row_for_each_item_adapter_and_option(folder):
    table = cqa.read_scores(folder)
    rows = {(row["id"], row["adapter"] or "base"): row for row in rows_of(folder)}
    assert list(table.columns) == NAMES
    assert len(table) == sum(len(row["options"]) for row in rows.values())
    assert not table.duplicated(["id", "adapter", "option"]).any()
    assert list(dict.fromkeys(table["adapter"])) == ["base", "epoch-01", "epoch-02"]
    for found in table.to_dict("records"):
        row = rows[found["id"], found["adapter"]]
        option = row["options"][found["option"]]
        for key in ("role", "logp_given_context_nats", "logp_null2_nats", "pmi_nats", "n_bytes"):
            assert found[key] == option[key]
        if row["kind"] != "continuation":
            assert found["delta_i_nats"] == row["delta_i_nats"]


def test_changes_are_against_the_base(folder):
    table = cqa.read_scores(folder)
    table = table[table["kind"] != "continuation"]
    base, after = table[table["adapter"] == "base"], table[table["adapter"] != "base"]
    changes = ["ddi_nats", "d_cond_nats", "d_prior_nats", "dlogp_per_token_nats"]
    assert base[changes].isna().all(axis=None)
    assert (base["delta_i_nats"] == base["delta_i_base_nats"]).all()
    assert (after["ddi_nats"] == after["delta_i_nats"] - after["delta_i_base_nats"]).all()
    parts = after["d_cond_nats"] - after["d_prior_nats"]
    assert after["ddi_nats"].to_numpy() == pytest.approx(parts.to_numpy(), abs=1e-9)


def test_continuations_have_no_delta_i(folder):
    table = cqa.read_scores(folder)
    texts = table[table["kind"] == "continuation"]
    assert len(texts)
    assert texts[NAMES[NAMES.index("delta_i_nats") :]].isna().all(axis=None)


def test_the_file_of_the_report_holds_the_same(folder, tmp_path):
    cqa.report(folder, out=tmp_path)
    path = tmp_path / "tables" / "scores_long.csv"
    file = io.StringIO()
    write_long_csv(read_source(folder), file)
    assert path.read_text(encoding="utf-8") == file.getvalue()
    read = pandas.read_csv(path)
    table = cqa.read_scores(folder)
    pandas.testing.assert_frame_equal(read, table, check_dtype=False, check_exact=True)


@pytest.mark.parametrize("order", ["adapters first", "an item twice", "mixed"])
def test_the_file_of_the_report_holds_the_same_in_whatever_order_rows_stand(
    folder, tmp_path, order
):
    scores = shutil.copytree(folder, tmp_path / "scores") / "scores.jsonl"
    lines = scores.read_text(encoding="utf-8").splitlines(keepends=True)
    anew = {"adapters first": lines[::-1], "an item twice": [*lines, lines[-2]],
            "mixed": lines[::2] + lines[1::2]}  # fmt: skip
    scores.write_text("".join(anew[order]), encoding="utf-8")
    cqa.report(scores.parent, out=tmp_path / "out")
    file = io.StringIO()
    write_long_csv(read_source(scores.parent), file)
    written = (tmp_path / "out" / "tables" / "scores_long.csv").read_text(encoding="utf-8")
    assert written == file.getvalue()
    assert written.count("\n") == len(cqa.read_scores(folder)) + 1


def test_each_cell_of_the_file_is_the_value_whatever_its_text(tmp_path):
    items = make_items(len(NASTY))
    for item, text in zip(items, itertools.cycle(NASTY)):
        item["domain"], item["id"] = text, f"{text}-{item['id']}"
    folder = make_folder(tmp_path, items=items, tokens=False)
    file = io.StringIO()
    write_long_csv(read_source(folder), file)
    head, *cells = csv.reader(io.StringIO(file.getvalue(), newline=""))
    assert head == NAMES
    expected = [[plain(value) for value in row] for row in long_rows(read_source(folder))]
    assert cells == expected
    assert {from_csv(row[NAMES.index("domain")]) for row in cells} == set(NASTY)


def test_the_glossary_has_every_column_in_order():
    text = (ROOT / "docs" / "data-formats.md").read_text(encoding="utf-8")
    section = text.split("## scores_long.csv")[1].split("\n## ")[0]
    rows = re.findall(r"^\| (`.*?) \|", section, flags=re.MULTILINE)
    assert re.findall(r"`(\w+)`", " ".join(rows)) == NAMES


def test_without_pandas_one_message(folder, monkeypatch):
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(ConfigError, match=r"expected pandas.*\n?.*cqa-fast\[pandas\]"):
        cqa.read_scores(folder)


def test_a_folder_without_scores_is_refused(tmp_path):
    with pytest.raises(DataError, match=r"scores\.jsonl"):
        cqa.read_scores(str(tmp_path))
