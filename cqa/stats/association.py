"""Correlations as statistics of samples: see `cqa.stats.resampling.Statistic`."""

from __future__ import annotations

import numpy as np

from cqa.stats.clusters import Numbers
from cqa.stats.resampling import Statistic, Values
from cqa.stats.tests import Floats

CONSTANT = 1e-12  # what remains of a variance, as a share, where nothing does


def spearman(x: Floats, y: Floats) -> Statistic:
    """Return Spearman's correlation of two numbers an item; ties share their mean rank.

    It does not exist where one of the two is the same for all items of a sample.
    """
    of_x, of_y = _Ranked(x), _Ranked(y)

    def statistic(weights: Values) -> Values:
        return _correlation(of_x.centred(weights), of_y.centred(weights), weights)

    return statistic


def partial_spearman(x: Floats, y: Floats, given: Floats) -> Statistic:
    """Return the partial correlation of the ranks of x and y, those of a third number held fixed.

    A third number that is the same for all items takes nothing away.

    Source: Kendall & Stuart, "The advanced theory of statistics", volume 2, chapter 27.
    """
    ranked = [_Ranked(values) for values in (x, y, given)]

    def statistic(weights: Values) -> Values:
        a, b, c = (values.centred(weights) for values in ranked)
        ab = _correlation(a, b, weights)
        ac, bc = (np.nan_to_num(_correlation(one, c, weights)) for one in (a, b))
        rest = (1 - ac**2) * (1 - bc**2)
        with np.errstate(divide="ignore", invalid="ignore"):
            found: Values = (ab - ac * bc) / np.sqrt(np.where(rest > CONSTANT, rest, np.nan))
        return found

    return statistic


def concordance(x: Floats, y: Floats) -> Statistic:
    """Return Lin's concordance of two numbers an item: 1 only where they are the same number.

    It does not exist where both are one and the same for all items of a sample.

    Source: Lin 1989, "A concordance correlation coefficient to evaluate reproducibility".
    """
    a, b = (np.asarray(values, dtype=np.float64) for values in (x, y))
    middle = (a.mean() + b.mean()) / 2
    a, b = a - middle, b - middle

    def statistic(weights: Values) -> Values:
        n = weights.sum(axis=1)
        n = np.where(n > 0, n, np.nan)
        mean_a, mean_b = weights @ a / n, weights @ b / n
        covariance = weights @ (a * b) / n - mean_a * mean_b
        squares = (
            weights @ (a - b) ** 2 / n + 2 * covariance
        )  # both variances and (a - b)² of means
        with np.errstate(divide="ignore", invalid="ignore"):
            found: Values = 2 * covariance / np.where(squares > 0, squares, np.nan)
        return found

    return statistic


def difference(a: Statistic, b: Statistic) -> Statistic:
    """Return one statistic minus another of the same samples."""
    return lambda weights: a(weights) - b(weights)


def spearman_brown(r: float | None) -> float | None:
    """Return the reliability of the mean of two halves that correlate so; None unless r > 0.

    Source: Spearman 1910 and Brown 1910.
    """
    return None if r is None or r <= 0 else 2 * r / (1 + r)


class _Ranked:
    """Numbers sorted once, of which any sample is ranked without sorting again."""

    def __init__(self, values: Floats) -> None:
        levels, index = np.unique(np.asarray(values, dtype=np.float64), return_inverse=True)
        self._level: Numbers = index.astype(np.intp)  # of each item, among the values that differ
        self._order = np.argsort(self._level, kind="stable")
        self._starts = np.searchsorted(self._level[self._order], np.arange(len(levels)))

    def centred(self, weights: Values) -> Values:
        """Return the ranks in each sample minus their mean: (B, N)."""
        held = np.add.reduceat(weights[:, self._order], self._starts, axis=1)
        middle = held.cumsum(axis=1) - held / 2
        found: Values = (middle - weights.sum(axis=1, keepdims=True) / 2)[:, self._level]
        return found


def _correlation(a: Values, b: Values, weights: Values) -> Values:
    """Return the correlation of centred ranks in each sample: (B,)."""
    ab, aa, bb = ((weights * p * q).sum(axis=1) for p, q in ((a, b), (a, a), (b, b)))
    squares = aa * bb
    found: Values = ab / np.sqrt(np.where(squares > 0, squares, np.nan))
    return np.clip(found, -1.0, 1.0)
