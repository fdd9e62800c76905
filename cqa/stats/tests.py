"""Paired statistics on per-item differences: Wilcoxon, sign test, t, TOST, effect sizes, power.

Every result names its method. A statistic that does not exist (one item, no spread) is None,
never NaN.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache

import numpy as np
import numpy.typing as npt
from scipy import optimize, special, stats

from cqa.schema.result import Alternative, Interval, PairedT, SignTest, Welch, Wilcoxon

Law = npt.NDArray[np.float64]
Floats = Sequence[float] | npt.NDArray[np.float64]
ALPHA = 0.05  # level of every test; intervals hold 1 - ALPHA
SMALL, MEDIUM, LARGE = 0.2, 0.5, 0.8  # of d_z: Cohen 1988, "Statistical power analysis", chapter 2
# Scores are sums of numbers of 24 bits: a spread below a millionth of what spreads is rounding.
ROUNDING = 1e-6
FAR = 5000.0
EXACT_LIMIT = 1000  # non-zero differences; beyond, the normal approximation, named as such


def wilcoxon(differences: Floats, alternative: Alternative = "greater") -> Wilcoxon:
    """Test whether differences are symmetric about zero by their signed ranks.

    Null hypothesis: each difference is as likely positive as negative, given its size. Zeros are
    ranked and then dropped (Pratt 1959); ties share their mean rank; the null distribution of the
    given ranks is enumerated exactly up to 1,000 non-zero differences.

    Args:
        differences: One number per item.
        alternative: "greater" asks whether differences tend to be positive.

    Returns:
        `w_plus` is the sum of the positive differences' ranks.
    """
    values = np.asarray(differences, dtype=np.float64)
    ranks = stats.rankdata(np.abs(values))
    nonzero = values != 0
    w_plus = float(ranks[values > 0].sum())
    kept = ranks[nonzero]
    if kept.size > EXACT_LIMIT:
        upper, lower, method = *_normal_tails(kept, w_plus), "normal approximation"
    else:
        upper, lower, method = *_exact_tails(kept, w_plus), "exact"
    p = {"greater": upper, "less": lower, "two-sided": min(1.0, 2 * min(upper, lower))}[alternative]
    return Wilcoxon(w_plus, p, alternative, method, int(values.size - kept.size))


def _exact_tails(ranks: npt.NDArray[np.float64], w_plus: float) -> tuple[float, float]:
    """Return P(W ≥ w_plus) and P(W ≤ w_plus) when every rank is added with probability 1/2."""
    doubled = np.sort(np.rint(2 * ranks).astype(np.int64))  # mean ranks are halves
    step, at_least, at_most = _null_law(tuple(doubled.tolist()))
    observed = round(2 * w_plus) // step
    return float(at_least[observed]), float(at_most[observed])


@lru_cache(maxsize=8)  # untied ranks of one n share a law: leaving items out asks for it n times
def _null_law(doubled: tuple[int, ...]) -> tuple[int, Law, Law]:
    """Return a step, and P(2W ≥ k·step) and P(2W ≤ k·step) for every k."""
    step = 1 if any(rank % 2 for rank in doubled) else 2
    law = np.zeros(sum(doubled) // step + 1)
    law[0] = 1.0
    reach = 0
    for rank in (rank // step for rank in doubled):
        grown = law[: reach + 1] / 2
        law[: reach + 1] = grown
        law[rank : rank + reach + 1] += grown
        reach += rank
    return step, np.minimum(1, law[::-1].cumsum()[::-1]), np.minimum(1, law.cumsum())


def _normal_tails(ranks: npt.NDArray[np.float64], w_plus: float) -> tuple[float, float]:
    z = (w_plus - ranks.sum() / 2) / math.sqrt(float((ranks**2).sum()) / 4)
    return float(special.ndtr(-z)), float(special.ndtr(z))


def paired_t(differences: Floats) -> PairedT:
    """Test the mean difference against 0; the one-sided p asks for a positive mean."""
    n = len(differences)
    d_z = cohen_d_z(differences)
    if d_z is None:
        return PairedT(None, n - 1, None, None)
    t = d_z * math.sqrt(n)
    upper = float(stats.t.sf(t, n - 1))
    return PairedT(t, n - 1, upper, 2 * min(upper, 1 - upper))


def spread(values: Floats) -> float | None:
    """Return the standard deviation (ddof = 1), None below two values.

    Values that are equal up to rounding have none at all: it is 0.
    """
    if len(values) < 2:
        return None
    sd = float(np.std(values, ddof=1))
    return sd if sd > ROUNDING * float(np.max(np.abs(values))) else 0.0


def cohen_d_z(differences: Floats) -> float | None:
    """Return mean / sd (ddof = 1) of the differences, or None without spread."""
    sd = spread(differences)
    return float(np.mean(differences)) / sd if sd else None


def d_z_interval(d_z: float, n: int, level: float = 1 - ALPHA) -> tuple[float, float]:
    """Return the interval of d_z by inverting the noncentral t distribution.

    Source: Cumming & Finch 2001, "A primer on the understanding, use, and calculation of
    confidence intervals that are based on central and noncentral distributions".
    """
    low, high = noncentrality_interval(d_z * math.sqrt(n), n - 1, level)
    return low / math.sqrt(n), high / math.sqrt(n)


def noncentrality_interval(t: float, df: float, level: float) -> tuple[float, float]:
    """Return the interval of the noncentrality behind an observed t.

    Args:
        t: The observed statistic.
        df: Its degrees of freedom.
        level: Coverage, such as 0.95.
    """
    if t < 0:  # the law is computed reliably in its upper half
        low, high = noncentrality_interval(-t, df, level)
        return -high, -low

    def noncentrality(tail: float) -> float:
        if t > FAR:  # beyond, the normal part of t is lost beside its spread, and scipy fails
            return t * math.sqrt(float(stats.chi2.ppf(1 - tail, df)) / df)
        width = 10 + 3 * abs(t)
        return float(optimize.brentq(lambda nc: _nct_cdf(t, df, nc) - tail, t - width, t + width))

    tail = (1 - level) / 2
    return noncentrality(1 - tail), noncentrality(tail)


def _nct_cdf(t: float, df: float, nc: float) -> float:
    """Return the noncentral t distribution's P(T ≤ t); far from t scipy's may be NaN."""
    p = float(stats.nct.cdf(t, df, nc))
    return float(nc < t) if math.isnan(p) else p


def hedges_correction(n: int) -> float | None:
    """Return what to multiply d_z with to free it of small-sample bias; None below three items.

    Source: Hedges 1981, exact form, n - 1 degrees of freedom.
    """
    df = n - 1
    if df < 2:
        return None
    return math.exp(math.lgamma(df / 2) - math.lgamma((df - 1) / 2)) / math.sqrt(df / 2)


def cohen_d_av(before: Floats, after: Floats) -> float | None:
    """Return the mean difference over the mean of the two standard deviations (Cumming 2012)."""
    sd = [spread(values) for values in (before, after)]
    if sd[0] is None or sd[1] is None or sd[0] + sd[1] == 0:
        return None
    return float(np.mean(after) - np.mean(before)) / ((sd[0] + sd[1]) / 2)


def sign_test(differences: Floats) -> SignTest:
    """Test, exactly and one-sided, whether positive differences outnumber negative ones.

    Null hypothesis: a difference that is not zero is as likely positive as negative; zeros are
    dropped.
    """
    values = np.asarray(differences, dtype=np.float64)
    n_positive, n_nonzero = int((values > 0).sum()), int((values != 0).sum())
    p = stats.binomtest(n_positive, n_nonzero, alternative="greater").pvalue if n_nonzero else 1.0
    return SignTest(n_positive, n_nonzero, float(p))


def power_of_t(d_z: float, n: int, alpha: float = ALPHA) -> float | None:
    """Return the power of the one-sided paired t-test; None for fewer than two items.

    With normal differences the signed-rank test needs π/3 = 1.05 times the items (Pitman).
    """
    if n < 2:
        return None
    critical = float(stats.t.ppf(1 - alpha, n - 1))
    return 1 - _nct_cdf(critical, n - 1, d_z * math.sqrt(n))


def detectable_d_z(n: int, power: float = 0.8, alpha: float = ALPHA) -> float | None:
    """Return the smallest d_z that the one-sided paired t-test finds with the given power."""
    if n < 2:
        return None

    def missing(d_z: float) -> float:
        return (power_of_t(d_z, n, alpha) or 0.0) - power

    high = 1.0
    while missing(high) < 0:
        high *= 2
    return float(optimize.brentq(missing, 0.0, high))


def wilson_interval(n_hits: int, n: int, level: float = 1 - ALPHA) -> Interval | None:
    """Return Wilson's interval of a share; None without items."""
    if n == 0:
        return None
    interval = stats.binomtest(n_hits, n).proportion_ci(level, method="wilson")
    return float(interval.low), float(interval.high)


def welch(a: Floats, b: Floats) -> Welch:
    """Test mean(a) = mean(b) by Welch's t, with the interval of mean(a) - mean(b)."""
    difference = float(np.mean(a) - np.mean(b))
    if min(len(a), len(b)) < 2:
        return Welch(difference, None, None, None, None)
    parts = [(spread(v) or 0.0) ** 2 / len(v) for v in (a, b)]
    error = math.sqrt(sum(parts))
    if error == 0:
        return Welch(difference, None, None, None, None)
    weights = [part**2 / (len(v) - 1) for part, v in zip(parts, (a, b), strict=True)]
    df = error**4 / sum(weights)
    half = float(stats.t.ppf(1 - ALPHA / 2, df)) * error
    t = difference / error
    p = 2 * float(stats.t.sf(abs(t), df))
    return Welch(difference, t, df, p, (difference - half, difference + half))


def t_interval(values: Floats, level: float = 1 - ALPHA) -> Interval | None:
    """Return the t interval of a mean, n - 1 degrees of freedom; None for fewer than two values.

    Without spread it has no width, and says nothing of what other items would show.
    """
    n, sd = len(values), spread(values)
    if sd is None:
        return None
    half = float(stats.t.ppf((1 + level) / 2, n - 1)) * sd / math.sqrt(n)
    mean = float(np.mean(values))
    return mean - half, mean + half
