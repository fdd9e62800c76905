"""Resampling: intervals for clustered items, and tests that pay for a choice among epochs.

Every function takes a seed and is deterministic. Differences are one number per item.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import special, stats

from cqa.stats.tests import ALPHA, ROUNDING, cohen_d_z, spread, wilcoxon

Values = npt.NDArray[np.float64]
EXACT_CHOICES = 100  # items up to which every choice without one of them takes the exact p


@dataclass(frozen=True, slots=True)
class MaxT:
    """Family-wise result of a sign-flip max-T test over several epochs."""

    t: dict[str, float]  # observed t of each epoch
    p_corrected: dict[str, float]
    method: str  # "exact" when all sign patterns were enumerated


@dataclass(frozen=True, slots=True)
class Permuted:
    """Two-sided p of the same comparison at several epochs."""

    p: dict[str, float]  # each epoch as if it were the only one
    p_corrected: dict[str, float]  # for having looked at all of them


def bca_interval(
    values: Sequence[float],
    *,
    clusters: Sequence[str] | None = None,
    level: float = 1 - ALPHA,
    draws: int = 10_000,
    seed: int = 0,
) -> tuple[float, float] | None:
    """Return the BCa bootstrap interval of the mean; whole clusters are drawn where given.

    None where it does not exist: fewer than two clusters, or no spread of their means.

    Source: Efron 1987, "Better bootstrap confidence intervals"; clusters as in Davison & Hinkley
    1997, section 3.8.
    """
    sums, sizes = _cluster_sums(np.asarray(values, dtype=np.float64), clusters)
    n = len(sums)
    if not spread(sums / sizes):
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
    a: Mapping[str, Sequence[float]],
    b: Mapping[str, Sequence[float]],
    *,
    draws: int = 20_000,
    seed: int = 0,
) -> Permuted:
    """Test mean(a) = mean(b), two-sided, at every epoch of the same items by dealing items anew.

    Null hypothesis: items are exchangeable between the groups, jointly over epochs. Welch's t is
    recomputed for each deal; unlike a permutation of raw means this stays valid when the groups'
    spreads differ. One deal serves all epochs, and the largest |t| of each is what an observed |t|
    must exceed to count although several epochs were looked at.

    Source: Janssen 1997, "Studentized permutation tests for non-i.i.d. hypotheses"; the largest
    as in Westfall & Young 1993.
    """
    pooled = np.array([[*a[name], *b[name]] for name in a], dtype=np.float64)
    pooled -= pooled.mean(axis=1, keepdims=True)  # sums of squares then lose no digits
    n_items = pooled.shape[1]
    first = np.arange(n_items) < len(next(iter(a.values())))
    least = _reached(np.abs(_dealt_t(pooled, first[None])))
    rng = np.random.default_rng(seed)
    alone, largest = np.zeros(len(pooled)), np.zeros(len(pooled))
    for part in _parts(draws, n_items):
        shape = (part.stop - part.start, n_items)
        dealt = rng.permuted(np.broadcast_to(first, shape), axis=1)
        t = np.abs(_dealt_t(pooled, dealt))
        alone += (t >= least).sum(axis=1)
        largest += (t.max(axis=0) >= least).sum(axis=1)
    p, p_corrected = ((1 + count) / (draws + 1) for count in (alone, largest))
    return Permuted(*(dict(zip(a, found.tolist(), strict=True)) for found in (p, p_corrected)))


def _dealt_t(pooled: Values, dealt: npt.NDArray[np.bool_]) -> Values:
    """Return Welch's t, epochs × deals; `dealt` marks the items of the first group."""
    in_first = dealt.T.astype(np.float64)
    n_first = dealt[0].sum()
    sums, squares = pooled @ in_first, pooled**2 @ in_first
    halves = (
        (sums, squares, n_first),
        (
            pooled.sum(axis=1, keepdims=True) - sums,
            (pooled**2).sum(axis=1, keepdims=True) - squares,
            dealt.shape[1] - n_first,
        ),
    )
    means = [total / n for total, _, n in halves]
    error = sum(_variance(total, square, n) / n for total, square, n in halves)
    return _ratio(means[0] - means[1], error)


def _variance(total: Values, square: Values, n: int) -> Values:
    """Return the variance (ddof = 1) from sums; what is below rounding is none, as in `spread`."""
    found = np.maximum(square - total**2 / n, 0)
    return np.where(found > ROUNDING**2 * square, found, 0) / (n - 1)


def _ratio(mean: Values, error: Values) -> Values:
    """Return mean / sqrt(error); infinite without error, 0 where both are."""
    with np.errstate(divide="ignore", invalid="ignore"):
        t = mean / np.sqrt(error)
    return np.where(mean == 0, 0.0, t)


def _reached(observed: Values) -> Values:
    """Return what a resampled t must reach to count as large: the observed t, but for rounding."""
    return np.where(observed > 0, 1 - 1e-9, 1 + 1e-9) * observed


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
    observed = _flipped_t(table, np.ones((1, n_items)))
    least, as_large = _reached(observed), np.zeros(len(table))
    rng = np.random.default_rng(seed)
    n_patterns = 2**n_items if exact else draws
    for part in _parts(n_patterns, n_items):
        if exact:
            flips = np.arange(part.start, part.stop)[:, None] >> np.arange(n_items) & 1
        else:
            flips = rng.integers(0, 2, (part.stop - part.start, n_items))
            flips[: part.start == 0] = 0  # the observed pattern is one of them
        signs: Values = np.where(flips == 1, -1.0, 1.0)
        largest = _flipped_t(table, signs).max(axis=0)
        as_large += (largest >= least).sum(axis=1)
    p = np.maximum(as_large, 1) / n_patterns  # the observed pattern is one, however it rounds
    method = "exact" if exact else f"{draws} random sign patterns"
    t, p_corrected = (
        dict(zip(by_epoch, found.tolist(), strict=True)) for found in (observed[:, 0], p)
    )
    return MaxT(t, p_corrected, method)


def _flipped_t(table: Values, signs: Values) -> Values:
    """Return t of sign-flipped differences, epochs × patterns; their squares' sum stays."""
    n = table.shape[1]
    sums = table @ signs.T
    squares = (table**2).sum(axis=1, keepdims=True)
    return _ratio(sums / n, _variance(sums, squares, n) / n)


def choose_epoch(by_epoch: Mapping[str, Sequence[float]]) -> str:
    """Return the epoch of the paper's rule: smallest one-sided Wilcoxon p, then largest d_z.

    Such a choice on the items that are then reported is exploratory.
    """
    return min(
        by_epoch, key=lambda name: (wilcoxon(by_epoch[name]).p, -(cohen_d_z(by_epoch[name]) or 0.0))
    )


def leave_one_out_choice(by_epoch: Mapping[str, Sequence[float]]) -> dict[str, int]:
    """Count how often each epoch is chosen when every item is left out in turn.

    Beyond 100 items the standardised W+ stands for p; where no two differences are of one size it
    puts epochs in the same order.
    """
    counts = dict.fromkeys(by_epoch, 0)
    n_items = len(next(iter(by_epoch.values())))
    if n_items <= EXACT_CHOICES:
        for item in range(n_items):
            rest = {name: [*v[:item], *v[item + 1 :]] for name, v in by_epoch.items()}
            counts[choose_epoch(rest)] += 1
        return counts
    values = [np.asarray(v, dtype=np.float64) for v in by_epoch.values()]
    z = np.array([_z_without(v) for v in values])
    d_z = np.array([_d_z_without(v) for v in values])
    best = np.where(z == z.max(axis=0), d_z, -np.inf).argmax(axis=0)
    for name, count in zip(by_epoch, np.bincount(best, minlength=len(values)), strict=True):
        counts[name] = int(count)
    return counts


def _z_without(values: Values) -> Values:
    """Return the standardised W+ of all items but one, for each one left out.

    Without an item, ranks above its own fall by 1 and those tied with it by 1/2.
    """
    size = np.abs(values)
    ranks = stats.rankdata(size)
    order = np.argsort(size)
    first, last = (np.searchsorted(size[order], size, side) for side in ("left", "right"))

    def total(terms: Values, above: Values, tied: Values) -> Values:
        """Sum `terms` of all others, with `above` for larger sizes and `tied` for equal ones."""
        larger, equal = (np.append(x[order][::-1].cumsum()[::-1], 0) for x in (above, tied))
        others: Values = terms.sum() - terms + larger[last] + equal[first] - equal[last] - tied
        return others

    up, nonzero = (values > 0).astype(np.float64), (values != 0).astype(np.float64)
    w_plus = total(up * ranks, -up, -up / 2)
    rank_sum = total(nonzero * ranks, -nonzero, -nonzero / 2)
    squares = total(nonzero * ranks**2, nonzero * (1 - 2 * ranks), nonzero * (0.25 - ranks))
    return _ratio(w_plus - rank_sum / 2, squares / 4)


def _d_z_without(values: Values) -> Values:
    """Return d_z of all items but one, for each one left out."""
    n, centre = len(values) - 1, values.mean()
    sums, squares = (x.sum() - x for x in (values - centre, (values - centre) ** 2))
    return _ratio(sums / n + centre, _variance(sums, squares, n))
