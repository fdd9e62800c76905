"""Nothing on the page contradicts the verdict: its numbers stand wherever they come again."""

import pytest

from cqa.report.config import ReportConfig
from cqa.report.figure_data import figure_rows
from cqa.report.page import Report, markdown_page
from cqa.report.tables import show
from cqa.report.write import make_report


@pytest.fixture(scope="module")
def report(reported, tmp_path_factory) -> Report:
    return make_report(
        reported / "scores", ReportConfig(out=tmp_path_factory.mktemp("out"), cutoff="2024-06")
    )


def line_of(report: Report, table: str, *first: str | None) -> dict:
    """Return the line of a table that begins with these cells, by its columns' keys."""
    held = report.by_name[table]
    (line,) = [line for line in held.lines if line.cells[: len(first)] == first]
    return dict(zip([c.key for c in held.columns], line.cells, strict=True))


def test_every_finding_is_an_answer_with_its_numbers(report):
    verdict = report.focus.summary.verdict
    assert [answer.mark for answer in report.verdict.answers] == [f.mark for f in verdict.findings]
    for answer, finding in zip(report.verdict.answers, verdict.findings, strict=True):
        fine = finding.unit == "nats/token"
        assert show(finding.estimate, "fine" if fine else "signed") in answer.text
        if finding.ci95 is not None:
            assert show(finding.ci95, "fine_interval" if fine else "interval") in answer.text
        if finding.p is not None:
            assert show(finding.p, "p") in answer.text
        assert f"{finding.n_items:,} items of {finding.n_sources:,} sources" in answer.text
        assert finding.reason in answer.text
        assert ("sources in the group with fewer" in answer.text) == (finding.name == "selective")
    assert report.verdict.headline == verdict.headline
    assert verdict.headline in markdown_page(report)


def test_tables_and_tiles_have_the_numbers_of_the_findings(report):
    verdict, focus = report.focus.summary.verdict, report.focus
    change, selective = verdict.finding("change"), verdict.finding("selective")
    row = line_of(report, "table_1", focus.primary, change.adapter)
    assert (row["mean_ddi_nats"], row["ci95_simultaneous_nats"], row["p_corrected"]) == (
        pytest.approx(change.estimate), change.ci95, change.p,
    )  # fmt: skip
    row = line_of(report, "interaction", selective.adapter)
    assert row["difference_nats"] == pytest.approx(selective.estimate)
    assert row["ci95_nats"] == selective.ci95
    assert max(row["p_corrected"], row["p_corrected_per_token"]) == selective.p
    values = {tile.name: tile.value for tile in report.verdict.tiles}
    assert values["p, one-sided"] == show(change.p, "p")
    assert values[f"ddI, {focus.primary}"].startswith(show(change.estimate, "signed"))


def test_continuations_are_the_same_in_finding_table_and_figure(report):
    verdict = report.focus.summary.verdict
    found = [finding for finding in verdict.findings if finding.name == "continuations"]
    points = figure_rows(report.focus)["continuations"]
    assert found
    for finding in found:
        (point,) = [p for p in points if (p.group, p.domain) == (finding.group, None)]
        assert (point.low, point.high) == pytest.approx(finding.ci95)
        lines = [
            dict(zip([c.key for c in report.by_name["table_2"].columns], line.cells, strict=True))
            for line in report.by_name["table_2"].lines
            if line.adapter == finding.adapter and line.cells[0] == finding.group
        ]
        whole = [x for x in lines if x["domain"] == "all"] or lines  # one domain is the group
        (line,) = whole
        assert line["ci95_simultaneous_nats"] == pytest.approx(finding.ci95)
        assert line["p_corrected"] == finding.p


def test_the_control_is_within_in_the_table_only_where_it_may_be_shown_to_be_small(report):
    finding = report.focus.summary.verdict.finding("control_small")
    row = line_of(report, "equivalence", finding.group, finding.adapter)
    assert finding.mark != "shown" or row["within"] == "yes"
    assert show(row["ci90"], "interval") in finding.reason or finding.n_sources < 10
