"""The report's files: complete, repeatable, from files alone, everything escaped."""

import json
import re
import subprocess
import sys

import pytest
from helpers import ROOT, read_lines, write_lines
from report.common import Page, report_on, rows_of
from synthetic import HOSTILE, make_folder, make_items, make_run

from cqa.identity import digest_bytes
from cqa.report.config import ReportConfig
from cqa.report.figures import FIGURES
from cqa.report.tables import ABSENT
from cqa.report.write import make_report

TABLES = {
    "table_1", "other_tests", "interaction", "equivalence", "parts", "entropy", "readings",
    "shrinkage", "choice", "accuracy", "domains", "table_2", "strata", "strata_continuations",
    "groups", "items",
    "specifications",
}  # fmt: skip


def test_every_table_and_figure_is_there_in_every_form(made):
    names = {str(p.relative_to(made)) for p in made.rglob("[!.]*") if p.is_file()}
    assert names == (
        {"report.html", "report.md", "tables/scores_long.csv"}
        | {f"tables/{t}.{kind}" for t in TABLES for kind in ("csv", "tex")}
        | {f"figures/{f}.{kind}" for f in FIGURES for kind in ("csv", "svg", "png")}
    )


def test_the_same_scores_give_the_same_bytes_and_other_files_are_left_alone(scored, made, tmp_path):
    out = tmp_path / "report"
    report_on(scored, out)
    (out / "mine.txt").write_text("mine")
    again = report_on(scored, out, run=made.parent / "run", cutoff="2024-06")
    for path in again:
        assert path.read_bytes() == (made / path.relative_to(out)).read_bytes(), path.name
    assert (out / "mine.txt").read_text() == "mine"


def test_texts_are_texts_and_never_markup(made, scored):
    page = Page(made / "report.html")
    tags = [tag for tag, _ in page.elements]
    assert tags.count("script") == 2  # the page's own and its data
    assert "b" in tags
    held = "\n".join(page.texts)
    for item in read_lines(scored / "items.jsonl"):
        assert item["context"] in held
        assert all(text in held for text in item["options"])
    assert not any("onerror" in attrs or "onclick" in attrs for _, attrs in page.elements)
    raw = (made / "report.html").read_text(encoding="utf-8")
    for text in (HOSTILE[0], HOSTILE[1], "<i>other</i>"):
        assert text not in raw
    assert "<script" not in (made / "report.md").read_text(encoding="utf-8")


def test_the_page_names_nothing_outside_itself(made):
    for tag, attrs in Page(made / "report.html").elements:
        for name in ("src", "href", "xlink:href", "action", "data"):
            assert (attrs.get(name) or "#").startswith("#"), (tag, attrs)
    text = (made / "report.html").read_text(encoding="utf-8")
    assert not re.search(r"https?://|@import|url\((?!#)", text)


def test_ids_of_inlined_figures_do_not_meet(made):
    ids = [attrs["id"] for _, attrs in Page(made / "report.html").elements if "id" in attrs]
    assert len(ids) == len(set(ids))


def test_page_and_markdown_give_the_verdict_first(made):
    text = (made / "report.md").read_text(encoding="utf-8")
    headline = re.search(r"\*\*(.*?)\*\*", text)[1]
    page = Page(made / "report.html").texts
    assert headline in [t.strip() for t in page]
    assert text.index("Caveats") < text.index("## The change, by adapter")
    assert "It does not show:" in "".join(page)


def test_markdown_tables_have_as_many_cells_as_headings(made):
    lines = (made / "report.md").read_text(encoding="utf-8").splitlines()
    width = None
    for line in lines:
        if not line.startswith("|"):
            width = None
            continue
        cells = len(re.findall(r"(?<!\\)\|", line))
        assert width in (None, cells), line
        width = cells


@pytest.mark.parametrize("name", sorted(TABLES))
def test_latex_tables_have_as_many_cells_as_columns(made, name):
    text = (made / "tables" / f"{name}.tex").read_text(encoding="utf-8")
    columns = re.search(r"tabular}{@{}([lr]+)@{}}", text)[1]
    body = [line for line in text.splitlines() if line.endswith(r"\\")]
    assert body
    assert {len(re.findall(r"(?<!\\)&", line)) for line in body} == {len(columns) - 1}


def test_nothing_is_loaded_but_files(few, tmp_path):
    code = (
        "import socket, sys; socket.socket = None\n"
        "from cqa_fast.main import main\n"
        f"main(['report', {str(few)!r}, '--out', {str(tmp_path / 'out')!r}], "
        "standalone_mode=False)\n"
        "assert not {'torch', 'transformers', 'peft'} & set(sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True,
        env={"PYTHONPATH": ":".join([f"{ROOT / 'cli'}", f"{ROOT}", *sys.path]), "PATH": "/usr/bin"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"{tmp_path / 'out' / 'report.html'}\n"


def test_what_was_not_given_is_said_to_be_absent(few, tmp_path):
    report_on(few, tmp_path / "out")
    text = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    assert "Log-probability of each token: n/a; score with --tokens" in text
    assert "Overlap of items and training texts is n/a" in text


def test_what_one_item_cannot_have_is_absent_and_not_zero(tmp_path):
    items = [item for item in make_items(1) if item["group"] == "literary"]
    folder = make_folder(tmp_path / "scores", items=items, adapters=[None, "epoch-01"])
    report_on(folder, tmp_path / "out")
    (row,) = rows_of(tmp_path / "out" / "tables" / "table_1.csv")
    for key in ("ci95_nats_low", "d_z", "d_z_ci95_high", "p_corrected"):
        assert row[key] == ABSENT
    assert float(row["mean_ddi_nats"]) != 0
    (row,) = rows_of(tmp_path / "out" / "figures" / "d_by_epoch.csv")
    assert (row["d_z"], row["low"]) == (ABSENT, ABSENT)


@pytest.mark.parametrize(
    ("adapters", "kinds", "headline"),
    [
        ([None], {"pair", "options", "continuation"}, "Only the base model was scored"),
        ([None], {"continuation"}, "Only the base model was scored"),
        ([None, "mine"], {"continuation"}, "No paired items were scored"),
        ([None, "a/very/long/name/of/an/adapter", "other"], {"options"}, "No change of"),
    ],
)
def test_reports_on_less_are_reports_too(tmp_path, adapters, kinds, headline):
    items = [item for item in make_items(3) if item["kind"] in kinds]
    folder = make_folder(tmp_path / "scores", items=items, adapters=adapters)
    report_on(folder, tmp_path / "out", cutoff="2024")
    assert headline in (tmp_path / "out" / "report.html").read_text(encoding="utf-8")


def test_trained_texts_among_the_items_are_named(few, tmp_path):
    item = read_lines(few / "items.jsonl")[0]
    data = write_lines(tmp_path / "train.jsonl", [{"prompt": item["context"], "response": " So."}])
    run = make_run(tmp_path / "run")
    facts = json.loads((run / "run.json").read_text())
    trained = {"settings": {"data": str(data)}, "data_digest": digest_bytes([data])}
    (run / "run.json").write_text(json.dumps(facts | trained))
    report = make_report(few, ReportConfig(out=tmp_path / "out", run=run))
    (warning,) = [text for text in report.caveats if "with training texts" in text]
    assert f"1 by a whole text, the rest by a 13-gram of words: {item['id']} (" in warning
    assert f"({data}:1)" in warning
