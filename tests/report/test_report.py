"""The report's files: complete, repeatable, from files alone, everything escaped."""

import csv
import io
import json
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from helpers import ROOT, read_lines, write_lines
from synthetic import HOSTILE, make_folder, make_items, make_rows, make_run

from cqa.errors import ConfigError, DataError, ResourceError
from cqa.identity import digest_bytes
from cqa.output_folder import filled
from cqa.report.config import ReportConfig
from cqa.report.figures import FIGURES
from cqa.report.item_table import scored_items
from cqa.report.page import markdown_page
from cqa.report.part_tables import domains
from cqa.report.tables import (
    ABSENT,
    Column,
    Placed,
    show,
    tabulate,
    to_csv,
    to_latex,
    to_markdown,
)
from cqa.report.write import make_report, read_focus, write_report
from cqa.score_folder import read_rows, with_checksum
from cqa.stats.clusters import by_source
from cqa.stats.config import AnalysisConfig
from cqa.stats.deciding import family_test
from cqa.stats.summary import Scores, summarise

TABLES = {
    "table_1", "other_tests", "interaction", "equivalence", "parts", "entropy", "readings",
    "shrinkage", "choice", "accuracy", "domains", "table_2", "strata", "strata_continuations",
    "groups", "items",
    "specifications",
}  # fmt: skip


def report_on(folder: Path, out: Path, **settings) -> list[Path]:
    return write_report(folder, ReportConfig(out=out, **settings)).files


@pytest.fixture(scope="module")
def scored(reported) -> Path:
    return reported / "scores"


@pytest.fixture(scope="module")
def made(reported) -> Path:
    return reported / "out"


@pytest.fixture(scope="module")
def few(tmp_path_factory) -> Path:
    """Continuations under the base alone: no figure, so a report on them is quick."""
    items = [item for item in make_items(2) if item["kind"] == "continuation"]
    return make_folder(tmp_path_factory.mktemp("few"), items=items, adapters=[None], tokens=False)


@pytest.fixture(scope="module")
def summary(scored) -> dict:
    scores = Scores(read_rows(scored / "scores.jsonl"))
    return summarise(scores, AnalysisConfig(cutoff="2024-06")).to_json()


def rows_of(path: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(path.read_text(encoding="utf-8"))))


class Page(HTMLParser):
    """The elements, attributes and texts of a page."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict]] = []
        self.texts: list[str] = []
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.texts.append(data)


def test_every_table_and_figure_is_there_in_every_form(made):
    names = {str(p.relative_to(made)) for p in made.rglob("[!.]*") if p.is_file()}
    assert names == (
        {"report.html", "report.md", "tables/scores_long.csv"}
        | {f"tables/{t}.{kind}" for t in TABLES for kind in ("csv", "tex")}
        | {f"figures/{f}.{kind}" for f in FIGURES for kind in ("csv", "svg", "png")}
    )


def test_table_1_holds_the_summarys_numbers_to_the_last_digit(made, summary):
    rows = rows_of(made / "tables" / "table_1.csv")
    assert len(rows) == sum(len(models) for models in summary["groups"].values())
    for row in rows:
        entry = summary["groups"][row["group"]][row["adapter"]]
        assert float(row["mean_ddi_nats"]) == entry["mean_ddi_nats"]
        assert [float(row["ci95_nats_low"]), float(row["ci95_nats_high"])] == entry["ci95_nats"]
        assert float(row["p"]) == entry["wilcoxon"]["p"]
        corrected = summary["families"][row["group"]]["changes"][row["adapter"]]["p_corrected"]
        assert float(row["p_corrected"]) == corrected


def test_table_2_has_every_domain_and_the_groups_combined(made, summary):
    rows = rows_of(made / "tables" / "table_2.csv")
    parts = {(r["group"], r["domain"], r["n"]) for r in rows if r["adapter"] == "epoch-05"}
    assert parts == {
        ("literary", "novel", "6"), ("factual", "news", "3"), ("factual", "popular science", "3"),
        ("factual", "all", "6"),
    }  # fmt: skip
    for row in rows:
        if row["domain"] == "all":
            entry = summary["continuations"][row["group"]][row["adapter"]]
            for unit in ("token_nats", "token_bits", "byte_bits"):
                key = f"mean_dlogp_per_{unit}"
                assert float(row[key]) == entry[key]


def test_domains_of_pairs_have_the_summarys_numbers_and_the_group_beside_them(made, summary):
    rows = rows_of(made / "tables" / "domains.csv")
    assert [(r["group"], r["domain"], r["n"]) for r in rows if r["adapter"] == "epoch-05"] == [
        ("literary", "city", "2"), ("literary", "moor", "1"),
        ("literary", "sea & <i>shore</i>", "2"), ("literary", "all", "6"),
    ]  # fmt: skip
    assert {r["adapter"] for r in rows} == set(summary["groups"]["literary"])
    for row in rows:
        entry = summary["groups"]["literary"][row["adapter"]]
        part = entry if row["domain"] == "all" else entry["domains"][row["domain"]]
        for key in ("mean_delta_i_base_nats", "mean_ddi_nats"):
            assert float(row[key]) == part[key]
        assert float(row["p"]) == part["wilcoxon"]["p"]
        low, high = part["ci95_nats"] or (ABSENT, ABSENT)
        assert (row["ci95_nats_low"], row["ci95_nats_high"]) == (str(low), str(high))


def test_parts_are_tested_as_groups_are(scored, tmp_path):
    focus = read_focus(scored, ReportConfig(out=tmp_path))
    table = {tuple(line.cells[:3]): line.cells for line in domains(focus).lines}
    scores, name = focus.source.scores, focus.highlighted
    models = scores.items["literary"]
    of_item = scores.facts.labels("domain", models[None].rows)
    kept = np.array([domain == "city" for domain in of_item])
    sources = [
        s
        for s, k in zip(scores.facts.labels("source_id", models[None].rows), kept, strict=True)
        if k
    ]
    moved = {
        a: (m.column("delta_i_nats") - models[None].column("delta_i_nats"))[kept]
        for a, m in models.items()
        if a is not None
    }
    right = family_test(by_source(moved, sources)).changes[name]
    assert table["literary", "city", name][6] == right.ci95
    assert table["literary", "city", name][7] == right.p_greater_corrected
    whole = focus.family.changes[name]
    assert table["literary", "all", name][6:8] == (whole.ci95_nats, whole.p_corrected)


def test_languages_of_a_group_are_parts_of_it(tmp_path):
    items = [i for i in make_items(6) if i["group"] == "literary" and i["kind"] == "pair"]
    for k, item in enumerate(items):
        item["lang"] = ["zh", "en"][k % 2]
    scored = make_folder(tmp_path / "scores", items=items, adapters=[None, "epoch-05"])
    report = make_report(scored, ReportConfig(out=tmp_path))
    lines = [line.cells[:4] for line in report.by_name["languages"].lines]
    assert lines == [
        ("literary", "en", "epoch-05", 3), ("literary", "zh", "epoch-05", 3),
        ("literary", "all", "epoch-05", 6),
    ]  # fmt: skip
    assert "By language" in markdown_page(report)


def test_page_and_markdown_hold_the_shown_adapters_domains_and_what_they_are_not(made, summary):
    text = (made / "report.md").read_text(encoding="utf-8")
    section = text[text.index("## By domain") : text.index("## Before and after the cutoff")]
    lines = [line for line in section.splitlines() if line.startswith("| literary")]
    cells = [line.strip("| ").split(" | ") for line in lines]
    assert [row[1] for row in cells] == ["city", "moor", r"sea &amp; \<i\>shore\</i\>", "all"]
    assert {row[2] for row in cells} == {summary["selection"]["literary"]["chosen"]}
    assert [row[6] == ABSENT for row in cells] == [False, True, False, False]
    said = "p, Holm: corrected also for the domains of the group"
    page = "".join(Page(made / "report.html").texts)
    assert all(said in t for t in (section, page, (made / "tables/domains.tex").read_text()))


def test_a_normal_approximation_is_named_with_its_domain(scored, tmp_path):
    focus = read_focus(scored, ReportConfig(out=tmp_path))
    assert "Normal approximation" not in domains(focus).note
    part = focus.summary.groups["literary"][focus.highlighted].domains
    rough = replace(part["moor"].wilcoxon, method="normal approximation")
    part["moor"] = replace(part["moor"], wilcoxon=rough)
    assert domains(focus).note.endswith(". Normal approximation of p: literary, moor")


def test_without_two_domains_in_a_group_there_is_no_section(tmp_path):
    items = [item for item in make_items(3) if item["group"] == "factual"]
    report = make_report(make_folder(tmp_path / "scores", items=items), ReportConfig(out=tmp_path))
    assert "domains" not in report.by_name
    assert "By domain" not in markdown_page(report)


def test_items_are_told_apart_by_stratum_and_add_up_to_the_mean(made, summary):
    rows = rows_of(made / "tables" / "items.csv")
    literary = [r for r in rows if r["group"] == "literary" and r["kind"] == "pair"]
    mean = sum(float(r["ddi_nats"]) for r in literary) / len(literary)
    shown = summary["selection"]["literary"]["chosen"]
    assert mean == pytest.approx(summary["groups"]["literary"][shown]["mean_ddi_nats"])
    for row in literary:
        parts = float(row["d_cond_nats"]) - float(row["d_prior_nats"])
        assert float(row["ddi_nats"]) == pytest.approx(parts, abs=1e-9)
    assert {r["stratum"] for r in rows} == {"before", "after", "unknown"}
    assert all(r["ddi_nats"] == ABSENT for r in rows if r["kind"] == "continuation")


@pytest.mark.parametrize("name", FIGURES)
def test_every_figure_is_redrawn_from_its_csv_alone(made, name):
    file = made / "figures" / name
    drawing = FIGURES[name].redraw(file.with_suffix(".csv").read_text(encoding="utf-8"))
    assert drawing.svg == file.with_suffix(".svg").read_text(encoding="utf-8")
    assert drawing.png == file.with_suffix(".png").read_bytes()


def test_a_figure_shows_what_its_csv_says(made):
    text = (made / "figures" / "d_by_epoch.csv").read_text(encoding="utf-8")
    (first, *_) = rows_of(made / "figures" / "d_by_epoch.csv")
    moved = FIGURES["d_by_epoch"].redraw(text.replace(first["d_z"], "0.987"))
    assert moved.svg != (made / "figures" / "d_by_epoch.svg").read_text(encoding="utf-8")


def test_figure_1_has_a_line_per_group_and_an_interval_per_epoch(made, summary):
    rows = rows_of(made / "figures" / "d_by_epoch.csv")
    assert {r["epoch"] for r in rows} == {"2", "4", "5"}
    for row in rows:
        entry = summary["groups"][row["group"]][row["adapter"]]
        assert float(row["d_z"]) == entry["d_z"]
        assert [float(row["low"]), float(row["high"])] == entry["d_z_ci95"]
    assert {r["adapter"] for r in rows if r["shown"] == "True"} == {
        summary["selection"]["literary"]["chosen"]
    }


def test_overfitting_view_joins_the_log_of_training_with_the_scores(made):
    rows = rows_of(made / "figures" / "overfitting.csv")
    losses = {r["epoch"]: float(r["value"]) for r in rows if r["quantity"] == "eval_loss"}
    assert losses == {str(k): pytest.approx(2.7 + 0.3 * k) for k in range(1, 7)}
    assert {r["quantity"] for r in rows} == {
        "train_loss", "eval_loss", "mean_ddi", "sd_ddi", "d_z"
    }  # fmt: skip


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
            r"run\.json: settings: expected `data` to be text, got: 3",
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


ODD = "a_b & 50 % | <x> \\ $y$ {z} ~^ #"
TABLE = tabulate(
    "t",
    "Title & more",
    (
        Column("name", "na|me", lambda r: r.group, "text"),
        Column("ci", "CI, nats", lambda r: r.result[0], "interval"),
        Column("p", "p", lambda r: r.result[1], "p"),
    ),
    [Placed(((-1.0, 0.004), 0.00001), ODD), Placed((None, None), "-")],
)


def test_table_in_latex_is_escaped():
    assert r"{[}$-$1.00,~0.00] & $<$ 0.001 \\" in to_latex(TABLE)
    assert r"- & n/a & n/a \\" in to_latex(TABLE)


def test_table_in_markdown_is_escaped():
    head, _, first, second = to_markdown(TABLE).splitlines()
    assert head == r"| na\|me | CI, nats | p |"
    assert first.startswith(r"| a\_b &amp; 50 % \| \<x\> \\ \$y\$")
    assert second == r"| \- | n/a | n/a |"


def test_table_in_csv_is_raw():
    rows = list(csv.reader(io.StringIO(to_csv(TABLE))))
    assert rows == [
        ["name", "ci_low", "ci_high", "p"], [ODD, "-1.0", "0.004", "1e-05"],
        ["-", ABSENT, ABSENT, ABSENT],
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("value", "form", "text"),
    [
        (-0.001, "signed", "0.00"), (0.0, "signed", "0.00"), (-1.239, "signed", "−1.24"),
        (0.041, "p", "0.041"), (1.0, "p", "1.000"), (152.5, "w", "152.5"), (0.525, "share", "52 %"),
        (None, "share", "n/a"), (None, "interval", "n/a"), (1234, "count", "1,234"),
        (1000500.0, "w", "1000500"), (123456.5, "w", "123456.5"),
    ],
)  # fmt: skip
def test_values_are_shown_as_a_reader_expects(value, form, text):
    assert show(value, form) == text


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
