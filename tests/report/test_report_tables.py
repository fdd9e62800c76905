"""The report's tables: the summary's numbers, in every form."""

import csv
import io
from dataclasses import replace

import numpy as np
import pytest
from report.common import Page, report_on, rows_of
from synthetic import make_folder, make_items

from cqa.report.config import ReportConfig
from cqa.report.page import markdown_page
from cqa.report.part_tables import domains
from cqa.report.tables import ABSENT, Column, Placed, show, tabulate, to_csv, to_latex, to_markdown
from cqa.report.terminal import summary_text
from cqa.report.write import make_report, read_focus
from cqa.schema.summary import ScoreSummary
from cqa.stats.clusters import by_source
from cqa.stats.deciding import family_test


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


def test_languages_of_continuations_are_parts_of_them(tmp_path):
    items = [i for i in make_items(12) if i["kind"] == "continuation"]
    for k, item in enumerate(items):
        item |= {"lang": ["zh", "en"][k // 2 % 2], "source_id": f"book-{k}"}
    scored = make_folder(tmp_path / "scores", items=items, adapters=[None, "epoch-05"])
    report = make_report(scored, ReportConfig(out=tmp_path))
    table = report.by_name["languages_continuations"]
    lines = {(line.cells[0], line.cells[1]): line.cells for line in table.lines}
    assert len(lines) == 4
    base, adapted = map(
        report.focus.source.scores.texts["literary"].__getitem__, (None, "epoch-05")
    )
    ids = [i for i, score in base.items() if score.lang == "zh"]
    moved = [(adapted[i].logp_nats - base[i].logp_nats) / base[i].n_tokens for i in ids]
    alone = family_test(by_source({"epoch-05": moved}, ids)).changes["epoch-05"]
    cells = lines["zh", "literary"]
    assert cells[3] == len(ids) == 6
    assert cells[4] == pytest.approx(np.mean(moved))
    assert cells[6] == alone.p_greater_corrected
    assert cells[7] >= cells[6]
    summary = report.focus.summary.continuations["literary"]["epoch-05"]
    assert set(summary.languages) == {"en", "zh"}
    assert "Continuations by language" in markdown_page(report)


def test_a_part_that_is_called_all_is_not_the_whole_group(tmp_path):
    names = ["all", "'all", "n/a"]
    items = [i for i in make_items(18) if i["group"] == "literary"]
    for kind in ("pair", "continuation"):
        for k, item in enumerate(i for i in items if i["kind"] == kind):
            name = names[k % 3]
            item |= {"domain": name, "lang": name, "source_id": f"book-{k}"}
    scored = make_folder(tmp_path / "scores", items=items, adapters=[None, "epoch-05"])
    (tmp_path / "out").mkdir()
    report_on(scored, tmp_path / "out")
    focus = make_report(scored, ReportConfig(out=tmp_path / "other")).focus
    found = focus.summary
    pairs = found.groups["literary"]["epoch-05"].to_json()
    texts = found.continuations["literary"]["epoch-05"].to_json()
    tables = tmp_path / "out" / "tables"
    for file, column, whole, of, key in (
        ("domains", "domain", pairs, "domains", "mean_ddi_nats"),
        ("languages", "lang", pairs, "languages", "mean_ddi_nats"),
        ("table_2", "domain", texts, "domains", "mean_dlogp_per_token_nats"),
    ):
        lines = rows_of(tables / f"{file}.csv")
        rows = {row[column]: row for row in lines}
        parts = {"all": whole} | {name: whole[of][name.removeprefix("'")] for name in rows
                                  if name != "all"}  # fmt: skip
        assert set(rows) == {"all", "'all", "''all", "'n/a"}  # the whole, and the three
        assert len(lines) == 4
        for name, part in parts.items():
            assert rows[name]["n"] == str(part["n"]) == ("18" if name == "all" else "6")
            assert float(rows[name][key]) == part[key]
            assert (rows[name]["p_holm"] == ABSENT) is (name == "all")
        assert len({row["p_corrected"] for row in lines}) == 4
    at_terminal = summary_text(ScoreSummary(found, "d", "i", {}, {}, {}, ())).splitlines()
    cells = [line.split() for line in at_terminal if line.startswith("epoch-05")][1:]
    assert [row[1:3] for row in cells] == [
        ["all", "18"],
        ["''all", "6"],
        ["'all", "6"],
        ["n/a", "6"],
    ]
    languages = rows_of(tables / "languages_continuations.csv")
    assert [row["lang"] for row in languages] == ["''all", "'all", "'n/a"]


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
