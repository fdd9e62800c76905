"""A row of scores.jsonl reduced to what the statistics of pairs need."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from cqa.schema.rows import ItemRow, OptionScore
from cqa.stats.contamination import min_k_percent
from cqa.stats.information import contrast, delta_i_best_wrong, place_of_largest, softmax

LENGTHS = ("n_tokens", "n_bytes", "n_chars")
VARIANTS = {  # dI in other ways than as the sum over tokens after the first null context
    "null2": "sum over tokens, second ∅, nats",
    "per_token": "mean over tokens, nats/token",
    "per_byte": "mean over bytes, nats/byte",
    "per_char": "mean over characters, nats/char",
    "best_wrong": "sum over tokens, against the strongest wrong option, nats",
}
OF_PMI = tuple(name for name in VARIANTS if name != "null2")  # of S(x|y) - S(x|null)


@dataclass(frozen=True, slots=True)
class ItemScore:
    """What the statistics need of one item under one model; option 0 of `p_*` is the right one."""

    logp_nats: float  # S(x|y) of the right option
    delta_i_nats: float
    conditional_nats: float  # S(good|y) - mean S(bad|y)
    prior_nats: float  # the same after the null context
    delta_i_null2_nats: float | None  # after the second null context; None: not measured
    variants: tuple[float, ...]  # dI in the order of OF_PMI
    null2_lengths: tuple[float, ...] | None  # the same per token and per byte
    entropy_given_nats: float | None  # per token, over the tokens of all options; None: not given
    entropy_null_nats: float | None
    p_given: tuple[float, ...]  # softmax of S(x|y) over the candidates
    p_null: tuple[float, ...]
    is_first: bool  # whether the right option has the largest S(x|y), the earliest among equals
    is_first_per_byte: bool  # the same of S(x|y) / bytes of x
    min_k: float | None  # Min-K% of the right option alone, nats/token; None without --tokens


@dataclass(frozen=True, slots=True)
class ItemFacts:
    """What is known of an item whatever the model."""

    domain: str | None
    source_id: str | None
    published_at: str | None
    right_lengths: tuple[int, ...]  # in the order of LENGTHS
    wrong_lengths: tuple[float, ...]  # means over the wrong options
    boundary_mismatch: bool
    lang: str | None = None
    kind: str | None = None


def item_score(row: ItemRow) -> ItemScore:
    """Reduce a row of scores.jsonl to what the statistics need.

    Raises:
        ValueError: It is a continuation, which has no right option.
    """
    answer, delta_i, options = row.answer, row.delta_i_nats, row.options
    if answer is None or delta_i is None:
        raise ValueError(f"expected a choice, got the continuation `{row.id}`")
    given = [o.logp_given_context_nats for o in options]
    null = [o.logp_null_nats for o in options]
    pmi = [o.pmi_nats for o in options]
    pmi2 = _pmi_null2(options)
    n_tokens = sum(o.n_tokens for o in options)
    order = [answer, *(k for k in range(len(options)) if k != answer)]
    p_given, p_null = softmax(given), softmax(null)
    return ItemScore(
        logp_nats=given[answer],
        delta_i_nats=delta_i,
        conditional_nats=contrast(given, answer),
        prior_nats=contrast(null, answer),
        delta_i_null2_nats=None if pmi2 is None else contrast(pmi2, answer),
        variants=(
            *_per_length(pmi, options, answer),
            delta_i_best_wrong(pmi, answer),
        ),
        null2_lengths=None if pmi2 is None else _per_length(pmi2, options, answer)[:2],
        entropy_given_nats=_per_token([o.entropy_given_context_nats for o in options], n_tokens),
        entropy_null_nats=_per_token([o.entropy_null_nats for o in options], n_tokens),
        p_given=tuple(p_given[k] for k in order),
        p_null=tuple(p_null[k] for k in order),
        is_first=place_of_largest(given) == answer,
        is_first_per_byte=place_of_largest([o.logp_given_context_nats / o.n_bytes for o in options])
        == answer,
        min_k=min_k_percent(options[answer].token_logp_null_nats),
    )


def _per_token(totals: Sequence[float | None], n_tokens: int) -> float | None:
    """Return a sum over all options per token; None where an option has none."""
    known = [total for total in totals if total is not None]
    return sum(known) / n_tokens if len(known) == len(totals) else None


def _per_length(
    pmi_nats: Sequence[float], options: Sequence[OptionScore], answer: int
) -> tuple[float, ...]:
    """Return dI per unit of LENGTHS."""
    return tuple(
        contrast([i / n for i, n in zip(pmi_nats, lengths, strict=True)], answer)
        for lengths in zip(*map(_lengths, options), strict=True)
    )


def _pmi_null2(options: Sequence[OptionScore]) -> list[float] | None:
    """Return I(x; y) after the second null context; None where it was not measured."""
    pmi = [
        o.logp_given_context_nats - o.logp_null2_nats
        for o in options
        if o.logp_null2_nats is not None
    ]
    return pmi if len(pmi) == len(options) else None


def _lengths(option: OptionScore) -> tuple[int, int, int]:
    """Return an option's length in the order of LENGTHS."""
    return option.n_tokens, option.n_bytes, option.n_chars


def item_facts(row: ItemRow) -> ItemFacts:
    """Return what a row says of its item."""
    wrong = [_lengths(option) for k, option in enumerate(row.options) if k != row.answer]
    return ItemFacts(
        row.domain,
        row.source_id,
        row.published_at,
        _lengths(row.options[row.answer or 0]),
        tuple(sum(lengths) / len(lengths) for lengths in zip(*wrong, strict=True)),
        any(option.boundary_mismatch for option in row.options),
        row.lang,
        row.kind,
    )
