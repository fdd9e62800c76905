"""The texts that the page holds of an item: its options with their sums and their tokens."""

from __future__ import annotations

from dataclasses import dataclass

from cqa.schema.rows import ItemRow, ItemText, OptionScore

SCALE = 100  # token log-probabilities in the page are whole hundredths of a nat


@dataclass(slots=True)
class ScoredItem:
    """An item with its texts and its rows under the base and under the highlighted adapter."""

    base: ItemRow
    adapted: ItemRow | None = None
    text: ItemText | None = None  # None where items.jsonl has it not


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
