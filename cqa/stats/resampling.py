"""Bootstrap intervals of a mean and of any other statistic, and what each source adds to one."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np
import numpy.typing as npt
from scipy import special

from cqa.stats import moments
from cqa.stats.clusters import Numbers, source_numbers
from cqa.stats.tests import ALPHA, Floats, spread

Values = npt.NDArray[np.float64]
# Of B samples, how often each item is in them (B, N), to the statistic of each (B,); NaN where it
# does not exist.
Statistic = Callable[[Values], Values]
MOST_BLOCKS = 1000  # sources left out and drawn one by one; of more, blocks of them


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
    return _bca(resampled, mean, (sums.sum() - sums) / (sizes.sum() - sizes), z)


def _bca(
    resampled: Values, value: float, left_out: Values, z: Values
) -> tuple[float, float] | None:
    """Return the BCa interval by draws of a statistic and by its values without each cluster."""
    below = (np.sum(resampled < value) + np.sum(resampled == value) / 2) / len(resampled)
    if not 0 < below < 1:
        return None
    bias = special.ndtri(below)
    centred = left_out.mean() - left_out
    acceleration = float((centred**3).sum() / (6 * (centred**2).sum() ** 1.5))
    shares = special.ndtr(bias + (bias + z) / (1 - acceleration * (bias + z)))
    low, high = np.quantile(resampled, shares)
    return float(low), float(high)


def statistic_interval(
    statistic: Statistic,
    blocks: Numbers,
    *,
    level: float = 1 - ALPHA,
    draws: int = 10_000,
    seed: int = 0,
) -> tuple[float, float] | None:
    """Return the BCa bootstrap interval of a statistic; whole blocks of items are drawn.

    None where it does not exist: fewer than two blocks, no spread without each of them, or more
    than one draw in a hundred that has no such statistic.

    Args:
        statistic: See `Statistic`.
        blocks: The block of each item, see `blocks_of`; items of none (-1) are left out.
        level: Coverage.
        draws: Bootstrap samples.
        seed: Decides them.
    """
    left_out = _left_out(statistic, blocks)
    if len(left_out) < 2 or not np.isfinite(left_out).all() or not spread(left_out):
        return None
    n, rng = len(left_out), np.random.default_rng(seed)
    resampled = np.empty(draws)
    for part in _parts(draws, len(blocks)):
        picks = rng.integers(0, n, (part.stop - part.start, n))
        counts = np.stack([np.bincount(row, minlength=n) for row in picks]).astype(np.float64)
        resampled[part] = statistic(_weights(counts, blocks))
    resampled = resampled[np.isfinite(resampled)]
    if len(resampled) < 0.99 * draws:
        return None
    value = float(statistic(_weights(np.ones((1, n)), blocks))[0])
    return _bca(resampled, value, left_out, special.ndtri([(1 - level) / 2, (1 + level) / 2]))


def influences(statistic: Statistic, blocks: Numbers) -> tuple[float, Values] | None:
    """Return a statistic, and numbers of the blocks whose mean it is: tests of means are of it.

    The numbers are the jackknife's pseudo-values, moved to have the statistic as their mean; where
    it does not exist without some block, or hardly differs, all of them are the statistic. None
    where it does not exist at all.

    Source: Tukey 1958; Efron & Tibshirani 1993, "An introduction to the bootstrap", chapter 11.
    """
    left_out = _left_out(statistic, blocks)
    value = float(statistic(_weights(np.ones((1, len(left_out))), blocks))[0])
    if not np.isfinite(value):
        return None
    if not np.isfinite(left_out).all() or not spread(left_out):
        return value, np.full(len(left_out), value)
    return value, value + (len(left_out) - 1) * (left_out.mean() - left_out)


def blocks_of(sources: Sequence[str | None], kept: npt.NDArray[np.bool_]) -> Numbers:
    """Return the block of each item that is kept, and -1 of each that is not.

    A block is a source; of more than 1,000, several sources.
    """
    found = np.full(len(sources), -1, dtype=np.intp)
    found[kept] = source_numbers([s for s, k in zip(sources, kept, strict=True) if k])
    found[kept] %= MOST_BLOCKS
    return found


def _weights(counts: Values, blocks: Numbers) -> Values:
    """Return how often each item is in samples that hold its block so often: (B, N)."""
    return np.where(blocks >= 0, counts[:, blocks], 0.0)


def _left_out(statistic: Statistic, blocks: Numbers) -> Values:
    """Return the statistic without each block: (G,)."""
    n = int(blocks.max()) + 1
    found = np.empty(n)
    for part in _parts(n, len(blocks)):
        counts = np.ones((part.stop - part.start, n))
        counts[np.arange(len(counts)), np.arange(part.start, part.stop)] = 0
        found[part] = statistic(_weights(counts, blocks))
    return found


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
