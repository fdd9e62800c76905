"""Every item under the base and the highlighted adapter: its numbers, its texts, its tokens."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from cqa.report.focus import DOMAIN, GROUP, Focus
from cqa.report.tables import Cell, Column, Placed, Table, tabulate
from cqa.schema.rows import ItemRow, ItemText, OptionScore
from cqa.stats.items import ItemFacts, ItemScore
from cqa.stats.strata import read_cutoff, stratum

N_TEXTS = 500  # items whose texts the page holds; items.jsonl holds all
SCALE = 100  # token log-probabilities in the page are whole hundredths of a nat


@dataclass(frozen=True, slots=True)
class ScoredItem:
    """An item with its rows under the base and under the highlighted adapter."""

    text: ItemText | None  # None where items.jsonl has it not
    base: ItemRow
    adapted: ItemRow | None
    choice: ScoredChoice | None  # None for a continuation

    @property
    def ddi_nats(self) -> float | None:
        """Change of dI; None for a continuation or without an adapter."""
        return self.choice.ddi_nats if self.choice else None


@dataclass(frozen=True, slots=True)
class ScoredChoice:
    """What the statistics made of an item with a right option."""

    facts: ItemFacts
    base: ItemScore
    adapted: ItemScore | None

    @property
    def ddi_nats(self) -> float | None:
        """Change of dI."""
        return self.adapted.delta_i_nats - self.base.delta_i_nats if self.adapted else None

    @property
    def d_cond_nats(self) -> float | None:
        """Its conditional part."""
        return self.adapted.conditional_nats - self.base.conditional_nats if self.adapted else None

    @property
    def d_prior_nats(self) -> float | None:
        """Its prior part."""
        return self.adapted.prior_nats - self.base.prior_nats if self.adapted else None


Items = Column[Placed[ScoredItem]]


def scored_items(focus: Focus) -> list[ScoredItem]:
    """Return all items: the primary group first, in each the largest ddI first."""
    base = {row.id: row for row in focus.source.rows(None)}
    name = focus.highlighted
    adapted = {row.id: row for row in focus.source.rows(name)} if name is not None else {}
    found = [
        ScoredItem(focus.source.items.get(i), row, adapted.get(i), _choice(focus, row))
        for i, row in base.items()
    ]
    names = dict.fromkeys([focus.primary, *(scored.base.group for scored in found)])
    groups = {group: k for k, group in enumerate(names)}

    def place(scored: ScoredItem) -> tuple[bool, int, float]:
        row = scored.base
        return row.kind == "continuation", groups[row.group], -(scored.ddi_nats or 0.0)

    return sorted(found, key=place)


def _choice(focus: Focus, row: ItemRow) -> ScoredChoice | None:
    if row.kind == "continuation":
        return None
    scores = focus.source.scores
    models = scores.items[row.group]
    adapted = models.get(focus.highlighted) if focus.highlighted is not None else None
    after = None if adapted is None else adapted.get(row.id)
    return ScoredChoice(scores.facts[row.id], models[None][row.id], after)


def items_table(focus: Focus, found: list[ScoredItem]) -> Table:
    """Return a row per item; for a continuation only its log-probability."""
    cutoff = read_cutoff(focus.summary.cutoff) if focus.summary.cutoff else None

    def stratum_of(row: Placed[ScoredItem]) -> Cell:
        return stratum(row.result.base.published_at, cutoff) if cutoff else None

    columns: tuple[Items, ...] = (
        *ITEM_COLUMNS,
        Column("kind", "kind", lambda r: r.result.base.kind, "text"),
        DOMAIN,
        Column("lang", "language", lambda r: r.result.base.lang, "text"),
        Column("source_id", "source", lambda r: r.result.base.source_id, "text"),
        Column("published_at", "published", lambda r: r.result.base.published_at, "text"),
        Column("stratum", "stratum", stratum_of, "text"),
        Column(
            "n_tokens_wrong",
            "tokens of wrong options, mean",
            _of_choice(lambda c: c.facts.wrong_lengths[0]),
            "number",
        ),
        Column("boundary_merge", "boundary merge", _boundary_merge, "text"),
    )
    rows = [Placed(s, s.base.group, focus.highlighted, s.base.domain) for s in found]
    note = (
        "p right: share of the right option in the softmax over the item's candidates; change of "
        "log P and tokens: of the right option, or of the continuation"
    )
    title = f"Every item under {focus.highlighted or 'the base'}"
    return tabulate("items", title, columns, rows, note)


def _right(row: ItemRow) -> OptionScore:
    return row.options[row.answer or 0]  # a continuation is its only option


def _of_choice(value: Callable[[ScoredChoice], Cell]) -> Callable[[Placed[ScoredItem]], Cell]:
    """Return a column's value that a continuation does not have."""

    def of(row: Placed[ScoredItem]) -> Cell:
        return None if row.result.choice is None else value(row.result.choice)

    return of


def _dlogp_per_token(row: Placed[ScoredItem]) -> Cell:
    if row.result.adapted is None:
        return None
    before, after = _right(row.result.base), _right(row.result.adapted)
    return (after.logp_given_context_nats - before.logp_given_context_nats) / before.n_tokens


def _boundary_merge(row: Placed[ScoredItem]) -> Cell:
    return any(option.boundary_merge for option in row.result.base.options)


ITEM_COLUMNS: tuple[Items, ...] = (
    Column("id", "item", lambda r: r.result.base.id, "text"),
    GROUP,
    Column("delta_i_base_nats", "dI base, nats", _of_choice(lambda c: c.base.delta_i_nats)),
    Column(
        "delta_i_nats",
        "dI adapter, nats",
        _of_choice(lambda c: c.adapted.delta_i_nats if c.adapted else None),
    ),
    Column("ddi_nats", "ddI, nats", lambda r: r.result.ddi_nats),
    Column("d_cond_nats", "d_cond, nats", _of_choice(lambda c: c.d_cond_nats)),
    Column("d_prior_nats", "d_prior, nats", _of_choice(lambda c: c.d_prior_nats)),
    Column("p_right_base", "p right, base", _of_choice(lambda c: c.base.p_given[0]), "number"),
    Column(
        "p_right",
        "p right, adapter",
        _of_choice(lambda c: c.adapted.p_given[0] if c.adapted else None),
        "number",
    ),
    Column("dlogp_per_token_nats", "change of log P, nats/token", _dlogp_per_token, "fine"),
    Column("n_tokens", "tokens", lambda r: _right(r.result.base).n_tokens, "count"),
)


@dataclass(frozen=True, slots=True)
class TokenValues:
    """Where an option's tokens end, in characters, and what they score, in 1 / SCALE nats."""

    ends: list[int]
    base: list[int]
    null_base: list[int]
    adapter: list[int] | None
    null_adapter: list[int] | None


@dataclass(frozen=True, slots=True)
class ShownOption:
    """An option of an item with its sums and, where scored, its tokens."""

    role: str
    text: str | None
    base: OptionScore
    adapted: OptionScore | None
    tokens: TokenValues | None


def shown_options(scored: ScoredItem, *, score_eos: bool) -> list[ShownOption]:
    """Return an item's options as the page shows them."""
    after = scored.adapted.options if scored.adapted else [None] * len(scored.base.options)
    return [
        ShownOption(
            option.role,
            scored.text.options[k] if scored.text else None,
            option,
            adapted,
            _tokens(option, adapted, score_eos),
        )
        for k, (option, adapted) in enumerate(zip(scored.base.options, after, strict=True))
    ]


def _tokens(before: OptionScore, after: OptionScore | None, score_eos: bool) -> TokenValues | None:
    """Return where the option's tokens end and what they score; pieces of a character are one."""
    options = (before, after) if after else (before,)
    columns = [
        values
        for o in options
        for values in (o.token_logp_given_context_nats, o.token_logp_null_nats)
        if values is not None
    ]
    ends = before.token_char_ends
    if ends is None or len(columns) < 2 * len(options):
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
    base, null_base, *rest = ([round(SCALE * row[k]) for row in sums] for k in range(len(columns)))
    adapter, null_adapter = rest or (None, None)
    return TokenValues(places, base, null_base, adapter, null_adapter)
