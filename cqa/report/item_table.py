"""Every item under the base and the highlighted adapter: its numbers; which the page shows."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import date
from itertools import islice, repeat
from operator import attrgetter
from typing import NamedTuple, cast

import numpy as np

from cqa.report.focus import Focus
from cqa.report.item_texts import ScoredItem
from cqa.report.tables import Column, Form, Line, Table
from cqa.schema.row_forms import each_row
from cqa.schema.rows import Kind
from cqa.stats.clusters import Values
from cqa.stats.columns import ItemScores
from cqa.stats.continuations import TextScore
from cqa.stats.strata import read_cutoff, stratum

N_LINES = 2000  # items whose line the page holds; tables/items.csv holds all
N_TEXTS = 500  # of these, items whose texts the page holds; items.jsonl holds all


class ItemNumbers(NamedTuple):
    """An item's labels, and its numbers under the base and under the highlighted adapter.

    It is a line of the table, in the order of its columns; what does not exist is None: dI and p of
    a continuation, and all changes without an adapter. Lengths are those of the base's row.
    """

    id: str
    group: str
    delta_i_base_nats: float | None
    delta_i_nats: float | None
    ddi_nats: float | None
    d_cond_nats: float | None
    d_prior_nats: float | None
    p_right_base: float | None  # share of the right option in the softmax of S(x|y)
    p_right: float | None
    dlogp_per_token_nats: float | None  # change of S(x|y) / tokens of the right option
    n_tokens: int  # of the right option or of the continuation
    kind: Kind
    domain: str | None
    lang: str | None
    source_id: str | None
    published_at: str | None
    stratum: str | None
    n_tokens_wrong: float | None  # mean over the wrong options
    boundary_merge: bool


@dataclass(frozen=True, slots=True)
class ScoredItems:
    """All items of a report, and those of which the page holds more."""

    items: list[ItemNumbers]  # the primary group first, in each the largest ddI first
    in_page: set[str]  # ids
    with_texts: dict[str, ScoredItem]  # those of the largest change first


def scored_items(focus: Focus) -> ScoredItems:
    """Return the numbers of all items, and the rows and texts of those of the largest change."""
    in_page = list(islice(_by_change(focus), N_LINES))
    with_texts = _with_texts(focus, dict.fromkeys(in_page[:N_TEXTS]))
    return ScoredItems(_ordered(focus, _numbers(focus)), set(in_page), with_texts)


def _with_texts(focus: Focus, wanted: dict[str, None]) -> dict[str, ScoredItem]:
    """Read the rows and the texts of some items again."""
    scored: dict[str, ScoredItem] = {}
    names = (None,) if focus.highlighted is None else (None, focus.highlighted)
    for row in each_row(focus.source.rows(*names, ids=wanted)):
        if row.adapter is None:
            scored[row.id] = ScoredItem(row)
        elif row.id in scored:
            scored[row.id].adapted = row
    for text in focus.source.texts(wanted):
        if text.id in scored:
            scored[text.id].text = text
    return {item_id: scored[item_id] for item_id in wanted if item_id in scored}


def _ordered(focus: Focus, items: Iterable[ItemNumbers]) -> list[ItemNumbers]:
    names = dict.fromkeys([focus.primary, *focus.source.scores.groups])
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


def _numbers(focus: Focus) -> Iterator[ItemNumbers]:
    """Yield every item, those of a kind and group in the order of the base."""
    scores, name = focus.source.scores, focus.highlighted
    for group, models in scores.items.items():
        adapted = None if name is None else models.get(name)
        yield from _choices(focus, group, models[None], adapted)
    cutoff = _cutoff(focus)
    for group, texts in scores.texts.items():
        after = {} if name is None else texts.get(name, {})
        for item_id, text in texts.get(None, {}).items():
            yield _continuation(item_id, group, text, after.get(item_id), cutoff)


def _cutoff(focus: Focus) -> date | None:
    return read_cutoff(focus.summary.cutoff) if focus.summary.cutoff else None


def _choices(
    focus: Focus, group: str, base: ItemScores, adapted: ItemScores | None
) -> Iterator[ItemNumbers]:
    """Yield a group's pairs and items of several options."""
    facts, rows, cutoff = focus.source.scores.facts, base.rows, _cutoff(focus)
    dates = facts.labels("published_at", rows)
    right = facts.right_lengths(rows, 0)
    return map(
        ItemNumbers,
        base,
        repeat(group),
        base.column("delta_i_nats").tolist(),
        *_changes(base, adapted, right),
        right.astype(int).tolist(),
        cast(list[Kind], facts.labels("kind", rows)),
        facts.labels("domain", rows),
        facts.labels("lang", rows),
        facts.labels("source_id", rows),
        dates,
        [stratum(day, cutoff) for day in dates] if cutoff else repeat(None),
        facts.wrong_lengths(rows, 0).tolist(),
        facts.merges(rows).tolist(),
    )


def _changes(
    base: ItemScores, adapted: ItemScores | None, right: Values
) -> list[Iterable[float | None]]:
    """Return dI under the adapter, its changes, p before and after, and d log P of each item."""
    p_base = base.p_right().tolist()
    if adapted is None:
        return [*([repeat(None)] * 4), p_base, repeat(None), repeat(None)]
    is_there = np.isin(base.rows, adapted.rows, assume_unique=True)
    before, after = base.only(adapted), adapted.only(base)

    def change(name: str) -> Values:
        return after.column(name) - before.column(name)

    def of_all(values: Values) -> list[float | None]:
        if is_there.all():
            return cast(list[float | None], values.tolist())
        found = iter(values.tolist())
        return [next(found) if there else None for there in is_there.tolist()]

    names = ("delta_i_nats", "conditional_nats", "prior_nats")
    return [
        of_all(after.column("delta_i_nats")),
        *(of_all(change(name)) for name in names),
        p_base,
        of_all(after.p_right()),
        of_all(change("logp_nats") / right[is_there]),
    ]


def _continuation(
    item_id: str, group: str, text: TextScore, after: TextScore | None, cutoff: date | None
) -> ItemNumbers:
    change = None if after is None else (after.logp_nats - text.logp_nats) / text.n_tokens
    return ItemNumbers(
        id=item_id,
        group=group,
        delta_i_base_nats=None,
        delta_i_nats=None,
        ddi_nats=None,
        d_cond_nats=None,
        d_prior_nats=None,
        p_right_base=None,
        p_right=None,
        dlogp_per_token_nats=change,
        n_tokens=text.n_tokens,
        kind="continuation",
        domain=text.domain,
        lang=text.lang,
        source_id=text.source_id,
        published_at=text.published_at,
        stratum=stratum(text.published_at, cutoff) if cutoff else None,
        n_tokens_wrong=None,
        boundary_merge=text.boundary_mismatch,
    )


def _column(key: str, heading: str, form: Form = "signed") -> Column[ItemNumbers]:
    return Column(key, heading, attrgetter(key), form)


# Those of the page, and those of the files alone, in the order of `ItemNumbers`.
ITEM_COLUMNS = (
    _column("id", "item", "text"),
    _column("group", "group", "text"),
    _column("delta_i_base_nats", "dI base, nats"),
    _column("delta_i_nats", "dI adapter, nats"),
    _column("ddi_nats", "ddI, nats"),
    _column("d_cond_nats", "d_cond, nats"),
    _column("d_prior_nats", "d_prior, nats"),
    _column("p_right_base", "p right, base", "number"),
    _column("p_right", "p right, adapter", "number"),
    _column("dlogp_per_token_nats", "change of log P, nats/token", "fine"),
    _column("n_tokens", "tokens", "count"),
)
FILE_COLUMNS = (
    _column("kind", "kind", "text"),
    _column("domain", "domain", "text"),
    _column("lang", "language", "text"),
    _column("source_id", "source", "text"),
    _column("published_at", "published", "text"),
    _column("stratum", "stratum", "text"),
    _column("n_tokens_wrong", "tokens of wrong options, mean", "number"),
    _column("boundary_merge", "boundary merge", "text"),
)


def items_table(focus: Focus, found: ScoredItems) -> Table:
    """Return a row per item; for a continuation only its log-probability."""
    note = (
        "p right: share of the right option in the softmax over the item's candidates; change of "
        "log P and tokens: of the right option, or of the continuation"
    )
    title = f"Every item under {focus.highlighted or 'the base'}"
    lines = [Line(item, focus.highlighted) for item in found.items]
    return Table("items", title, (*ITEM_COLUMNS, *FILE_COLUMNS), lines, note)
