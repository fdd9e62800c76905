"""Each medium shows hostile text as the text it is: read back by the medium's own parser."""

import csv
import io
import re
import unicodedata
from html.parser import HTMLParser
from xml.etree import ElementTree

import pytest
from hostile import STRINGS
from jinja2 import Environment
from markdown_it import MarkdownIt
from matplotlib.figure import Figure

from cqa.escape import (
    for_csv,
    for_html,
    for_latex,
    for_markdown,
    for_svg,
    for_terminal,
    from_csv,
    visible,
)
from cqa.report.figure_style import inline_svg, styled, svg_text
from cqa.report.tables import csv_text

HOSTILE = pytest.mark.parametrize("text", STRINGS, ids=lambda t: ascii(t)[:40])
LINE = str.maketrans("", "", "\u200c\u200d")


def one_line(text: str) -> str:
    """What of a text fits a line: white space is one space, what cannot be seen is a sign."""
    return visible(" ".join(text.split()))


@HOSTILE
def test_terminal_gets_nothing_that_steers_it(text):
    shown = for_terminal(text)
    hidden = {"Cc", "Cf", "Cs", "Zl", "Zp"}
    assert not hidden & {unicodedata.category(c) for c in shown.translate(LINE)}
    assert len(shown.splitlines()) <= 1
    assert for_terminal(shown) == shown
    assert shown == text or not text.translate(LINE).isprintable() or "\u200d" in text


@HOSTILE
def test_csv_cell_is_no_formula_and_is_read_back_as_it_was(text):
    ((cell, number),) = csv.reader(io.StringIO(csv_text([], [[for_csv(text), "-0.5"]])[1:]))
    assert from_csv(cell) == text
    assert number == "-0.5"
    assert cell in (text, f"'{text}")
    formula = len(cell) > 1 and cell[0] in "=+-@\t\r\n＝＋－＠"
    assert not formula or re.fullmatch(r"[+-][\d.]+", cell)
    assert cell != "n/a"  # which is what is absent


@pytest.mark.parametrize("number", ["-0.5", "+1", "-1e-05", "-12", "1e300", "-.5", "-3."])
def test_number_stays_a_number_in_csv(number):
    assert for_csv(number) == number


@pytest.mark.parametrize("text", ["-1-1", "-0.5x", "+1+1", "-1,5", "-１", "--1", "-1\n"])
def test_what_only_begins_as_a_number_does_is_none(text):
    assert for_csv(text) == f"'{text}"


@HOSTILE
def test_svg_is_well_formed_and_holds_the_text(text):
    figure = Figure(figsize=(3, 1))
    with styled():
        figure.text(0, 0.5, f"|{for_svg(text[:99])}|")
    drawn = svg_text(figure, "title")
    texts = [element.text for element in ElementTree.fromstring(drawn).iter() if element.text]
    assert f"|{one_line(text[:99])}|" in texts
    page = Html(inline_svg(drawn, "x", text))
    assert {tag for tag, _ in page.elements} <= {"svg", "title", "defs", "g", "path", "text"}
    assert dict(page.elements[0][1])["aria-label"] == visible(text)


class Html(HTMLParser):
    """Elements and texts, as a browser takes line ends."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, list]] = []
        self.text = ""
        self.feed(re.sub("\r\n?", "\n", text))
        self.close()

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, attrs))

    def handle_data(self, data):
        self.text += data

    def handle_comment(self, data):
        raise AssertionError(data)


@HOSTILE
def test_html_holds_the_text_sign_by_sign_and_nothing_else(text):
    template = Environment(autoescape=True, finalize=for_html).from_string(
        "<p title='{{ text }}'>{{ text }}</p>"
    )
    page = Html(template.render(text=text).encode().decode())
    assert page.elements == [("p", [("title", visible(text))])]
    assert page.text == visible(text)
    assert len(page.text) == len(text)


@HOSTILE
def test_markdown_takes_the_text_for_no_markup(text):
    markdown = MarkdownIt("commonmark").enable(["table", "strikethrough"])
    line = for_markdown(text)
    table = Html(markdown.render(f"| a | b |\n|---|---|\n| {line} | x |\n"))
    assert [tag for tag, _ in table.elements if tag in ("td", "th")] == ["th", "th", "td", "td"]
    assert {tag for tag, _ in table.elements} == {"table", "thead", "tbody", "tr", "th", "td"}
    assert table.text.split("\n\n")[-1].strip() == "" or one_line(text) in table.text
    listed = Html(markdown.render(f"* {line}x\n"))
    assert [tag for tag, _ in listed.elements] == ["ul", "li"]
    assert listed.text.strip() == one_line(f"{one_line(text)}x")


LATEX = re.compile(
    r"\\textbackslash\{\}|\\textasciitilde\{\}|\\textasciicircum\{\}|\\[&%$#_{}]|\{[\[*`]\}|~"
    r"|\$(?:<|>|\||[−+-]|\\[a-z]+|_\+)\$|[^\\&%$#_{}~^\[*`\n]|(?<!^)[\[*]"
)


@HOSTILE
def test_latex_holds_nothing_but_text_and_the_commands_of_its_signs(text):
    line = for_latex(text)
    assert LATEX.sub("", line) == ""
    assert not re.match(r" *[\[*]", line)
    plain = line.replace(r"\textbackslash{}", "\\").replace(r"\textasciitilde{}", "\0")
    plain = plain.replace(r"\textasciicircum{}", "^").replace("{`}", "`")
    plain = re.sub(r"^( *)\{([\[*])\}", r"\1\2", plain)
    plain = re.sub(r"\$([<>|])\$", r"\1", plain)
    plain = re.sub(r"\\([&%$#_{}])", r"\1", plain).replace("\0", "~").replace("''", '"')
    shown = for_terminal(text.translate(str.maketrans("\n\r\t", "   "))).replace("''", '"')
    assert plain == shown


def test_latex_of_what_tables_hold():
    assert for_latex("−1 ≥ ∅ Δ 5 % –") == r"$-$1 $\geq$ $\emptyset$ $\Delta$ 5 \% --"
