"""Several training runs that differ in their seed only: items and seeds both vary."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

from cqa.schema.provenance import Provenance
from cqa.schema.verdict import SeedEffect
from cqa.stats.clusters import Values, source_numbers


@dataclass(frozen=True, slots=True)
class OverSeeds:
    """The mean change over items (within sources) and seeds."""

    mean: float
    error: float
    df: int  # the smaller of sources and seeds, less one
    p_greater: float | None
    ci95: tuple[float, float] | None
    by_seed: tuple[float, ...]  # mean of each run
    sd_of_seeds: float
    n_items: int
    n_sources: int
    n_seeds: int


def over_seeds(
    values: Sequence[Sequence[float] | Values], sources: Sequence[str | None]
) -> OverSeeds | None:
    """Test the mean change over items and seeds against zero, both taken as samples.

    The variance is two-way cluster-robust (sources and seeds crossed), never below either alone;
    t has as many degrees of freedom as the scarcer of the two allows. None for one seed or source.

    Source: Cameron, Gelbach & Miller 2011, "Robust inference with multiway clustering".

    Args:
        values: The items' changes under each run: (seeds, items).
        sources: The source of each item; an item without one is a source of its own.
    """
    table = np.asarray(values, dtype=np.float64)
    n_seeds, n = table.shape
    numbers = source_numbers(sources)
    g = int(numbers.max(initial=-1)) + 1
    if n_seeds < 2 or g < 2:
        return None
    mean = float(table.mean())
    residuals = table - mean
    cells = np.stack([np.bincount(numbers, weights=row) for row in residuals])  # (seeds, G)
    total = table.size**2
    by_source = (cells.sum(0) ** 2).sum() * g / (g - 1) / total
    by_seed = (cells.sum(1) ** 2).sum() * n_seeds / (n_seeds - 1) / total
    by_cell = (cells**2).sum() * (g * n_seeds) / (g * n_seeds - 1) / total
    error = math.sqrt(max(by_source + by_seed - by_cell, by_source, by_seed))
    df = min(g, n_seeds) - 1
    means = table.mean(1)
    p = ci95 = None
    if error > 1e-12 * float(np.abs(table).max()):
        half = float(stats.t.ppf(0.975, df)) * error
        p, ci95 = float(stats.t.sf(mean / error, df)), (mean - half, mean + half)
    return OverSeeds(
        mean, error, df, p, ci95, tuple(means.tolist()), float(means.std(ddof=1)), n, g, n_seeds
    )


def seed_effects(
    ddi: Mapping[str, Values], sources: Sequence[str | None], made: Mapping[str, Provenance]
) -> tuple[SeedEffect, ...]:
    """Return each epoch of runs that differ in their seed only, over the seeds.

    Args:
        ddi: The items' changes under each adapter, nats.
        sources: The source of each item; an item without one is a source of its own.
        made: What the adapters say of their training; those that say nothing belong to none.
    """
    alike: dict[tuple[str, int], dict[str, str]] = {}
    for name in ddi:
        known = made.get(name, Provenance())
        if known.recipe is not None and known.seed is not None and known.epoch is not None:
            alike.setdefault((known.recipe, known.epoch), {}).setdefault(known.seed, name)
    effects = []
    for (_, epoch), adapters in sorted(alike.items(), key=lambda held: held[0][1]):
        found = over_seeds([ddi[name] for name in adapters.values()], sources)
        if found is not None:
            placebo = made[next(iter(adapters.values()))].placebo
            effects.append(_effect(epoch, placebo, adapters, found))
    return tuple(effects)


def _effect(epoch: int, placebo: bool, adapters: dict[str, str], found: OverSeeds) -> SeedEffect:
    return SeedEffect(
        epoch=epoch,
        placebo=placebo,
        adapters=adapters,
        mean_ddi_nats=found.mean,
        ci95_nats=found.ci95,
        p=found.p_greater,
        df=found.df,
        mean_by_seed_nats=dict(zip(adapters, found.by_seed, strict=True)),
        sd_of_seeds_nats=found.sd_of_seeds,
        n_items=found.n_items,
        n_sources=found.n_sources,
        n_seeds=found.n_seeds,
    )
