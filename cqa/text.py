"""Numbers and tables as text, the same everywhere they are printed."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from cqa.escape import for_terminal

LONGEST_MESSAGE = 300  # characters; what a user gave can be megabytes long
LONGEST_CELL = 80


def shortened(text: str, limit: int = LONGEST_MESSAGE) -> str:
    """Return text of at most `limit` characters, without its middle if it is longer."""
    if len(text) <= limit:
        return text
    head, tail = limit * 2 // 3, limit // 3 - 3
    return f"{text[:head]} … {text[-tail:]}"


def named(text: str) -> str:
    """Return a name that a user gave as a terminal shows it: on one line, and not without end."""
    return shortened(for_terminal(shortened(text, LONGEST_CELL)), LONGEST_CELL)


_CALLED_ALL = re.compile("'*all")


def part_name(part: str | None) -> str:
    """Return what stands for a part of the items in a table that also has all of them: None.

    A part that is itself called `all` gets a `'`, so that no two rows have one name.
    """
    if part is None:
        return "all"
    return f"'{part}" if _CALLED_ALL.fullmatch(part) else part


def listed(values: Iterable[object]) -> str:
    """Return values in a line, such as the files of a message's place."""
    return ", ".join(map(str, values))


def own_parts(path: Path, others: Sequence[Path]) -> Iterator[tuple[str, ...]]:
    """Yield last parts of a path that tell it from the others, fewest first; none of one twice."""
    for depth in range(1, len(path.parts) + 1):
        parts = path.parts[-depth:]
        if sum(other.parts[-depth:] == parts for other in others) == 1:
            yield parts


def aligned(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Lay cells out in columns, the first to the left; columns without a cell are left out."""
    filled = [[*map(named, row), *[""] * (len(head) - len(row))] for row in rows]
    used = [k for k in range(len(head)) if any(row[k] for row in filled)]
    lines = [[head[k] for k in used], *([row[k] for k in used] for row in filled)]
    widths = [max(len(line[k]) for line in lines) for k in range(len(used))]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if k == 0 else cell.rjust(width)
            for k, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    )


def counted(n: int, noun: str) -> str:
    """Return a number with its noun, which has an s unless there is one: "1 item", "2 items"."""
    return f"{n} {noun}" if n == 1 else f"{n} {noun}s"


def duration(seconds: float) -> str:
    """Return a time in the unit that people would use."""
    if seconds < 60:
        return f"{seconds:.0f} s" if seconds >= 10 else f"{seconds:.1f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 120 else f"{minutes // 60} h {minutes % 60} min"


def signed(value: float | None, digits: int = 2) -> str:
    """Return a number with its sign, but 0.00 without one, whichever way it was rounded."""
    text = "n/a" if value is None else f"{value:+.{digits}f}"
    return text if text.strip("+-0.") else text[1:]


def p_value(p: float) -> str:
    """Return p with three digits, or that it is below what they show."""
    return "< 0.001" if p < 0.001 else f"{p:.3f}"


def rank_sum(w_plus: float) -> str:
    """Return a sum of ranks, which are halves at the least, to its last digit."""
    return f"{w_plus:.1f}".removesuffix(".0")


def interval(bounds: Sequence[float] | None, digits: int = 2) -> str:
    """Return the two ends of an interval."""
    if bounds is None:
        return "n/a"
    return f"[{signed(bounds[0], digits)}, {signed(bounds[1], digits)}]"
