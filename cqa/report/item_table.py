"""Every item under the base and the shown adapter: its numbers, its texts, its tokens."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from cqa.report.focus import DOMAIN, GROUP, View
from cqa.report.tables import Column, Table
from cqa.schema.rows import ItemRow, ItemText, OptionScore
from cqa.stats.information import contrast, softmax
from cqa.stats.strata import read_cutoff, stratum

Row = dict[str, Any]
N_TEXTS = 500  # items whose texts the page holds; items.jsonl holds all
SCALE = 100  # token log-probabilities in the page are whole hundredths of a nat


@dataclass(frozen=True, slots=True)
class ScoredItem:
    """An item with its rows under the base and under the shown adapter."""

    item: ItemText | None  # None where items.jsonl has it not
    base: ItemRow
    adapted: ItemRow | None

    @property
    def ddi_nats(self) -> float | None:
        """Change of dI; None for a continuation or without an adapter."""
        if self.adapted is None or self.adapted.delta_i_nats is None:
            return None
        return self.adapted.delta_i_nats - (self.base.delta_i_nats or 0.0)


def scored_items(view: View) -> list[ScoredItem]:
    """Return all items: the primary group first, in each the largest ddI first."""
    base = {row.id: row for row in view.source.rows(None)}
    adapted = {row.id: row for row in view.source.rows(view.shown)} if view.shown else {}
    found = [
        ScoredItem(view.source.items.get(item_id), row, adapted.get(item_id))
        for item_id, row in base.items()
    ]
    groups = {group: k for k, group in enumerate(dict.fromkeys([view.primary, *_all(found)]))}

    def place(scored: ScoredItem) -> tuple[bool, int, float]:
        row = scored.base
        return row.kind == "continuation", groups[row.group], -(scored.ddi_nats or 0.0)

    return sorted(found, key=place)


def _all(found: list[ScoredItem]) -> list[str]:
    return [scored.base.group for scored in found]


ITEM_COLUMNS = (
    Column("id", "item", "text"),
    GROUP,
    Column("delta_i_base_nats", "dI base, nats", "signed"),
    Column("delta_i_nats", "dI adapter, nats", "signed"),
    Column("ddi_nats", "ddI, nats", "signed"),
    Column("d_cond_nats", "d_cond, nats", "signed"),
    Column("d_prior_nats", "d_prior, nats", "signed"),
    Column("p_right_base", "p right, base", "number"),
    Column("p_right", "p right, adapter", "number"),
    Column("dlogp_per_token_nats", "change of log P, nats/token", "fine"),
    Column("n_tokens", "tokens", "count"),
)
FILE_COLUMNS = (
    Column("kind", "kind", "text"),
    DOMAIN,
    Column("lang", "language", "text"),
    Column("source_id", "source", "text"),
    Column("published_at", "published", "text"),
    Column("stratum", "stratum", "text"),
    Column("n_tokens_wrong", "tokens of wrong options, mean", "number"),
    Column("boundary_merge", "boundary merge", "text"),
)


def items_table(view: View, found: list[ScoredItem]) -> Table:
    """Return a row per item; for a continuation only its log-probability."""
    rows = [_numbers(scored, view.summary["cutoff"]) for scored in found]
    return Table(
        "items", f"Every item under {view.shown or 'the base'}", ITEM_COLUMNS + FILE_COLUMNS, rows,
        "p right: share of the right option in the softmax over the item's candidates; change of "
        "log P and tokens: of the right option, or of the continuation",
    )  # fmt: skip


def _numbers(scored: ScoredItem, cutoff: str | None) -> Row:
    base, adapted = scored.base, scored.adapted
    answer = base.answer
    right = base.options[answer or 0]
    row: Row = {
        "id": base.id,
        "group": base.group,
        "kind": base.kind,
        "domain": base.domain,
        "lang": base.lang,
        "source_id": base.source_id,
        "published_at": base.published_at,
        "stratum": stratum(base.published_at, read_cutoff(cutoff)) if cutoff else None,
        "n_tokens": right.n_tokens,
        "boundary_merge": any(option.boundary_merge for option in base.options),
        "ddi_nats": scored.ddi_nats,
    }
    if adapted is not None:
        after = adapted.options[answer or 0].logp_given_context_nats
        moved = (after - right.logp_given_context_nats) / right.n_tokens
        row["dlogp_per_token_nats"] = moved
    if answer is not None:
        wrong = [o.n_tokens for k, o in enumerate(base.options) if k != answer]
        row["n_tokens_wrong"] = sum(wrong) / len(wrong)
        row |= _contrasts(base, adapted, answer)
    return row


def _contrasts(base: ItemRow, adapted: ItemRow | None, answer: int) -> Row:
    def given(row: ItemRow) -> list[float]:
        return [option.logp_given_context_nats for option in row.options]

    def null(row: ItemRow) -> list[float]:
        return [option.logp_null_nats for option in row.options]

    found = {
        "delta_i_base_nats": base.delta_i_nats,
        "p_right_base": softmax(given(base))[answer],
    }
    if adapted is not None:
        found |= {
            "delta_i_nats": adapted.delta_i_nats,
            "p_right": softmax(given(adapted))[answer],
            "d_cond_nats": contrast(given(adapted), answer) - contrast(given(base), answer),
            "d_prior_nats": contrast(null(adapted), answer) - contrast(null(base), answer),
        }
    return found


def texts_of(scored: ScoredItem, *, score_eos: bool) -> Row:
    """Return an item's context and options with their sums and, where scored, their tokens."""
    item = scored.item
    options = []
    for k, before in enumerate(scored.base.options):
        after = scored.adapted.options[k] if scored.adapted else None
        options.append(
            {
                "role": before.role,
                "text": item.options[k] if item else None,
                "given_base": before.logp_given_context_nats,
                "given": after and after.logp_given_context_nats,
                "null_base": before.logp_null_nats,
                "null": after and after.logp_null_nats,
                "n_tokens": before.n_tokens,
                "tokens": _tokens(before, after, score_eos),
            }
        )
    return {
        "context": item.context if item else None,
        "lang": item.lang if item else None,
        "options": options,
    }


def _tokens(before: OptionScore, after: OptionScore | None, score_eos: bool) -> Row | None:
    """Return where the option's tokens end and what they score; pieces of a character are one."""
    ends, columns = before.token_char_ends, []
    for option in (before, after) if after else (before,):
        given, null = option.token_logp_given_context_nats, option.token_logp_null_nats
        if given is None or null is None:
            return None
        columns += [given, null]
    if ends is None:
        return None
    last = len(ends) - 1
    places: list[int] = []
    sums: list[list[float]] = []
    for k, end in enumerate(ends):
        is_end_token = score_eos and k == last
        if places and end == places[-1] and not is_end_token:
            sums[-1] = [total + column[k] for total, column in zip(sums[-1], columns, strict=True)]
        else:
            places.append(end)
            sums.append([column[k] for column in columns])
    names = ("base", "null_base", "adapter", "null_adapter")
    values = {
        name: [round(SCALE * row[k]) for row in sums]
        for k, name in enumerate(names[: len(columns)])
    }
    return {"ends": places, **values}
