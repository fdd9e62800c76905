"""Statistics that are no mean of items, such as a correlation, tested as the means are."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from cqa.claims.effects import Measured, tested, why_untested
from cqa.schema.claims import Effect, Part
from cqa.stats.association import difference
from cqa.stats.clusters import Numbers, source_numbers
from cqa.stats.deciding import draws_for
from cqa.stats.resampling import Statistic, blocks_of, influences, statistic_interval
from cqa.stats.tests import ALPHA


@dataclass(frozen=True, slots=True)
class Associated:
    """One statistic of the items under every model."""

    name: str
    label: str
    part: Part
    statistics: Mapping[str | None, Statistic]  # the base (None) first
    claimed: Literal["greater", "less"] = "greater"


def excess_of(one: Associated, null: Associated, name: str, label: str) -> Associated:
    """Return a statistic minus that of its null control, under each model."""
    found = {a: difference(held, null.statistics[a]) for a, held in one.statistics.items()}
    return Associated(name, label, "excess", found, one.claimed)


def change_of_statistic(one: Associated, name: str, label: str) -> Associated:
    """Return a statistic under each adapter minus that under the base, of the same items."""
    base = one.statistics[None]
    found: dict[str | None, Statistic] = {
        a: difference(s, base) for a, s in one.statistics.items() if a is not None
    }
    return Associated(name, label, "change", found, one.claimed)


def association_effects(
    associated: Sequence[Associated], groups: Sequence[str], sources: Sequence[str | None]
) -> list[Effect]:
    """Test each statistic over all items, and over those of each group where there are several.

    p is that of the mean of the sources' influences, by the test of every mean; the interval is
    BCa over sources, at 1 - 5 % / K for K models.

    Args:
        associated: What was measured, items in one order.
        groups: The group of each item.
        sources: The source of each item.
    """
    names = list(dict.fromkeys(groups))
    return [
        effect
        for one in associated
        for group in (None, *(names if len(names) > 1 else ()))
        for effect in _of_group(one, groups, sources, group)
    ]


def _of_group(
    one: Associated, groups: Sequence[str], sources: Sequence[str | None], group: str | None
) -> Iterator[Effect]:
    kept = np.array([group in (None, name) for name in groups])
    blocks = blocks_of(sources, kept)
    found = {a: influences(s, blocks) for a, s in one.statistics.items()}
    live = {a: held[1] for a, held in found.items() if held is not None}
    measured = Measured(one.name, one.label, one.part, live, one.claimed)
    names = [str(k) for k in range(int(blocks.max()) + 1)]
    by_adapter = {e.adapter: e for e in tested(measured, live, names, group)}
    n, n_sources = int(kept.sum()), _n_sources(sources, kept)
    for adapter, statistic in one.statistics.items():
        effect = by_adapter.get(adapter) or _absent(one, adapter, group, n_sources)
        ends = _interval(statistic, blocks, len(live)) if adapter in live else None
        yield replace(effect, n=n, n_sources=n_sources, ci95=ends)


def _interval(statistic: Statistic, blocks: Numbers, n_models: int) -> tuple[float, float] | None:
    return statistic_interval(
        statistic, blocks, level=1 - ALPHA / n_models, draws=draws_for(len(blocks))
    )


def _n_sources(sources: Sequence[str | None], kept: np.ndarray) -> int:
    held = [s for s, k in zip(sources, kept, strict=True) if k]
    return int(source_numbers(held).max()) + 1


def _absent(one: Associated, adapter: str | None, group: str | None, n_sources: int) -> Effect:
    return Effect(
        name=one.name, label=one.label, part=one.part, adapter=adapter, group=group, value=None,
        ci95=None, p=None, p_against=None, n=0, n_sources=None,
        untested=why_untested(n_sources),
    )  # fmt: skip
