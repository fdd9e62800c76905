"""True continuations under the base and under an adapter: the paper's Table 2."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from cqa.schema.rows import ItemRow
from cqa.stats.compare import change, differences, listed, mean
from cqa.stats.tests import t_interval

Row = dict[str, Any]
BIT = math.log(2)


@dataclass(frozen=True, slots=True)
class TextScore:
    """What the statistics need of one continuation under one model."""

    logp_nats: float
    entropy_nats: float  # summed over the tokens, given the context
    n_tokens: int
    n_bytes: int
    domain: str | None
    source_id: str | None
    published_at: str | None


def text_score(row: ItemRow) -> TextScore:
    """Reduce a row of scores.jsonl to what the statistics need."""
    option = row.options[0]
    return TextScore(
        option.logp_given_context_nats,
        option.entropy_given_context_nats,
        option.n_tokens,
        option.n_bytes,
        row.domain,
        row.source_id,
        row.published_at,
    )


def compare_texts(base: Mapping[str, TextScore], adapted: Mapping[str, TextScore]) -> Row:
    """Return Table 2's rows of a group: all its texts, and each domain's."""
    ids = [item_id for item_id in base if item_id in adapted]
    domains = sorted({d for i in ids if (d := base[i].domain) is not None})
    return {
        **_stats(base, adapted, ids),
        "domains": {
            domain: _stats(base, adapted, [i for i in ids if base[i].domain == domain])
            for domain in domains
        },
    }


def _stats(base: Mapping[str, TextScore], adapted: Mapping[str, TextScore], ids: list[str]) -> Row:
    """Return the log-probability per token and per byte, before and after, and its change."""

    def both(value: Callable[[TextScore], float]) -> tuple[list[float], list[float]]:
        return [value(base[i]) for i in ids], [value(adapted[i]) for i in ids]

    before, after = both(lambda s: s.logp_nats / s.n_tokens)
    moved = differences(before, after)
    in_bits = change(*([value / BIT for value in values] for values in (before, after)))
    per_byte = change(*both(lambda s: s.logp_nats / s.n_bytes / BIT))
    return {
        "n": len(ids),
        "mean_logp_per_token_base_nats": mean(before),
        "mean_logp_per_token_nats": mean(after),
        "mean_dlogp_per_token_nats": mean(moved),
        "ci95_nats": listed(t_interval(moved)),
        "mean_logp_per_token_base_bits": in_bits["before"],
        "mean_logp_per_token_bits": in_bits["after"],
        "mean_dlogp_per_token_bits": in_bits["change"],
        "ci95_per_token_bits": in_bits["ci95"],
        "mean_logp_per_byte_base_bits": per_byte["before"],
        "mean_logp_per_byte_bits": per_byte["after"],
        "mean_dlogp_per_byte_bits": per_byte["change"],
        "ci95_per_byte_bits": per_byte["ci95"],
        "entropy_per_token_nats": change(*both(lambda s: s.entropy_nats / s.n_tokens)),
    }
