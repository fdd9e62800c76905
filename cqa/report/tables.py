"""A table once, written four ways: HTML cells, Markdown, CSV at full precision, LaTeX.

What is absent is `n/a` in all four, never 0.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from cqa.text import signed

Row = dict[str, Any]
Form = Literal[
    "text", "count", "signed", "number", "fine", "fine_number", "p", "share", "w",
    "interval", "fine_interval", "shares",
]  # fmt: skip
ABSENT = "n/a"
INTERVALS = ("interval", "fine_interval", "shares")


@dataclass(frozen=True, slots=True)
class Column:
    """A column: the key of its raw values, its heading with the unit, and how it is shown."""

    key: str
    heading: str
    form: Form = "signed"


@dataclass(frozen=True, slots=True)
class Table:
    """Rows of raw values under columns; `shown` marks those that the page and Markdown hold."""

    name: str
    title: str
    columns: tuple[Column, ...]
    rows: list[Row]
    note: str = ""
    shown: Callable[[Row], bool] = lambda _: True

    @property
    def shown_rows(self) -> list[Row]:
        """The rows that the page holds; the files hold all."""
        return [row for row in self.rows if self.shown(row)]

    @property
    def n_left_out(self) -> int:
        """How many rows only the files hold."""
        return len(self.rows) - len(self.shown_rows)


def show(value: Any, form: Form) -> str:
    """Return a value as a reader sees it, with a true minus sign."""
    if value is None:
        return ABSENT
    if form == "shares":
        return f"{100 * value[0]:.0f} – {100 * value[1]:.0f} %".replace(" ", "\N{NO-BREAK SPACE}")
    if form in INTERVALS:
        digits = 3 if form == "fine_interval" else 2
        if value[0] is None or value[1] is None:
            return ABSENT
        return f"[{_signed(value[0], digits)},\N{NO-BREAK SPACE}{_signed(value[1], digits)}]"
    shown: dict[str, Callable[[Any], str]] = {
        "text": str,
        "count": lambda v: f"{v:,}",
        "signed": lambda v: _signed(v, 2),
        "number": lambda v: f"{v:.2f}".replace("-", "−"),
        "fine": lambda v: _signed(v, 3),
        "fine_number": lambda v: f"{v:.3f}".replace("-", "−"),
        "p": lambda v: "< 0.001" if v < 0.001 else f"{v:.3f}",
        "share": lambda v: f"{100 * v:.0f} %",
        "w": lambda v: f"{v:g}",
    }
    return shown[form](value)


def _signed(value: float, digits: int) -> str:
    return signed(value, digits).replace("-", "−")


def to_csv(table: Table) -> str:
    """Return a table as CSV: raw values, an interval as two columns."""
    head: list[str] = []
    for column in table.columns:
        ends = ("_low", "_high") if column.form in INTERVALS else ("",)
        head += [column.key + end for end in ends]
    lines = []
    for row in table.rows:
        cells: list[str] = []
        for column in table.columns:
            value = row.get(column.key)
            if column.form in INTERVALS:
                cells += [plain(bound) for bound in value or (None, None)]
            else:
                cells.append(plain(value))
        lines.append(cells)
    return csv_text(head, lines)


def csv_text(head: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """Return rows of text as CSV, lines ending in a newline alone."""
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(head)
    writer.writerows(lines)
    return file.getvalue()


def plain(value: Any) -> str:
    """Return a raw value for a CSV cell: floats to the last digit."""
    if value is None:
        return ABSENT
    return repr(float(value)) if isinstance(value, float) else str(value)


def to_markdown(table: Table) -> str:
    """Return the shown rows as a Markdown table."""
    lines = [
        [_markdown_cell(column.heading) for column in table.columns],
        ["---" if column.form == "text" else "---:" for column in table.columns],
    ]
    lines += [
        [_markdown_cell(show(row.get(c.key), c.form)) for c in table.columns]
        for row in table.shown_rows
    ]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def _markdown_cell(text: str) -> str:
    flat = " ".join(text.split())
    for sign in "\\`*_<>[]|$":
        flat = flat.replace(sign, f"\\{sign}")
    return flat.replace("&", "&amp;")


def to_latex(table: Table) -> str:
    """Return a table as a booktabs `tabular` with its caption in a comment."""
    form = "".join("l" if column.form == "text" else "r" for column in table.columns)
    head = " & ".join(latex(column.heading) for column in table.columns)
    body = [
        " & ".join(latex(show(row.get(c.key), c.form)) for c in table.columns) + r" \\"
        for row in table.rows
    ]
    caption = latex(f"{table.title}. {table.note}" if table.note else table.title)
    lines = [
        "% needs \\usepackage{booktabs}",
        f"% {caption}",
        f"\\begin{{tabular}}{{@{{}}{form}@{{}}}}",
        r"\toprule",
        head + r" \\",
        r"\midrule",
        *body,
        r"\bottomrule",
        r"\end{tabular}",
    ]
    return "\n".join(lines) + "\n"


_LATEX = {
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_",
    "{": r"\{", "}": r"\}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}",
    "−": "$-$", "<": "$<$", ">": "$>$", "∅": r"$\emptyset$", "Δ": r"$\Delta$", "±": r"$\pm$",
    "≥": r"$\geq$", "→": r"$\to$", "|": "$|$", "\n": " ", "·": r"$\cdot$", "×": r"$\times$",
    "₊": "$_+$", "–": "--", "\"": "''", "\N{NO-BREAK SPACE}": "~",
}  # fmt: skip


def latex(text: str) -> str:
    """Escape text for LaTeX."""
    return "".join(_LATEX.get(sign, sign) for sign in text)
