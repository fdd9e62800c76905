"""Bootstrap intervals of a mean."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt
from scipy import special

from cqa.stats import moments
from cqa.stats.clusters import source_numbers
from cqa.stats.tests import ALPHA, Floats, spread

Values = npt.NDArray[np.float64]


def bca_interval(
    values: Floats,
    *,
    clusters: Sequence[str] | None = None,
    level: float = 1 - ALPHA,
    draws: int = 10_000,
    seed: int = 0,
) -> tuple[float, float] | None:
    """Return the BCa bootstrap interval of the mean; whole clusters are drawn where given.

    None where it does not exist: fewer than two clusters, or no spread of their means. Of very many
    clusters it comes from moments (`cqa.stats.moments`).

    Source: Efron 1987, "Better bootstrap confidence intervals"; clusters as in Davison & Hinkley
    1997, section 3.8.
    """
    sums, sizes = _cluster_sums(np.asarray(values, dtype=np.float64), clusters)
    n = len(sums)
    if not spread(sums / sizes):
        return None
    mean = float(sums.sum() / sizes.sum())
    z = special.ndtri([(1 - level) / 2, (1 + level) / 2])
    residuals = sums - sizes * mean
    if moments.many(residuals):
        root = float(np.sqrt((residuals**2).sum()))
        ends = moments.bca_ends(z, float((residuals**3).sum()) / root**3)
        low, high = mean + ends * root / sizes.sum()
        return float(low), float(high)
    rng = np.random.default_rng(seed)
    resampled = np.empty(draws)
    for part in _parts(draws, n):
        picks = rng.integers(0, n, (part.stop - part.start, n))
        resampled[part] = sums[picks].sum(1) / sizes[picks].sum(1)
    below = (np.sum(resampled < mean) + np.sum(resampled == mean) / 2) / draws
    if not 0 < below < 1:
        return None
    bias = special.ndtri(below)
    left_out = (sums.sum() - sums) / (sizes.sum() - sizes)
    centred = left_out.mean() - left_out
    acceleration = float((centred**3).sum() / (6 * (centred**2).sum() ** 1.5))
    shares = special.ndtr(bias + (bias + z) / (1 - acceleration * (bias + z)))
    low, high = np.quantile(resampled, shares)
    return float(low), float(high)


def _parts(draws: int, n: int) -> Iterator[slice]:
    """Yield slices of the draws that need a few megabytes each, however many items there are."""
    size = max(1, 1_000_000 // n)
    return (slice(first, min(draws, first + size)) for first in range(0, draws, size))


def _cluster_sums(values: Values, clusters: Sequence[str] | None) -> tuple[Values, Values]:
    if clusters is None:
        return values, np.ones_like(values)
    if len(clusters) < moments.MANY_SOURCES:
        _, index = np.unique(np.asarray(clusters), return_inverse=True)
    else:  # not sorted by name, for which a million take seconds
        index = source_numbers(clusters)
    sums: Values = np.bincount(index, weights=values).astype(np.float64)
    return sums, np.bincount(index).astype(np.float64)
