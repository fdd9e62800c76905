"""Models less the reference, paired by item, with sources as units.

The difference of the right option's share is tested by the deciding test (`cqa.stats.deciding`),
the accuracies by McNemar's exact test; both are corrected by Holm over the models of a reading.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
from scipy.stats import binomtest

from cqa.compare.systems import ItemValues, Scored, bits_per_byte
from cqa.schema.compared import READINGS, Contrast, GroupResult, Ranking, SystemResult
from cqa.schema.result import Interval
from cqa.stats.clusters import by_source, source_numbers
from cqa.stats.deciding import FEWEST_SOURCES, family_test
from cqa.stats.text_tests import holm

SEED = 0


def group_result(group: str, systems: Sequence[Scored], reference: Scored) -> GroupResult | None:
    """Compare models on a group of pairs; None where no item of it is common to all."""
    keys = common_keys(group, systems)
    if not keys:
        return None
    sources = [reference.items[key].source_id for key in keys]
    return GroupResult(
        n_items=len(keys),
        n_sources=len(set(source_numbers(sources).tolist())),
        systems=tuple(_system_result(scored, keys) for scored in systems),
        contrasts=tuple(
            contrast
            for reading in READINGS
            for contrast in _corrected(
                [
                    _contrast(scored, reference, group, reading)
                    for scored in systems
                    if scored is not reference
                    and all(reading in s.system.readings for s in (scored, reference))
                ]
            )
        ),
    )


def common_keys(group: str, systems: Sequence[Scored]) -> list[str]:
    """Return the items of a group of pairs that all models have, in the order of the first."""
    first, *others = systems
    return [
        key
        for key, item in first.items.items()
        if item.group == group
        and item.answer is not None
        and all(key in scored.items for scored in others)
    ]


def _system_result(scored: Scored, keys: Sequence[str]) -> SystemResult:
    items = [scored.items[key] for key in keys]
    return SystemResult(
        system=scored.system.name,
        rankings={reading: _ranking(items, reading) for reading in scored.system.readings},
        bits_per_byte=bits_per_byte(items),
    )


def _ranking(items: Sequence[ItemValues], reading: str) -> Ranking:
    rng = np.random.default_rng(SEED)
    shares = [item.shares[reading] for item in items]
    right = [share[item.right] for item, share in zip(items, shares, strict=True)]
    drawn = [share[rng.integers(len(share))] for share in shares]
    sources = [item.source_id for item in items]
    return Ranking(
        mean_rank_prob=float(np.mean(right)),
        ci95=_mean_test(right, sources, 0)[1],
        accuracy=float(np.mean([item.is_first[reading] for item in items])),
        permuted_mean_rank_prob=float(np.mean(drawn)),
        permuted_ci95=_mean_test(drawn, sources, 0)[1],
        chance=float(np.mean([1 / len(share) for share in shares])),
    )


def _mean_test(
    values: Sequence[float], sources: Sequence[str | None], least: float
) -> tuple[float | None, Interval | None]:
    """Return two-sided p and interval of a mean of numbers from `least` to 1; few sources: none."""
    clusters = by_source({"": values}, sources)
    if clusters.n_sources < FEWEST_SOURCES:
        return None, None
    test = family_test(clusters).changes[""]
    if test.ci95 is None or test.p_greater is None or test.p_less is None:
        return None, None
    low, high = test.ci95
    p = min(1.0, 2 * min(test.p_greater, test.p_less))
    return p, (max(least, low), min(1.0, high))


@dataclass(frozen=True, slots=True)
class _Pairs:
    """One number an item under two models."""

    shares: list[float]  # differences
    right: list[tuple[bool, bool]]
    sources: list[str | None]


def _contrast(scored: Scored, reference: Scored, group: str, reading: str) -> Contrast:
    ours, theirs = (
        {k: i for k, i in s.items.items() if i.group == group and i.answer is not None}
        for s in (scored, reference)
    )
    pairs = _paired([(ours[key], theirs[key]) for key in ours if key in theirs], reading)
    alone = [sum(a > b for a, b in pairs.right), sum(b > a for a, b in pairs.right)]
    n = len(pairs.shares)
    p, ci95 = _mean_test(pairs.shares, pairs.sources, -1) if n else (None, None)
    return Contrast(
        system=scored.system.name,
        reference=reference.system.name,
        reading=reading,
        n_items=n,
        n_sources=len(set(source_numbers(pairs.sources).tolist())),
        n_only_system=len(ours) - n,
        n_only_reference=len(theirs) - n,
        rank_prob_difference=float(np.mean(pairs.shares)) if n else None,
        ci95=ci95,
        p=p,
        p_holm=None,
        accuracy_difference=(alone[0] - alone[1]) / n if n else None,
        n_right_system_alone=alone[0],
        n_right_reference_alone=alone[1],
        mcnemar_p=mcnemar(*alone) if n else None,
        mcnemar_p_holm=None,
    )


def _paired(both: Sequence[tuple[ItemValues, ItemValues]], reading: str) -> _Pairs:
    return _Pairs(
        [
            a.shares[reading][a.right] - b.shares[reading][b.right]
            for a, b in both
        ],
        [(a.is_first[reading], b.is_first[reading]) for a, b in both],
        [b.source_id for _, b in both],
    )  # fmt: skip


def mcnemar(n_one: int, n_other: int) -> float:
    """Return the exact two-sided p of McNemar's test; 1 where the two never differ.

    Args:
        n_one: Items that one alone has right.
        n_other: Those that the other alone has right.
    """
    n = n_one + n_other
    return float(binomtest(n_one, n, 0.5).pvalue) if n else 1.0


def _corrected(contrasts: Sequence[Contrast]) -> Iterator[Contrast]:
    p_holm = holm([contrast.p for contrast in contrasts])
    mcnemar_p_holm = holm([contrast.mcnemar_p for contrast in contrasts])
    for contrast, p, other in zip(contrasts, p_holm, mcnemar_p_holm, strict=True):
        yield replace(contrast, p_holm=p, mcnemar_p_holm=other)
