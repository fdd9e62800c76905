"""The rows that figures are drawn from, and their CSV files."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeVar, get_args, get_type_hints

from cqa.escape import from_csv
from cqa.report.tables import ABSENT, csv_text, plain


@dataclass(frozen=True, slots=True)
class EffectPoint:
    """Figure 1: d_z of ddI with its interval, of a group under an adapter."""

    group: str
    adapter: str
    epoch: int | None
    n: int
    d_z: float | None
    low: float | None
    high: float | None
    p: float
    shown: bool  # whether it is the highlighted adapter


@dataclass(frozen=True, slots=True)
class PartPoint:
    """Mean ddI or one of its parts with its interval."""

    group: str
    adapter: str
    epoch: int | None
    part: str
    mean_nats: float | None
    low: float | None
    high: float | None


@dataclass(frozen=True, slots=True)
class CandidateBar:
    """Mean p of the candidates of one rank, and the mean entropy of p, before and after."""

    group: str
    adapter: str
    where: str
    rank: int
    n: int
    p_base: float | None
    p_adapter: float | None
    h_base_nats: float | None
    h_adapter_nats: float | None
    h_change_nats: float | None
    h_low: float | None
    h_high: float | None


@dataclass(frozen=True, slots=True)
class EpochPoint:
    """A loss of training, or a statistic of a group, at an epoch."""

    quantity: str
    group: str | None
    epoch: int
    value: float | None
    low: float | None
    high: float | None


class ItemPoint(NamedTuple):  # of which there are as many as items
    """ddI of one item."""

    group: str
    adapter: str
    id: str
    ddi_nats: float


@dataclass(frozen=True, slots=True)
class TextPoint:
    """Mean change of log-probability per token of a domain, or of a whole group."""

    group: str
    domain: str | None
    adapter: str
    n: int
    change_nats_per_token: float | None
    low: float | None
    high: float | None


@dataclass(frozen=True, slots=True)
class SpecificationPoint:
    """One way of asking the verdict's main questions, and its p."""

    question: str
    per: str
    null: str
    test: str
    adapter: str
    estimate: float
    p: float | None
    says: str
    agrees: bool | None


PlotRow = (
    EffectPoint | PartPoint | CandidateBar | EpochPoint | ItemPoint | TextPoint | SpecificationPoint
)
T = TypeVar("T", bound=PlotRow)


def rows_to_csv(rows: Sequence[PlotRow]) -> str:
    """Return a figure's rows as CSV, a column per field."""
    names = list(get_type_hints(type(rows[0])))
    return csv_text(names, [[plain(getattr(row, name)) for name in names] for row in rows])


def rows_from_csv(kind: type[T], text: str) -> list[T]:
    """Return a figure's rows from CSV, each cell as the type of its field; `n/a` is None."""
    hints = get_type_hints(kind)
    # an id may be longer than what `csv` takes by default
    before = csv.field_size_limit(max(csv.field_size_limit(), len(text)))
    try:
        names, *lines = filter(None, csv.reader(io.StringIO(text)))
    finally:
        csv.field_size_limit(before)
    if not lines:
        return []
    columns = zip(names, zip(*lines, strict=True), strict=True)
    values = {name: _values(hints[name], cells) for name, cells in columns}
    return list(map(kind, *(values[name] for name in hints)))


def _values(hint: Any, cells: Sequence[str]) -> list[Any]:
    kinds = get_args(hint) or (hint,)
    read: Callable[[str], Any] = from_csv
    if bool in kinds:
        read = "True".__eq__
    elif float in kinds or int in kinds:
        read = int if int in kinds else float
    if type(None) in kinds:
        return [None if cell == ABSENT else read(cell) for cell in cells]
    return list(map(read, cells))
