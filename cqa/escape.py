"""Text that anyone may have written, for each medium that shows it: one function a medium.

What a medium cannot hold is shown as a sign of its own, never dropped: where a text is text alone,
`from` the medium it reads as it was.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable

from markupsafe import Markup, escape

_HIDDEN = {"Cc", "Cf", "Cs", "Zl", "Zp"}  # categories that steer a terminal or cannot be seen
_JOINERS = "\u200c\u200d"  # part of Persian and Indic words, and of emoji


def _as_escape(character: str) -> str:
    return character.encode("unicode_escape").decode("ascii")


def for_terminal(text: str, *, keep: str = "", escape: Callable[[str], str] = _as_escape) -> str:
    """Return text with every character that steers a terminal written as an escape.

    Args:
        text: May hold what stood in a file: ids, groups, paths.
        keep: Control characters that stay, such as the line ends of a table.
        escape: Writes one character.
    """
    if text.isascii() and text.isprintable():
        return text
    kept = keep + _JOINERS
    return "".join(
        c if c in kept or unicodedata.category(c) not in _HIDDEN else escape(c) for c in text
    )


# A spreadsheet computes a cell that begins so; full-width signs count where they are typed. What is
# marked already, and the mark of what is absent, is marked once more, so that nothing is ambiguous.
_FORMULA = re.compile(r"'*(?:[=+\-@\t\r\n＝＋－＠].|n/a\Z)", re.DOTALL)
_NUMBER = re.compile(r"[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?\Z", re.ASCII)


def for_csv(text: str) -> str:
    """Return a cell that a spreadsheet shows as it is: what looks like a formula gets a `'`.

    A number stays one, so that `-0.5` is not text. Quotes, commas and line ends are the writer's.
    """
    if _FORMULA.match(text) and not _NUMBER.match(text):
        return f"'{text}"
    return text


def from_csv(cell: str) -> str:
    """Return the text that `for_csv` made a cell of."""
    return cell[1:] if cell.startswith("'") and _FORMULA.match(cell) else cell


def visible(text: str) -> str:
    """Return text whose control characters can be seen, each as one sign in its place.

    Tab and line ends stay; what XML and HTML cannot hold at all, half a surrogate pair among them,
    is U+FFFD.
    """
    return text if text.isprintable() else _UNSEEN.sub(_picture, text)


_UNSEEN = re.compile(
    r"[^\t\n\r\x20-\x7e\xa0-\ud7ff\ue000-\ufdcf\ufdf0-\ufffd\U00010000-\U0010fffd]"
)


def _picture(found: re.Match[str]) -> str:
    code = ord(found[0])
    if code < 0x20:
        return chr(0x2400 + code)
    return "\u2421" if code == 0x7F else "\ufffd"


def for_svg(text: str) -> str:
    """Return a line of text for a figure, whose writer escapes the signs of XML itself."""
    return visible(" ".join(text.split()))


def for_html(value: object) -> Markup:
    """Return a text as HTML that has as many characters as the text; markup stays as it is."""
    if isinstance(value, Markup):
        return value
    # A browser takes a bare return for a line end, and one with a line end for nothing.
    return Markup(escape(visible(str(value))).replace("\r", Markup("&#13;")))


_MARKDOWN = re.compile(
    r"[\\`*_<>\[\]|$#~]"  # at any place
    r"|^[+=-]|(?<=^\d)[.)]|(?<=^\d\d)[.)]"  # a list, a line under a heading
    r"|:(?=//|[\w+-]+:)|@(?=\w)|(?<=www)\."  # what GitHub makes links and pictures of
)


def for_markdown(text: str) -> str:
    """Return a line of text that Markdown takes for no markup, in a table or outside."""
    line = visible(" ".join(text.split()))
    return _MARKDOWN.sub(r"\\\g<0>", line.replace("&", "&amp;"))


_LATEX = {
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_",
    "{": r"\{", "}": r"\}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}",
    "−": "$-$", "<": "$<$", ">": "$>$", "∅": r"$\emptyset$", "Δ": r"$\Delta$", "±": r"$\pm$",
    "≥": r"$\geq$", "→": r"$\to$", "|": "$|$", "·": r"$\cdot$", "×": r"$\times$",
    "₊": "$_+$", "–": "--", "\"": "''", "`": "{`}", "\N{NO-BREAK SPACE}": "~",
}  # fmt: skip
_ARGUMENT = re.compile(r"^( *)([\[*])")  # of the \\ that ends the line before


def for_latex(text: str) -> str:
    """Return a line of text for LaTeX; what cannot be seen is written as an escape."""
    line = "".join(_LATEX.get(c, c) for c in for_terminal(text.translate(_SPACES)))
    return _ARGUMENT.sub(r"\1{\2}", line)


_SPACES = str.maketrans(dict.fromkeys("\n\r\t", " "))
