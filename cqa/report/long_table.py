"""Every score in tidy form: a row for each item, adapter and option."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple, TextIO, cast, get_type_hints

import numpy as np

from cqa.report.row_parts import block_contrasts, parts_of
from cqa.report.source import Source
from cqa.report.tables import ABSENT, Cell, csv_cell, plain
from cqa.schema.row_forms import WrittenRows
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
    shared: Callable[[list[Sequence[object]]], list[Sequence[object]]]  # columns of all options


def long_rows(source: Source) -> Iterator[LongRow]:
    """Yield the rows of a folder of scores: the base first, then each adapter.

    Raises:
        DataError: scores.jsonl is damaged.
    """
    reading = _Reading(_values, lambda values: values, lambda columns: columns)
    return map(LongRow._make, _all_rows(source, reading))


def write_long_csv(source: Source, file: TextIO) -> None:
    """Write the rows as CSV: floats to the last digit, `n/a` for what does not exist."""
    file.write(f"{','.join(LongRow._fields)}\n")
    rows = _all_rows(source, _Reading(_cells, _plain, _joined))
    cells = (_plain(row) if isinstance(row, LongRow) else row for row in rows)
    file.writelines(f"{','.join(row)}\n" for row in cast(Iterator[Sequence[str]], cells))


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
        cells = {text: csv_cell(plain(text)) for text in set(texts)}
        return [cells[text] for text in texts]
    if _HINTS[name] is bool:
        return _plain(rows.flags(name, k).tolist())
    pieces = rows.pieces(name, k)
    return [ABSENT if piece == "null" else piece for piece in pieces]


def _all_rows(source: Source, reading: _Reading) -> Iterator[Sequence[object]]:
    base: dict[str, _Base] = {}
    for found in source.rows(None, *source.adapters):
        name = found.adapter
        if isinstance(found, ItemRow):
            if name is None:
                logp = tuple(option.logp_given_context_nats for option in found.options)
                base[found.id] = _Base(_contrasts(found), logp)
            yield from _rows_of(found, base[found.id])
            continue
        if name is None:
            for part in found.parts:
                base |= zip(part.names("id"), _bases_of(part), strict=True)
        of_each = partial(_rows_of_block, adapter=name, base=base, reading=reading)
        for rows in found.in_order(of_each):
            yield from rows


def _contrasts(row: ItemRow) -> Sequence[float] | None:
    parts = parts_of(row)
    return None if parts is None else parts[:3]


def _bases_of(rows: WrittenRows) -> Iterator[_Base]:
    contrasts = [None] * len(rows) if rows.form.n_options == 1 else block_contrasts(rows).tolist()
    return map(_Base, contrasts, rows.by_text("logp_given_context_nats").tolist())


def _rows_of_block(
    rows: WrittenRows, *, adapter: str | None, base: Mapping[str, _Base], reading: _Reading
) -> Iterator[tuple[Sequence[object], ...]]:
    """Return the rows of each item."""
    before = [base[item_id] for item_id in rows.names("id")]
    shared = _columns_of_items(rows, adapter, before, reading)
    logp = rows.by_text("logp_given_context_nats")
    logp_base = np.array([held.logp_nats for held in before])
    absent = reading.made([None]) * len(rows)
    first, last = (
        reading.shared([shared.get(name, absent) for name in names]) for names in (_FIRST, _LAST)
    )
    options = []
    for k in range(rows.form.n_options):
        n_tokens = rows.numbers("n_tokens", k)
        per_token = (logp[:, k] / n_tokens).tolist()
        change = ((logp[:, k] - logp_base[:, k]) / n_tokens).tolist()
        columns: dict[str, Sequence[object]] = {
            "option": reading.made([k]) * len(rows),
            "logp_given_context_per_token_nats": reading.made(per_token),
            "dlogp_per_token_nats": absent if adapter is None else reading.made(change),
        }
        own = (columns[n] if n in columns else reading.field(rows, n, k) for n in _OWN)
        options.append(zip(*first, *own, *last, strict=True))
    return zip(*options, strict=True)


def _columns_of_items(
    rows: WrittenRows, adapter: str | None, base: Sequence[_Base], reading: _Reading
) -> dict[str, Sequence[object]]:
    """Return what all options of an item share."""
    found = {name: reading.field(rows, name, None) for name in LongRow._fields if rows.has(name)}
    found["adapter"] = reading.made([adapter or BASE]) * len(rows)
    if rows.form.n_options == 1:
        return found
    before = np.array([held.contrasts_nats for held in base], dtype=np.float64)
    found["delta_i_base_nats"] = reading.made(before[:, 0].tolist())
    if adapter is not None:
        changes = (block_contrasts(rows) - before).T.tolist()
        found |= zip(
            ("ddi_nats", "d_cond_nats", "d_prior_nats"), map(reading.made, changes), strict=True
        )
    return found


def _rows_of(row: ItemRow, base: _Base) -> Iterator[LongRow]:
    after, before = _contrasts(row), base.contrasts_nats
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
            boundary_merge=option.boundary_merge,
            delta_i_nats=row.delta_i_nats,
            delta_i_best_wrong_nats=row.delta_i_best_wrong_nats,
            rank_prob=row.rank_prob,
            delta_i_base_nats=before[0] if before else None,
            ddi_nats=ddi,
            d_cond_nats=d_cond,
            d_prior_nats=d_prior,
        )
