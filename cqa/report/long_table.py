"""Every score in tidy form: a row for each item, adapter and option."""

from __future__ import annotations

import json
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple, TextIO, cast, get_type_hints

import numpy as np
import numpy.typing as npt

from cqa.files import reported
from cqa.report.row_parts import block_contrasts, contrasts_of
from cqa.report.source import Source
from cqa.report.tables import ABSENT, Cell, csv_cell, plain
from cqa.schema.row_forms import Block, WrittenRows
from cqa.schema.rows import ItemRow

BASE = "base"


class LongRow(NamedTuple):
    """One option of an item under one model; what does not exist is None.

    Fields from `delta_i_nats` on are the item's, the same in the rows of all its options.
    """

    id: str
    group: str
    domain: str | None
    lang: str | None
    source_id: str | None
    published_at: str | None
    kind: str
    adapter: str  # `base` is the base
    model_key: str
    item_key: str
    option: int  # from 0, in the file's order, good before bad
    role: str
    logp_given_context_nats: float
    logp_null_nats: float
    logp_null2_nats: float | None  # None where it was not scored
    pmi_nats: float
    entropy_given_context_nats: float | None  # None where the engine gives no entropy
    entropy_null_nats: float | None
    logp_given_context_per_token_nats: float
    dlogp_per_token_nats: float | None  # change from the base; None for the base
    n_tokens: int
    n_bytes: int
    n_chars: int
    boundary_merge: bool
    delta_i_nats: float | None  # dI; None for a continuation, as is all that follows
    delta_i_best_wrong_nats: float | None
    rank_prob: float | None
    delta_i_base_nats: float | None
    ddi_nats: float | None  # None for the base, as are the next two
    d_cond_nats: float | None
    d_prior_nats: float | None


_HINTS = get_type_hints(LongRow)
_TEXT = (str, str | None)
_AS_IT_IS = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_ .:-]*").fullmatch  # such text is its own cell
# The columns by what they are of: the item, its option, and again the item.
_FIRST, _OWN, _LAST = (
    LongRow._fields[: LongRow._fields.index("option")],
    LongRow._fields[LongRow._fields.index("option") : LongRow._fields.index("delta_i_nats")],
    LongRow._fields[LongRow._fields.index("delta_i_nats") :],
)


class _Base(NamedTuple):
    """What is kept of a row of the base."""

    contrasts_nats: Sequence[float] | None  # dI and its two parts; None for a continuation
    logp_nats: Sequence[float]  # S(x|y) of every option


@dataclass(frozen=True, slots=True)
class _Reading:
    """How the fields of many rows are read: as values, or as cells of a CSV file."""

    field: Callable[[WrittenRows, str, int | None], Sequence[object]]
    made: Callable[[list[Any]], list[Any]]  # of values that are in no row
    floats: Callable[[npt.NDArray[np.float64]], list[Any]]  # of numbers that are in no row
    shared: Callable[[list[Sequence[object]]], list[Sequence[object]]]  # columns of all options


def long_rows(source: Source) -> Iterator[LongRow]:
    """Yield the rows of a folder of scores: the base first, then each adapter.

    Raises:
        DataError: scores.jsonl is damaged.
    """
    reading = _Reading(_values, lambda values: values, np.ndarray.tolist, lambda columns: columns)
    rows = map(_Reader(reading).rows, source.rows(None, *source.adapters))
    return map(LongRow._make, chain.from_iterable(rows))


def write_long_csv(source: Source, file: TextIO) -> None:
    """Write the rows as CSV: floats to the last digit, `n/a` for what does not exist."""
    writer = _Writer(file)
    for found in source.rows(None, *source.adapters):
        writer.write(found)


class _Writer:
    """Writes rows to a CSV file, the base's before those of an adapter."""

    def __init__(self, file: TextIO) -> None:
        self._file = file
        self._reader = _Reader(_Reading(_cells, _plain, _float_cells, _joined))
        file.write(f"{','.join(LongRow._fields)}\n")

    def write(self, found: ItemRow | Block) -> bool:
        """Write rows; return whether the base's of the same items were written before."""
        if not self._reader.knows_base_of(found):
            return False
        rows = self._reader.rows(found)
        cells = (_plain(row) if isinstance(row, LongRow) else row for row in rows)
        self._file.writelines(f"{','.join(row)}\n" for row in cast(Iterator[Sequence[str]], cells))
        return True


@contextmanager
def long_file(out: Path) -> Iterator[LongFile]:
    """Give an empty file without a name, of which nothing is left.

    Args:
        out: The folder of the report, which need not be there: the file is on its disk.

    Raises:
        ResourceError: Nothing can be written there.
    """
    folder = next(path for path in (out, *out.absolute().parents) if path.is_dir())
    with ExitStack() as held:
        with reported(out):
            file = held.enter_context(
                tempfile.TemporaryFile("w+", encoding="utf-8", newline="", dir=folder)
            )
        yield LongFile(out, cast(TextIO, file))


class LongFile:
    """scores_long.csv, written while the rows are read for the statistics.

    So they need not be read again, unless they do not stand in their file as the table has them.
    """

    def __init__(self, out: Path, file: TextIO) -> None:
        """Begin the file; `out` is what a failure is said of."""
        self._out, self._file = out, file
        self._writer = _Writer(file)
        self._holds_all = True

    def take(self, found: ItemRow | Block) -> None:
        """Take the next rows that are reported, as they stand in the file.

        Raises:
            ResourceError: They cannot be written.
        """
        with reported(self._out):
            self._holds_all = self._holds_all and self._writer.write(found)

    def write(self, source: Source, file: TextIO) -> None:
        """Write the table to its place.

        Args:
            source: Whose rows were taken.
            file: The place.
        """
        if not (self._holds_all and source.came_as_rows(None, *source.adapters)):
            write_long_csv(source, file)
            return
        self._file.seek(0)
        file.flush()
        shutil.copyfileobj(self._file.buffer, file.buffer, 1 << 20)


def _float_cells(values: npt.NDArray[np.float64]) -> list[str]:
    return list(map(repr, values.tolist()))


def _plain(values: Sequence[object]) -> list[str]:
    return [
        repr(v) if type(v) is float else csv_cell(plain(v)) for v in cast(Sequence[Cell], values)
    ]


def _joined(columns: list[Sequence[object]]) -> list[Sequence[object]]:
    """Return several columns of cells as one, so that an item's are joined once for its options."""
    return [list(map(",".join, zip(*cast(list[Sequence[str]], columns), strict=True)))]


def _values(rows: WrittenRows, name: str, k: int | None) -> Sequence[object]:
    if _HINTS[name] in _TEXT:
        return rows.texts(name, k)
    return [json.loads(piece) for piece in rows.pieces(name, k)]


def _cells(rows: WrittenRows, name: str, k: int | None) -> Sequence[object]:
    """Return a field as `_plain` would: JSON writes a number as Python does."""
    if _HINTS[name] in _TEXT:
        texts = rows.texts(name, k)
        cells = {
            text: text if text is not None and _AS_IT_IS(text) else csv_cell(plain(text))
            for text in set(texts)
        }
        return [cells[text] for text in texts]
    if _HINTS[name] is bool:
        return _plain(rows.flags(name, k).tolist())
    pieces = rows.pieces(name, k)
    return [ABSENT if piece == "null" else piece for piece in pieces]


class _Reader:
    """Makes rows of the table, and keeps of the base's what an adapter's are compared with."""

    def __init__(self, reading: _Reading) -> None:
        self._reading = reading
        self._base: dict[str, _Base] = {}

    def knows_base_of(self, found: ItemRow | Block) -> bool:
        """Whether rows are the base's, or an adapter's of items whose base's were met."""
        if found.adapter is None:
            return True
        if isinstance(found, ItemRow):
            return found.id in self._base
        return all(name in self._base for part in found.parts for name in part.names("id"))

    def rows(self, found: ItemRow | Block) -> Iterator[Sequence[object]]:
        """Yield the rows of items, a row for each option."""
        is_base = found.adapter is None
        if isinstance(found, ItemRow):
            if is_base:
                logp = tuple(option.logp_given_context_nats for option in found.options)
                self._base[found.id] = _Base(contrasts_of(found), logp)
            yield from _rows_of(found, self._base[found.id])
            return
        if is_base:
            for part in found.parts:
                self._base |= zip(part.names("id"), _bases_of(part), strict=True)
        for rows in found.in_order(lambda part: self._rows_of_block(part, found.adapter)):
            yield from rows

    def _rows_of_block(
        self, rows: WrittenRows, adapter: str | None
    ) -> Iterator[tuple[Sequence[object], ...]]:
        """Return the rows of each item."""
        reading, before = self._reading, [self._base[item_id] for item_id in rows.names("id")]
        shared = _columns_of_items(rows, adapter, before, reading)
        logp = rows.by_text("logp_given_context_nats")
        logp_base = np.array([held.logp_nats for held in before])
        absent = reading.made([None]) * len(rows)
        first, last = (
            reading.shared([shared.get(name, absent) for name in names])
            for names in (_FIRST, _LAST)
        )
        options = []
        for k in range(rows.form.n_options):
            n_tokens = rows.numbers("n_tokens", k)
            change = absent
            if adapter is not None:
                change = reading.floats((logp[:, k] - logp_base[:, k]) / n_tokens)
            columns: dict[str, Sequence[object]] = {
                "option": reading.made([k]) * len(rows),
                "logp_given_context_per_token_nats": reading.floats(logp[:, k] / n_tokens),
                "dlogp_per_token_nats": change,
            }
            own = (columns[n] if n in columns else reading.field(rows, n, k) for n in _OWN)
            options.append(zip(*first, *own, *last, strict=True))
        return zip(*options, strict=True)


def _bases_of(rows: WrittenRows) -> Iterator[_Base]:
    contrasts = [None] * len(rows) if rows.form.n_options == 1 else block_contrasts(rows).tolist()
    return map(_Base, contrasts, rows.by_text("logp_given_context_nats").tolist())


def _columns_of_items(
    rows: WrittenRows, adapter: str | None, base: Sequence[_Base], reading: _Reading
) -> dict[str, Sequence[object]]:
    """Return what all options of an item share."""
    found = {name: reading.field(rows, name, None) for name in LongRow._fields if rows.has(name)}
    found["adapter"] = reading.made([adapter or BASE]) * len(rows)
    if rows.form.n_options == 1:
        return found
    before = np.array([held.contrasts_nats for held in base], dtype=np.float64)
    found["delta_i_base_nats"] = reading.floats(before[:, 0])
    if adapter is not None:
        changes = map(reading.floats, (block_contrasts(rows) - before).T)
        found |= zip(("ddi_nats", "d_cond_nats", "d_prior_nats"), changes, strict=True)
    return found


def _rows_of(row: ItemRow, base: _Base) -> Iterator[LongRow]:
    after, before = contrasts_of(row), base.contrasts_nats
    ddi = d_cond = d_prior = None
    if row.adapter is not None and after is not None and before is not None:
        ddi, d_cond, d_prior = (b - a for a, b in zip(before, after, strict=True))
    for k, (option, logp_base) in enumerate(zip(row.options, base.logp_nats, strict=True)):
        logp, n = option.logp_given_context_nats, option.n_tokens
        yield LongRow(
            id=row.id,
            group=row.group,
            domain=row.domain,
            lang=row.lang,
            source_id=row.source_id,
            published_at=row.published_at,
            kind=row.kind,
            adapter=row.adapter or BASE,
            model_key=row.model_key,
            item_key=row.item_key,
            option=k,
            role=option.role,
            logp_given_context_nats=logp,
            logp_null_nats=option.logp_null_nats,
            logp_null2_nats=option.logp_null2_nats,
            pmi_nats=option.pmi_nats,
            entropy_given_context_nats=option.entropy_given_context_nats,
            entropy_null_nats=option.entropy_null_nats,
            logp_given_context_per_token_nats=logp / n,
            dlogp_per_token_nats=None if row.adapter is None else (logp - logp_base) / n,
            n_tokens=n,
            n_bytes=option.n_bytes,
            n_chars=option.n_chars,
            boundary_merge=option.boundary_mismatch,
            delta_i_nats=row.delta_i_nats,
            delta_i_best_wrong_nats=row.delta_i_best_wrong_nats,
            rank_prob=row.rank_prob,
            delta_i_base_nats=before[0] if before else None,
            ddi_nats=ddi,
            d_cond_nats=d_cond,
            d_prior_nats=d_prior,
        )
