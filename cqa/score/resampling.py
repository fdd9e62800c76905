"""Resampling: intervals for clustered items, and tests that pay for a choice among epochs.

Every function takes a seed and is deterministic. Differences are one number per item.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import special

from cqa.score.stats import cohen_d_z, wilcoxon

Values = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class MaxT:
    """Family-wise result of a sign-flip max-T test over several epochs."""

    t: dict[str, float]  # observed t of each epoch
    p_corrected: dict[str, float]
    method: str  # "exact" when all sign patterns were enumerated


def bca_interval(
    values: Sequence[float],
    *,
    clusters: Sequence[str] | None = None,
    level: float = 0.95,
    draws: int = 10_000,
    seed: int = 0,
) -> tuple[float, float] | None:
    """Return the BCa bootstrap interval of the mean; whole clusters are drawn where given.

    None where it does not exist: fewer than two clusters, or no spread.

    Source: Efron 1987, "Better bootstrap confidence intervals"; clusters as in Davison & Hinkley
    1997, section 3.8.
    """
    sums, sizes = _cluster_sums(np.asarray(values, dtype=np.float64), clusters)
    n = len(sums)
    if n < 2 or np.ptp(sums / sizes) == 0:
        return None
    mean = float(sums.sum() / sizes.sum())
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
    z = special.ndtri([(1 - level) / 2, (1 + level) / 2])
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
    _, index = np.unique(np.asarray(clusters), return_inverse=True)
    sums: Values = np.bincount(index, weights=values).astype(np.float64)
    return sums, np.bincount(index).astype(np.float64)


def permutation_welch(
    a: Sequence[float], b: Sequence[float], *, draws: int = 20_000, seed: int = 0
) -> float:
    """Return the two-sided p of the studentised permutation test of mean(a) = mean(b).

    Items are dealt anew to the two groups and Welch's t recomputed each time; unlike a permutation
    of raw means this stays valid when the groups' spreads differ.

    Source: Janssen 1997, "Studentized permutation tests for non-i.i.d. hypotheses".
    """
    x, y = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    pooled = np.concatenate((x, y))
    observed = abs(_welch_t(x[None], y[None])[0])
    rng = np.random.default_rng(seed)
    as_large = 0
    for part in _parts(draws, len(pooled)):
        shape = (part.stop - part.start, len(pooled))
        dealt = rng.permuted(np.broadcast_to(pooled, shape), axis=1)
        t = np.abs(_welch_t(dealt[:, : len(x)], dealt[:, len(x) :]))
        as_large += int(np.sum(t >= observed * (1 - 1e-12)))
    return (1 + as_large) / (draws + 1)


def _welch_t(x: Values, y: Values) -> Values:
    error = np.sqrt(x.var(1, ddof=1) / x.shape[1] + y.var(1, ddof=1) / y.shape[1])
    with np.errstate(divide="ignore", invalid="ignore"):
        t: Values = np.nan_to_num((x.mean(1) - y.mean(1)) / error)
    return t


def max_t_sign_flip(
    by_epoch: Mapping[str, Sequence[float]], *, draws: int = 20_000, seed: int = 0
) -> MaxT:
    """Correct one-sided p-values for having looked at several epochs of the same items.

    Null hypothesis: every item's differences are symmetric about zero, jointly over epochs. One
    sign per item is drawn and kept across epochs, so their dependence is kept too; the largest t
    of each draw is what an observed t must exceed. Up to 14 items all patterns are enumerated.

    Source: Westfall & Young 1993, "Resampling-based multiple testing", algorithm 2.8 (single step).
    """
    table = np.array([list(values) for values in by_epoch.values()], dtype=np.float64)
    n_items = table.shape[1]
    exact = n_items <= 14
    if exact:
        patterns = np.arange(2**n_items)[:, None] >> np.arange(n_items) & 1
        signs: Values = np.where(patterns == 1, -1.0, 1.0)
    else:
        rng = np.random.default_rng(seed)
        signs = np.where(rng.integers(0, 2, (draws, n_items)) == 1, -1.0, 1.0)
        signs[0] = 1.0  # the observed pattern is one of them
    flipped: Values = np.array([_flipped_t(row, signs) for row in table])
    largest = flipped.max(axis=0)
    observed = [float(_flipped_t(row, np.ones((1, n_items)))[0]) for row in table]
    p = [float(np.mean(largest >= t - 1e-12 * abs(t))) for t in observed]
    names = list(by_epoch)
    method = "exact" if exact else f"{draws} random sign patterns"
    return MaxT(dict(zip(names, observed, strict=True)), dict(zip(names, p, strict=True)), method)


def _flipped_t(row: Values, signs: Values) -> Values:
    """Return t of the sign-flipped differences; the sum of squares is the same for all patterns."""
    n = len(row)
    means = signs @ row / n
    spread = np.sqrt(np.maximum((row @ row / n - means**2) / (n - 1), 0))
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.nan_to_num(means / spread, posinf=math.inf, neginf=-math.inf)


def choose_epoch(by_epoch: Mapping[str, Sequence[float]]) -> str:
    """Return the epoch of the paper's rule: smallest one-sided Wilcoxon p, then largest d_z.

    Such a choice on the items that are then reported is exploratory.
    """
    return min(
        by_epoch, key=lambda name: (wilcoxon(by_epoch[name]).p, -(cohen_d_z(by_epoch[name]) or 0.0))
    )


def leave_one_out_choice(by_epoch: Mapping[str, Sequence[float]]) -> dict[str, int]:
    """Count how often each epoch is chosen when every item is left out in turn."""
    n_items = len(next(iter(by_epoch.values())))
    counts = dict.fromkeys(by_epoch, 0)
    for item in range(n_items):
        rest = {name: [*v[:item], *v[item + 1 :]] for name, v in by_epoch.items()}
        counts[choose_epoch(rest)] += 1
    return counts
