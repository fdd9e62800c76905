"""The page's budget at sizes that cross each of its limits: what is left out is said, and where."""

import csv
import re
from collections import Counter
from pathlib import Path

import pytest
from large import write_large_folder

from cqa.report.caveats import MOST_OF_A_KIND
from cqa.report.config import ReportConfig
from cqa.report.figures import MOST_GROUPS, MOST_POINTS, MOST_ROWS
from cqa.report.item_table import N_LINES, N_TEXTS
from cqa.report.page import TEXT_BYTES
from cqa.report.tables import MOST_LINES
from cqa.report.write import write_report

pytestmark = pytest.mark.slow
N_GROUPS, N_DOMAINS = MOST_GROUPS + 2, 31
N_ITEMS = N_LINES + 450
CONTEXT = "A sentence — of a story & “its” end. " * 300


def labels(number: int) -> dict:
    """Return labels by which every table and figure has too many lines, and long texts."""
    group = ("literary", *(f"group-{k:02d}" for k in range(1, N_GROUPS)))[number // 10 % N_GROUPS]
    domain = f"domain-{number % N_DOMAINS:02d}"
    return {"group": group, "domain": domain, "context": f"{number}: {CONTEXT}"}


@pytest.fixture(scope="module")
def out(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("large")
    write_large_folder(folder / "scores", n_items=N_ITEMS, n_models=2, tokens=True, change=labels)
    write_report(folder / "scores", ReportConfig(out=folder / "out"))
    return folder / "out"


@pytest.fixture(scope="module")
def page(out) -> str:
    return (out / "report.html").read_text(encoding="utf-8")


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def shown_in(page: str, table: str) -> str:
    """Return the HTML of a table."""
    return page.partition(f'id="table-{table}"')[2].partition("</table>")[0]


def test_the_page_is_small(page):
    assert len(page.encode()) < 10_000_000


def test_the_page_has_the_items_of_the_largest_change_and_the_file_has_all(out, page):
    items = rows_of(out / "tables" / "items.csv")
    assert len(items) == N_ITEMS
    shown = shown_in(page, "items")
    assert shown.count("<tbody") == N_LINES
    assert f"Here are {N_LINES:,} of {N_ITEMS:,} items, as many of each group" in page
    by_group = Counter(re.findall(r'<tbody data-group="([\w-]+)"', shown))
    assert set(by_group) == {row["group"] for row in items}
    in_page = set(re.findall(r"\b(item-\d+)<", shown))
    largest = {}  # of the pairs of each group
    for row in items:
        if row["kind"] == "pair":
            name, size = row["id"], abs(float(row["ddi_nats"]))
            largest[row["group"]] = max(largest.get(row["group"], (0.0, "")), (size, name))
    assert {name for _, name in largest.values()} <= in_page


def test_texts_are_held_while_there_is_room(page):
    shown = shown_in(page, "items")
    n_texts = shown.count('<tr class="texts">')
    assert 0 < n_texts < N_TEXTS  # the room is used up before
    texts = re.findall(r'<p class="story"[^>]*>(.*?)</p>', shown, re.DOTALL)
    n_bytes = sum(len(text.encode()) for text in texts)
    assert 0.8 * TEXT_BYTES < n_bytes < TEXT_BYTES
    assert f"Texts are shown for {n_texts:,} of them" in page


def test_a_table_ends_at_its_most_lines_and_says_so(out, page):
    rows = rows_of(out / "tables" / "domains.csv")
    assert len(rows) > MOST_LINES
    assert shown_in(page, "domains").count("<tbody") == MOST_LINES
    note = f"These are the first {MOST_LINES} of {len(rows):,} lines. All lines: tables/domains.csv"
    assert note in page
    markdown = (out / "report.md").read_text(encoding="utf-8")
    assert f"the first {MOST_LINES} of {len(rows):,} lines" in markdown
    latex = (out / "tables" / "domains.tex").read_text(encoding="utf-8")
    assert f"% the first {MOST_LINES} of {len(rows)} lines; domains.csv has all" in latex
    assert latex.count(r" \\") == MOST_LINES + 1


def test_figures_draw_a_few_groups_points_and_lines_and_say_so(out, page):
    groups = {row["group"] for row in rows_of(out / "figures" / "d_by_epoch.csv")}
    assert len(groups) == N_GROUPS
    assert f"the first {MOST_GROUPS} of {N_GROUPS} groups; figures/d_by_epoch.csv has all" in page
    rows = rows_of(out / "figures" / "continuations.csv")
    assert len(rows) > MOST_ROWS
    assert f"the first {MOST_ROWS} of " in page


def test_of_a_kind_of_caveat_the_first_dozen_stand(out):
    markdown = (out / "report.md").read_text(encoding="utf-8")
    assert "group-12: few items" not in markdown
    left_out = N_GROUPS - MOST_OF_A_KIND
    assert f"{left_out} more caveats of the last kind are left out here" in markdown


def test_a_figure_of_items_holds_points_evenly_over_their_ranks(tmp_path):
    scores = write_large_folder(tmp_path / "scores", n_items=1000, n_models=2)
    write_report(scores, ReportConfig(out=tmp_path / "out"))
    page = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    assert f"{MOST_POINTS} items of a group, evenly over their ranks" in page
    assert len(rows_of(tmp_path / "out" / "figures" / "items.csv")) == 900
    assert "are left out here" not in page
    assert "Here are" not in page


def test_a_small_report_leaves_nothing_out(reported):
    page = (reported / "out" / "report.html").read_text(encoding="utf-8")
    for said in ("Here are", "Texts are shown for", "These are the first", "Drawn are"):
        assert said not in page
