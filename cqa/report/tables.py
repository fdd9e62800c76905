"""A table once, written four ways: HTML cells, Markdown, CSV at full precision, LaTeX.

What is absent is `n/a` in all four, never 0.
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any, Generic, Literal, TextIO, TypeVar

from cqa.escape import for_csv, for_latex, for_markdown
from cqa.schema.result import Interval
from cqa.text import p_value, rank_sum, shortened, signed

Form = Literal[
    "text", "count", "signed", "number", "fine", "fine_number", "p", "share", "w", "small",
    "interval", "fine_interval", "number_interval", "shares",
]  # fmt: skip
Cell = str | float | int | bool | Interval | None
T_co = TypeVar("T_co", covariant=True)
R_contra = TypeVar("R_contra", contravariant=True)
ABSENT = "n/a"
MOST_LINES = 400  # of a table in page, Markdown and LaTeX; CSV files hold all
LONGEST_CELL = 200  # characters of a name that a page shows; CSV files hold it whole
INTERVALS = ("interval", "fine_interval", "number_interval", "shares")


@dataclass(frozen=True, slots=True)
class Placed(Generic[T_co]):
    """A result with the group, the adapter and the part of the group that it is of."""

    result: T_co
    group: str
    adapter: str | None = None
    part: str | None = None


@dataclass(frozen=True, slots=True)
class Column(Generic[R_contra]):
    """A column: its name in files, its heading with the unit, its value in a row, and its form."""

    key: str
    heading: str
    value: Callable[[R_contra], Cell]
    form: Form = "signed"


@dataclass(frozen=True, slots=True)
class Line:
    """The raw values of a row, and the adapter that they are of."""

    cells: tuple[Cell, ...]
    adapter: str | None = None


@dataclass(frozen=True, slots=True)
class Table:
    """Lines of raw values under columns."""

    name: str
    title: str
    columns: tuple[Column[Any], ...]
    lines: list[Line]
    note: str = ""
    adapters: tuple[str | None, ...] | None = None  # what page and Markdown are of; None is all

    @property
    def shown_lines(self) -> list[Line]:
        """The lines that page and Markdown hold; the CSV file holds all."""
        return self._of_shown_adapters[:MOST_LINES]

    @property
    def n_left_out(self) -> int:
        """How many lines only the files hold."""
        return len(self.lines) - len(self.shown_lines)

    @property
    def full_note(self) -> str:
        """The note, and what is left out and where it is."""
        n, n_shown = len(self._of_shown_adapters), len(self.shown_lines)
        parts = [self.note] if self.note else []
        if n > n_shown:
            parts.append(f"These are the first {n_shown:,} of {n:,} lines")
        if self.n_left_out:
            what = "All lines" if n > n_shown else "All adapters"
            parts.append(f"{what}: tables/{self.name}.csv")
        return " ".join(f"{part}." for part in parts)

    @property
    def _of_shown_adapters(self) -> list[Line]:
        if self.adapters is None:
            return self.lines
        return [line for line in self.lines if line.adapter in self.adapters]


T = TypeVar("T")


def tabulate(
    name: str,
    title: str,
    columns: tuple[Column[Placed[T]], ...],
    rows: Iterable[Placed[T]],
    note: str = "",
    *,
    adapters: tuple[str | None, ...] | None = None,
) -> Table:
    """Return a table with a line for every row."""
    lines = [Line(tuple(column.value(row) for column in columns), row.adapter) for row in rows]
    return Table(name, title, columns, lines, note, adapters)


def show(value: Cell, form: Form) -> str:
    """Return a value as a reader sees it, with a true minus sign."""
    if value is None:
        return ABSENT
    if isinstance(value, str):
        return shortened(value, LONGEST_CELL)
    return _show_interval(value, form) if isinstance(value, tuple) else _NUMBERS[form](value)


_NUMBERS: dict[Form, Callable[[float], str]] = {
    "text": str,
    "count": lambda v: f"{v:,}",
    "signed": lambda v: _signed(v, 2),
    "number": lambda v: f"{v:.2f}".replace("-", "−"),
    "fine": lambda v: _signed(v, 3),
    "fine_number": lambda v: f"{v:.3f}".replace("-", "−"),
    "p": p_value,
    "share": lambda v: f"{100 * v:.0f} %",
    "w": rank_sum,
    "small": lambda v: f"{v:.2g}".replace("-", "−"),
}


def _show_interval(bounds: Interval, form: Form) -> str:
    low, high = bounds
    if form == "shares":
        return f"{100 * low:.0f} – {100 * high:.0f} %".replace(" ", "\N{NO-BREAK SPACE}")
    if form == "number_interval":
        return f"[{low:.3f},\N{NO-BREAK SPACE}{high:.3f}]".replace("-", "−")
    digits = 3 if form == "fine_interval" else 2
    return f"[{_signed(low, digits)},\N{NO-BREAK SPACE}{_signed(high, digits)}]"


def _signed(value: float, digits: int) -> str:
    return signed(value, digits).replace("-", "−")


def to_csv(table: Table) -> str:
    """Return a table as CSV; see `write_table_csv`."""
    file = io.StringIO()
    write_table_csv(table, file)
    return file.getvalue()


def write_table_csv(table: Table, file: TextIO) -> None:
    """Write a table as CSV: raw values, an interval as two columns."""
    head: list[str] = []
    for column in table.columns:
        ends = ("_low", "_high") if column.form in INTERVALS else ("",)
        head += [column.key + end for end in ends]
    if len(head) == len(table.columns):
        write_csv(file, head, (list(map(plain, line.cells)) for line in table.lines))
    else:
        write_csv(file, head, (_csv_cells(table, line) for line in table.lines))


def _csv_cells(table: Table, line: Line) -> list[str]:
    cells: list[str] = []
    for column, value in zip(table.columns, line.cells, strict=True):
        if column.form in INTERVALS:
            bounds = value if isinstance(value, tuple) else (None, None)
            cells += [plain(bound) for bound in bounds]
        else:
            cells.append(plain(value))
    return cells


def csv_text(head: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """Return rows of text as CSV, lines ending in a newline alone."""
    file = io.StringIO()
    write_csv(file, head, lines)
    return file.getvalue()


_TO_QUOTE = re.compile(r'[",\r\n]').search


def csv_cell(text: str) -> str:
    """Return a cell as it stands in CSV: one with a comma, a quote or a line end is quoted."""
    return text if _TO_QUOTE(text) is None else f'"{text.replace(chr(34), chr(34) * 2)}"'


def write_csv(file: TextIO, head: Sequence[str], lines: Iterable[Sequence[str]]) -> None:
    """Write rows of cells as CSV, lines ending in a newline alone; text has been through `for_csv`.

    Most lines need no quotes, which is told from a line as a whole, faster than from each cell.
    """
    for cells in chain([head], lines):
        line = ",".join(cells)
        if '"' in line or "\n" in line or "\r" in line or line.count(",") >= len(cells):
            line = ",".join(map(csv_cell, cells))
        elif not line and cells:
            line = '""'  # an empty line is no row
        file.write(f"{line}\n")


def plain(value: Cell) -> str:
    """Return a raw value for a CSV cell: floats to the last digit, text never a formula."""
    if type(value) is float:
        return repr(value)
    if value is None:
        return ABSENT
    if isinstance(value, str):
        return for_csv(value)
    return repr(float(value)) if isinstance(value, float) else str(value)


def to_markdown(table: Table) -> str:
    """Return the shown rows as a Markdown table."""
    lines = [
        [for_markdown(column.heading) for column in table.columns],
        ["---" if column.form == "text" else "---:" for column in table.columns],
    ]
    lines += [
        [for_markdown(text) for text in shown_cells(table, line)] for line in table.shown_lines
    ]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def shown_cells(table: Table, line: Line) -> list[str]:
    """Return the cells of a line as a reader sees them."""
    return [show(v, c.form) for c, v in zip(table.columns, line.cells, strict=True)]


def to_latex(table: Table) -> str:
    """Return a table as a booktabs `tabular` with its caption in a comment."""
    form = "".join("l" if column.form == "text" else "r" for column in table.columns)
    head = " & ".join(for_latex(column.heading) for column in table.columns)
    body = [
        " & ".join(map(for_latex, shown_cells(table, line))) + r" \\"
        for line in table.lines[:MOST_LINES]
    ]
    if (n := len(table.lines)) > MOST_LINES:
        body.append(f"% the first {MOST_LINES} of {n} lines; {table.name}.csv has all")
    caption = for_latex(f"{table.title}. {table.note}" if table.note else table.title)
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
