"""Every score in tidy form: a row for each item, adapter and option."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields

from cqa.report.source import Source
from cqa.report.tables import csv_text, plain
from cqa.schema.rows import ItemRow
from cqa.stats.items import item_score

BASE = "base"


@dataclass(frozen=True, slots=True, kw_only=True)
class LongRow:
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
    entropy_given_context_nats: float
    entropy_null_nats: float
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


def long_rows(source: Source) -> Iterator[LongRow]:
    """Yield the rows of a folder of scores: the base first, then each adapter.

    Raises:
        DataError: scores.jsonl is damaged.
    """
    base = {row.id: row for row in source.rows(None)}
    for name in (None, *source.adapters):
        for row in base.values() if name is None else source.rows(name):
            yield from _rows_of(row, base[row.id])


def long_csv(source: Source) -> str:
    """Return the rows as CSV: floats to the last digit, `n/a` for what does not exist."""
    names = [f.name for f in fields(LongRow)]
    lines = [[plain(getattr(row, name)) for name in names] for row in long_rows(source)]
    return csv_text(names, lines)


def _rows_of(row: ItemRow, base: ItemRow) -> Iterator[LongRow]:
    ddi, d_cond, d_prior = _changes(row, base)
    for k, (option, before) in enumerate(zip(row.options, base.options, strict=True)):
        logp, n = option.logp_given_context_nats, option.n_tokens
        change = None if row.adapter is None else (logp - before.logp_given_context_nats) / n
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
            dlogp_per_token_nats=change,
            n_tokens=n,
            n_bytes=option.n_bytes,
            n_chars=option.n_chars,
            boundary_merge=option.boundary_merge,
            delta_i_nats=row.delta_i_nats,
            delta_i_best_wrong_nats=row.delta_i_best_wrong_nats,
            rank_prob=row.rank_prob,
            delta_i_base_nats=base.delta_i_nats,
            ddi_nats=ddi,
            d_cond_nats=d_cond,
            d_prior_nats=d_prior,
        )


def _changes(row: ItemRow, base: ItemRow) -> tuple[float | None, float | None, float | None]:
    """Return ddI, d_cond and d_prior; None for the base and for a continuation."""
    if row.adapter is None or row.kind == "continuation":
        return None, None, None
    after, before = item_score(row), item_score(base)
    return (
        after.delta_i_nats - before.delta_i_nats,
        after.conditional_nats - before.conditional_nats,
        after.prior_nats - before.prior_nats,
    )
