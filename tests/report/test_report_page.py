"""The page in a real browser: it sorts, opens, filters, and asks the network for nothing."""

from pathlib import Path

import pytest
from browser import Browser
from helpers import read_lines
from synthetic import make_folder, make_items

from cqa.report.config import ReportConfig
from cqa.report.write import write_report

ORDER = "[...document.querySelectorAll('#table-items > tbody')].map(b => b.rows[0].cells[{0}].{1})"


@pytest.fixture(scope="module")
def folder(reported) -> Path:
    return reported


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    found = Browser(tmp_path_factory.mktemp("profile"))
    yield found
    found.close()


@pytest.fixture
def page(browser, folder) -> Browser:
    browser.resize(1280, 900)
    browser.open(folder / "out" / "report.html")
    return browser


def column_of(page: Browser, heading: str) -> int:
    headings = page.evaluate(
        "[...document.querySelectorAll('#table-items thead th')].map(h => h.textContent.trim())"
    )
    return headings.index(heading)


def click_heading(page: Browser, column: int) -> None:
    page.evaluate(f"document.querySelectorAll('#table-items thead button')[{column}].click()")


def test_the_page_asks_for_itself_only_and_complains_of_nothing(page, folder):
    page.evaluate("document.querySelectorAll('button').forEach(b => b.click())")
    assert page.requests() == [(folder / "out" / "report.html").resolve().as_uri()]
    assert page.complaints() == []


def test_a_click_sorts_by_number_and_a_second_turns_the_order(page):
    column = column_of(page, "ddI, nats")
    values = ORDER.format(column, "dataset.v ?? null")
    before = page.evaluate(values)
    numbers = sorted(float(v) for v in before if v is not None)
    absent = [None] * before.count(None)
    assert absent
    click_heading(page, column)
    found = page.evaluate(values)
    assert [v and float(v) for v in found] == [*numbers[::-1], *absent]
    click_heading(page, column)
    assert [v and float(v) for v in page.evaluate(values)] == [*numbers, *absent]
    sort = "[...document.querySelectorAll('#table-items th')].map(h => h.ariaSort)"
    assert [s for s in page.evaluate(sort) if s] == ["ascending"]
    assert page.complaints() == []


def test_names_sort_as_a_person_counts(page):
    click_heading(page, 0)
    click_heading(page, 0)
    names = page.evaluate(ORDER.format(0, "textContent.trim()"))
    literary = [name for name in names if name.startswith("literary-")]
    assert literary == [f"literary-{k}" for k in range(6)]


def test_an_opened_item_shows_its_texts_token_by_token(page, folder):
    items = {i["id"]: i for i in read_lines(folder / "scores" / "items.jsonl")}
    name = page.evaluate(
        "(() => { const b = document.querySelectorAll('#table-items .open')[2]; b.click();"
        "return b.textContent; })()"
    )
    body = "document.querySelectorAll('#table-items > tbody')[2]"
    assert page.evaluate(f"{body}.querySelector('.texts').offsetHeight") > 0
    strips = page.evaluate(f"[...{body}.querySelectorAll('.strip .story')].map(p => p.textContent)")
    assert strips == [text for text in items[name]["options"] for _ in ("base", "adapter")]
    labels = page.evaluate(f"[...{body}.querySelectorAll('.strip span')].map(s => s.textContent)")
    assert labels == ["base", "adapter"] * 2
    rows = [r for r in read_lines(folder / "scores" / "scores.jsonl") if r["id"] == name]
    first = rows[0]["options"][0]["token_logp_given_context_nats"][0]
    title = page.evaluate(f"{body}.querySelector('.strip i').title")
    assert float(title.split()[0].replace("−", "-")) == pytest.approx(first, abs=0.0051)
    page.evaluate("document.querySelectorAll('#table-items .open')[2].click()")
    assert page.evaluate(f"{body}.querySelector('.texts').offsetHeight") == 0


def test_hostile_texts_stay_texts(page):
    page.evaluate("document.querySelectorAll('#table-items .open').forEach(b => b.click())")
    assert page.evaluate("document.querySelectorAll('script').length") == 2
    assert (
        page.evaluate("document.querySelectorAll('#table-items b, #table-items script').length")
        == 0
    )
    assert "</script><script>alert('x')</script>" in page.evaluate("document.body.innerText")


def test_items_are_filtered_by_group_and_text(page):
    visible = "[...document.querySelectorAll('#table-items > tbody')].filter(b => !b.hidden).length"
    everything = page.evaluate(visible)
    page.evaluate(
        "(() => { const g = document.getElementById('group'); g.value = 'factual';"
        "g.dispatchEvent(new Event('change')); })()"
    )
    assert page.evaluate(visible) == 12
    page.evaluate(
        "(() => { const f = document.getElementById('find'); f.value = 'FACTUAL-3';"
        "f.dispatchEvent(new Event('input')); })()"
    )
    assert page.evaluate(visible) == 1
    count = page.evaluate("document.getElementById('count').textContent")
    assert count == f"1 of {everything} items"


@pytest.fixture(scope="module")
def long_names(tmp_path_factory) -> Path:
    """A page whose groups and ids have long names, one of them without a space."""
    folder = tmp_path_factory.mktemp("long")
    names = {"literary": "stories of the nineteenth century, translated " * 2, "factual": "x" * 70}
    items = [
        {**item, "group": names.get(item["group"], "b"), "id": f"{item['id']}-{'an_id' * 30}"}
        for item in make_items(3)
    ]
    roles = {"primary": names["literary"], "control": names["factual"]}
    make_folder(folder / "scores", items=items, adapters=[None, "epoch-01", "epoch-02"], **roles)
    write_report(folder / "scores", ReportConfig(out=folder / "out", **roles))
    return folder / "out" / "report.html"


@pytest.mark.parametrize("width", [390, 1280])
def test_long_names_are_wrapped_and_cut_nothing_off(browser, long_names, width):
    browser.resize(width, 844)
    browser.open(long_names)
    assert browser.evaluate("document.documentElement.scrollWidth") <= width
    cut = (
        "[...document.querySelectorAll('.tiles *, .findings *, .caveats li, h1')]"
        ".filter(e => e.scrollWidth > e.clientWidth + 1 && getComputedStyle(e).display != 'inline')"
        ".map(e => e.textContent)"
    )
    assert browser.evaluate(cut) == []


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width", [390, 1280])
def test_nothing_is_wider_than_the_window(browser, folder, width, dark):
    browser.resize(width, 844, dark=dark)
    browser.open(folder / "out" / "report.html")
    browser.evaluate("document.querySelectorAll('#table-items .open').forEach(b => b.click())")
    assert browser.evaluate("document.documentElement.scrollWidth") <= width
    shown = "[...document.querySelectorAll('figure > div')].filter(d => d.offsetHeight).length"
    assert browser.evaluate(shown) == browser.evaluate("document.querySelectorAll('figure').length")
    colours = browser.evaluate(
        "['backgroundColor', 'color'].map(k => getComputedStyle(document.documentElement)[k])"
    )
    assert colours == (
        ["rgb(20, 24, 31)", "rgb(230, 233, 238)"]
        if dark
        else ["rgb(255, 255, 255)", "rgb(28, 36, 48)"]
    )
