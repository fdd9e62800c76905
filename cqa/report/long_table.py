"""Every score in tidy form: a row for each item, adapter and option."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple, TextIO

from cqa.escape import for_csv
from cqa.report.row_parts import Parts, parts_of
from cqa.report.source import Source
from cqa.report.tables import ABSENT, write_csv
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


class _Base(NamedTuple):
    """What is kept of a row of the base."""

    parts: Parts | None
    logp_nats: tuple[float, ...]  # S(x|y) of every option


def long_rows(source: Source) -> Iterator[LongRow]:
    """Yield the rows of a folder of scores: the base first, then each adapter.

    Raises:
        DataError: scores.jsonl is damaged.
    """
    base: dict[str, _Base] = {}
    for row in source.rows(None):
        logp = tuple(option.logp_given_context_nats for option in row.options)
        base[row.id] = _Base(parts_of(row), logp)
        yield from _rows_of(row, base[row.id])
    for name in source.adapters:
        for row in source.rows(name):
            yield from _rows_of(row, base[row.id])


def write_long_csv(source: Source, file: TextIO) -> None:
    """Write the rows as CSV: floats to the last digit, `n/a` for what does not exist."""
    write_csv(file, LongRow._fields, map(_cells, long_rows(source)))


def _cells(row: LongRow) -> list[object]:
    return [
        ABSENT if value is None else for_csv(value) if isinstance(value, str) else value
        for value in row
    ]


def _rows_of(row: ItemRow, base: _Base) -> Iterator[LongRow]:
    after, before = parts_of(row), base.parts
    ddi = d_cond = d_prior = None
    if row.adapter is not None and after is not None and before is not None:
        ddi = after.delta_i_nats - before.delta_i_nats
        d_cond = after.conditional_nats - before.conditional_nats
        d_prior = after.prior_nats - before.prior_nats
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
            delta_i_base_nats=before.delta_i_nats if before else None,
            ddi_nats=ddi,
            d_cond_nats=d_cond,
            d_prior_nats=d_prior,
        )
