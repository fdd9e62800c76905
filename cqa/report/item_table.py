"""Every item under the base and the highlighted adapter: its numbers; which the page shows."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from itertools import islice
from typing import cast

import numpy as np

from cqa.report.focus import DOMAIN, GROUP, Focus
from cqa.report.item_texts import ScoredItem
from cqa.report.row_parts import (
    Parts,
    block_parts,
    of_text,
    parts_of,
    right_numbers,
    right_option,
)
from cqa.report.tables import Cell, Column, Placed, Table, tabulate
from cqa.schema.row_forms import Block, WrittenRows
from cqa.schema.rows import ItemRow, Kind
from cqa.stats.strata import read_cutoff, stratum

N_LINES = 2000  # items whose line the page holds; tables/items.csv holds all
N_TEXTS = 500  # of these, items whose texts the page holds; items.jsonl holds all


@dataclass(slots=True)
class ItemNumbers:
    """An item's labels, and its numbers under the base and under the highlighted adapter."""

    id: str
    group: str
    kind: Kind
    domain: str | None
    lang: str | None
    source_id: str | None
    published_at: str | None
    n_tokens: int  # of the right option or of the continuation, as is `logp_base_nats`
    n_tokens_wrong: float | None  # mean over the wrong options
    boundary_merge: bool
    logp_base_nats: float
    base: Parts | None  # None for a continuation
    adapted: Parts | None = None
    dlogp_per_token_nats: float | None = None  # change of S(x|y) / tokens

    @property
    def ddi_nats(self) -> float | None:
        """Change of dI; None for a continuation or without an adapter."""
        return self._change(lambda parts: parts.delta_i_nats)

    @property
    def d_cond_nats(self) -> float | None:
        """Its conditional part."""
        return self._change(lambda parts: parts.conditional_nats)

    @property
    def d_prior_nats(self) -> float | None:
        """Its prior part."""
        return self._change(lambda parts: parts.prior_nats)

    def _change(self, value: Callable[[Parts], float]) -> float | None:
        if self.base is None or self.adapted is None:
            return None
        return value(self.adapted) - value(self.base)


@dataclass(frozen=True, slots=True)
class ScoredItems:
    """All items of a report, and those of which the page holds more."""

    items: list[ItemNumbers]  # the primary group first, in each the largest ddI first
    in_page: set[str]  # ids
    with_texts: dict[str, ScoredItem]  # those of the largest change first


Items = Column[Placed[ItemNumbers]]


def scored_items(focus: Focus) -> ScoredItems:
    """Read the numbers of all items, and the rows and texts of those of the largest change."""
    ranked = _by_change(focus)
    in_page = list(islice(ranked, N_LINES))
    scored: dict[str, ScoredItem] = {}
    wanted = dict.fromkeys(in_page[:N_TEXTS])
    found: dict[str, ItemNumbers] = {}
    names = (None,) if focus.highlighted is None else (None, focus.highlighted)
    for rows in focus.source.rows(*names):
        if rows.adapter is None:
            found |= ((item.id, item) for item in _numbers_of(rows))
            scored |= ((row.id, ScoredItem(row)) for row in _among(rows, wanted))
            continue
        _add_adapted(found, rows)
        for row in _among(rows, wanted):
            if row.id in scored:
                scored[row.id].adapted = row
    for text in focus.source.texts(wanted):
        if text.id in scored:
            scored[text.id].text = text
    with_texts = {item_id: scored[item_id] for item_id in wanted if item_id in scored}
    return ScoredItems(_ordered(focus, found.values()), set(in_page), with_texts)


def _ordered(focus: Focus, items: Iterable[ItemNumbers]) -> list[ItemNumbers]:
    items = list(items)
    names = dict.fromkeys([focus.primary, *(item.group for item in items)])
    groups = {group: k for k, group in enumerate(names)}

    def place(item: ItemNumbers) -> tuple[bool, int, float]:
        return item.kind == "continuation", groups[item.group], -(item.ddi_nats or 0.0)

    return sorted(items, key=place)


def _by_change(focus: Focus) -> Iterable[str]:
    """Yield ids, in turn of each group the one of the largest change that is left."""
    scores, name = focus.source.scores, focus.highlighted
    groups: list[list[tuple[float, str]]] = []
    for models in scores.items.values():
        base, adapted = models[None], models.get(name)
        change = dict.fromkeys(base, 0.0)
        if name is not None and adapted is not None:
            both = base.only(adapted)
            ddi = adapted.only(base).column("delta_i_nats") - both.column("delta_i_nats")
            change |= zip(both, abs(ddi).tolist(), strict=True)
        groups.append([(-size, item_id) for item_id, size in change.items()])
    for texts in scores.texts.values():
        after = texts.get(name, {}) if name is not None else {}
        groups.append(
            [
                (-abs(after[i].logp_nats - t.logp_nats) / t.n_tokens if i in after else 0.0, i)
                for i, t in texts.get(None, {}).items()
            ]
        )
    in_turn = sorted(
        (rank, k, item_id)
        for k, group in enumerate(groups)
        for rank, (_, item_id) in enumerate(sorted(group))
    )
    return (item_id for _, _, item_id in in_turn)


def _numbers(row: ItemRow) -> ItemNumbers:
    right = right_option(row)
    wrong = [option.n_tokens for k, option in enumerate(row.options) if k != row.answer]
    is_choice = row.kind != "continuation"
    return ItemNumbers(
        id=row.id,
        group=row.group,
        kind=row.kind,
        domain=row.domain,
        lang=row.lang,
        source_id=row.source_id,
        published_at=row.published_at,
        n_tokens=right.n_tokens,
        n_tokens_wrong=sum(wrong) / len(wrong) if is_choice else None,
        boundary_merge=any(option.boundary_merge for option in row.options),
        logp_base_nats=right.logp_given_context_nats,
        base=parts_of(row),
    )


def _numbers_of(found: ItemRow | Block) -> Iterable[ItemNumbers]:
    if isinstance(found, ItemRow):
        return [_numbers(found)]
    return found.in_order(_numbers_of_block)


def _numbers_of_block(rows: WrittenRows) -> Iterable[ItemNumbers]:
    right, n_tokens = right_numbers(rows), rows.by_text("n_tokens")
    is_pair = rows.form.n_options == 2
    merges = [rows.flags("boundary_merge", k) for k in range(rows.form.n_options)]
    return map(
        ItemNumbers,
        rows.names("id"),
        rows.names("group"),
        cast(list[Kind], rows.names("kind")),
        rows.texts("domain"),
        rows.texts("lang"),
        rows.texts("source_id"),
        rows.texts("published_at"),
        of_text(n_tokens, right).astype(int).tolist(),
        of_text(n_tokens, 1 - right).tolist() if is_pair else [None] * len(rows),
        np.any(merges, axis=0).tolist(),
        of_text(rows.by_text("logp_given_context_nats"), right).tolist(),
        block_parts(rows),
    )


def _among(found: ItemRow | Block, wanted: Collection[str]) -> Iterable[ItemRow]:
    """Yield the rows of the wanted items."""
    if isinstance(found, ItemRow):
        return [found] if found.id in wanted else []
    return (
        part.record(k)
        for part in found.parts
        for k, item_id in enumerate(part.names("id"))
        if item_id in wanted
    )


def _add_adapted(items: Mapping[str, ItemNumbers], found: ItemRow | Block) -> None:
    if isinstance(found, ItemRow):
        after = right_option(found).logp_given_context_nats
        added = [(found.id, after, parts_of(found))]
    else:
        added = found.in_order(_adapted_of_block)
    for item_id, logp_nats, parts in added:
        if (item := items.get(item_id)) is not None:
            item.dlogp_per_token_nats = (logp_nats - item.logp_base_nats) / item.n_tokens
            item.adapted = parts


def _adapted_of_block(rows: WrittenRows) -> Iterable[tuple[str, float, Parts | None]]:
    after = of_text(rows.by_text("logp_given_context_nats"), right_numbers(rows)).tolist()
    return zip(rows.names("id"), after, block_parts(rows), strict=True)


def items_table(focus: Focus, found: ScoredItems) -> Table:
    """Return a row per item; for a continuation only its log-probability."""
    cutoff = read_cutoff(focus.summary.cutoff) if focus.summary.cutoff else None

    def stratum_of(row: Placed[ItemNumbers]) -> Cell:
        return stratum(row.result.published_at, cutoff) if cutoff else None

    columns: tuple[Items, ...] = (
        *ITEM_COLUMNS,
        Column("kind", "kind", lambda r: r.result.kind, "text"),
        DOMAIN,
        Column("lang", "language", lambda r: r.result.lang, "text"),
        Column("source_id", "source", lambda r: r.result.source_id, "text"),
        Column("published_at", "published", lambda r: r.result.published_at, "text"),
        Column("stratum", "stratum", stratum_of, "text"),
        Column(
            "n_tokens_wrong",
            "tokens of wrong options, mean",
            lambda r: r.result.n_tokens_wrong,
            "number",
        ),
        Column("boundary_merge", "boundary merge", lambda r: r.result.boundary_merge, "text"),
    )
    rows = (Placed(item, item.group, focus.highlighted, item.domain) for item in found.items)
    note = (
        "p right: share of the right option in the softmax over the item's candidates; change of "
        "log P and tokens: of the right option, or of the continuation"
    )
    title = f"Every item under {focus.highlighted or 'the base'}"
    return tabulate("items", title, columns, rows, note)


def _of(
    parts: Callable[[ItemNumbers], Parts | None], value: Callable[[Parts], float]
) -> Callable[[Placed[ItemNumbers]], Cell]:
    """Return a column's value that a continuation does not have."""

    def of(row: Placed[ItemNumbers]) -> Cell:
        held = parts(row.result)
        return None if held is None else value(held)

    return of


ITEM_COLUMNS: tuple[Items, ...] = (
    Column("id", "item", lambda r: r.result.id, "text"),
    GROUP,
    Column("delta_i_base_nats", "dI base, nats", _of(lambda i: i.base, lambda p: p.delta_i_nats)),
    Column("delta_i_nats", "dI adapter, nats", _of(lambda i: i.adapted, lambda p: p.delta_i_nats)),
    Column("ddi_nats", "ddI, nats", lambda r: r.result.ddi_nats),
    Column("d_cond_nats", "d_cond, nats", lambda r: r.result.d_cond_nats),
    Column("d_prior_nats", "d_prior, nats", lambda r: r.result.d_prior_nats),
    Column("p_right_base", "p right, base", _of(lambda i: i.base, lambda p: p.p_right), "number"),
    Column("p_right", "p right, adapter", _of(lambda i: i.adapted, lambda p: p.p_right), "number"),
    Column(
        "dlogp_per_token_nats",
        "change of log P, nats/token",
        lambda r: r.result.dlogp_per_token_nats,
        "fine",
    ),
    Column("n_tokens", "tokens", lambda r: r.result.n_tokens, "count"),
)
