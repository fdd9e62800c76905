"""The deciding tests: is a mean change, or a difference of two, above zero under any of K adapters.

Two reference laws are asked, and the larger p counts, since each fails where the other holds:

- sign flips of whole sources: exact, at any number of sources, where changes are symmetric about
  zero; its statistic is corrected for skewness, which real changes of log-probability have;
- bootstrap-t over sources: right to second order for skewed changes, too liberal for heavy tails
  of few sources.

One draw serves all adapters, so their dependence is kept, and the largest statistic of each draw is
what an adapter's own must exceed to count although several were looked at (max-T, single step).
Of very many sources both laws are taken from moments (`cqa.stats.moments`).

Sources: Westfall & Young 1993, "Resampling-based multiple testing", algorithm 2.8; Hall 1992, "On
the removal of skewness by transformation"; Cameron, Gelbach & Miller 2008, "Bootstrap-based
improvements for inference with clustered errors".
"""

from __future__ import annotations

import functools
import hashlib
import operator
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from cqa.stats import moments
from cqa.stats.clusters import Clusters, Values
from cqa.stats.laws import Law, extremes_of, law, law_of, reached

DRAWS = 9_999
FEWEST_DRAWS = 999
DRAWN_NUMBERS = 20_000_000  # draws × sources of one test: draws fall with the sources
HELD_NUMBERS = 1_000_000  # draws × adapters of a statistic that are held at once
NORMAL_NUMBERS = 10_000_000  # the same of normal draws, which fall with the adapters
FEWEST_SOURCES = 10  # below, left-skewed true nulls are rejected in more than 7 % of cases
EXACT_SOURCES = 13  # up to here all sign patterns are enumerated
ROUNDING = 1e-12  # a share of the squares that is no spread
SEED = 0
MOST_ANSWERS = 200  # that are kept, of one number or two an adapter each
WIDEST_KEPT = 100  # adapters, or heads of a model, beyond which an answer is not kept


@dataclass(frozen=True, slots=True)
class Change:
    """One adapter's mean change over items, tested as one of a family."""

    mean: float
    error: float  # cluster-robust standard error; 0 without spread
    p_greater: float | None  # one-sided, as if it were the only adapter; None without spread
    p_less: float | None
    p_greater_corrected: float | None  # for having looked at the whole family
    p_less_corrected: float | None
    ci95: tuple[float, float] | None  # simultaneous over the family
    ci90: tuple[float, float] | None  # its ends are one-sided bounds at 5 %


@dataclass(frozen=True, slots=True)
class Family:
    """The changes under every adapter that was ever scored on these items."""

    changes: dict[str, Change]
    n_items: int
    n_sources: int
    method: str


_ANSWERS: dict[bytes, Family] = {}  # by the digest of the question, which holds all it depends on


@dataclass(frozen=True, slots=True)
class _Part:
    """A group of a contrast: its clusters, and whether it is added or subtracted."""

    clusters: Clusters
    sign: int


@dataclass(frozen=True, slots=True)
class _Moments:
    """Mean over items, its variance and its third central moment: of the data, or of draws."""

    mean: Values  # (…, K)
    variance: Values
    third: Values

    def __add__(self, other: _Moments) -> _Moments:
        return _Moments(
            self.mean + other.mean, self.variance + other.variance, self.third + other.third
        )

    def t(self) -> Values:
        """Return the studentised mean; 0 where there is no spread."""
        with np.errstate(divide="ignore", invalid="ignore"):
            t = self.mean / np.sqrt(self.variance)
        return np.where(self.variance > 0, t, 0.0)

    def skewless_t(self, n_sources: float) -> Values:
        """Return t freed of its skewness by Hall's monotone cubic transformation.

        The skewness of few sources is far too small on average, most of all where the tail has not
        been met yet; it is taken 1 + 12 / G times. A few large sources among many small are few:
        G is `Clusters.n_as_skewed`.
        """
        t = self.t()
        with np.errstate(divide="ignore", invalid="ignore"):
            a = np.where(self.variance > 0, self.third / self.variance**1.5, 0.0)
        a *= 1 + 12 / n_sources
        found: Values = t + a * t**2 / 3 + a**2 * t**3 / 27 + a / 6
        return found


def family_test(clusters: Clusters, *, draws: int | None = None, seed: int = SEED) -> Family:
    """Test the mean change under each adapter against zero, and give simultaneous intervals.

    Args:
        clusters: The changes of the items, summed by source.
        draws: Draws of each reference law; by default 9,999, fewer for many sources.
        seed: Decides the draws.
    """
    return _test((_Part(clusters, 1),), draws, seed)


def difference_test(
    a: Clusters, b: Clusters, *, draws: int | None = None, seed: int = SEED
) -> Family:
    """Test whether one group changes more than another, under each adapter.

    `n_sources` of the result is that of the group with fewer.

    Args:
        a: The changes of the first group's items, summed by source.
        b: Those of the second, under the same adapters.
        draws: Draws of each reference law; by default 9,999, fewer for many sources.
        seed: Decides the draws.
    """
    return _test((_Part(a, 1), _Part(b, -1)), draws, seed)


def _test(parts: tuple[_Part, ...], draws: int | None, seed: int) -> Family:
    """Test; verdict, tables and specifications ask some questions more than once."""
    if len(parts[0].clusters.names) > WIDEST_KEPT:
        return _test_anew(parts, draws, seed)
    asked = hashlib.sha256(repr((draws, seed, _are_many(parts))).encode())
    for part in parts:
        held = part.clusters
        asked.update(repr((held.names, held.sums.shape, part.sign)).encode())
        asked.update(np.ascontiguousarray(held.sums).data)
        asked.update(np.ascontiguousarray(held.sizes).data)
    question = asked.digest()
    if question not in _ANSWERS:
        if len(_ANSWERS) == MOST_ANSWERS:
            del _ANSWERS[next(iter(_ANSWERS))]  # the oldest
        _ANSWERS[question] = _test_anew(parts, draws, seed)
    return _ANSWERS[question]


def _test_anew(parts: tuple[_Part, ...], draws: int | None, seed: int) -> Family:
    names = parts[0].clusters.names
    assert all(part.clusters.names == names for part in parts)
    n_items = sum(part.clusters.n_items for part in parts)
    n_sources = [part.clusters.n_sources for part in parts]
    observed = _observed(parts)
    live = observed.variance > 0
    if min(n_sources) < 2 or not live.any():
        changes = {n: _untested(m) for n, m in zip(names, observed.mean, strict=True)}
        return Family(changes, n_items, min(n_sources), "no spread over sources")
    kept = tuple(_Part(part.clusters.only(live), part.sign) for part in parts)
    total = sum(n_sources)
    draws = draws or draws_for(total)
    tested = iter(_changes(kept, draws, seed))
    changes = {
        name: next(tested) if k else _untested(mean)
        for name, mean, k in zip(names, observed.mean, live, strict=True)
    }
    method = f"max-T over sources; {_method(kept, total, draws)}"
    return Family(changes, n_items, min(n_sources), method)


def _method(parts: tuple[_Part, ...], n_sources: int, draws: int) -> str:
    if _are_many(parts):
        return f"sign flips and bootstrap-t from moments of {n_sources:,} sources"
    how = "all" if n_sources <= EXACT_SOURCES else f"{draws:,}"
    return f"{how} sign patterns and {draws:,} bootstrap-t draws"


def draws_for(n_sources: int) -> int:
    """Return how many draws a reference law needs: fewer, the more sources there are."""
    return max(FEWEST_DRAWS, min(DRAWS, DRAWN_NUMBERS // max(n_sources, 1)))


def _untested(mean: float) -> Change:
    return Change(float(mean), 0.0, None, None, None, None, None, None)


def _observed(parts: tuple[_Part, ...]) -> _Moments:
    found = []
    for part in parts:
        clusters, n = part.clusters, part.clusters.sizes.sum()
        third = part.sign * (clusters.residuals() ** 3).sum(0) / n**3
        found.append(_Moments(part.sign * clusters.means(), clusters.errors() ** 2, third))
    return functools.reduce(operator.add, found)


def _changes(parts: tuple[_Part, ...], draws: int, seed: int) -> Iterator[Change]:
    observed = _observed(parts)
    laws = (
        _from_moments(parts, observed, seed)
        if _are_many(parts)
        else [
            _sign_flips(parts, observed, draws, seed),
            _bootstrap_t(parts, observed.t(), draws, seed),
        ]
    )
    alone = np.max([law.alone for law in laws], axis=0)
    family = np.maximum(alone, np.max([law.family for law in laws], axis=0))
    low = np.min([law.quantiles for law in laws], axis=0)
    high = np.max([law.quantiles for law in laws], axis=0)
    for k, (mean, variance) in enumerate(zip(observed.mean, observed.variance, strict=True)):
        error = float(np.sqrt(variance))
        yield Change(
            float(mean),
            error,
            float(alone[0, k]),
            float(alone[1, k]),
            float(family[0, k]),
            float(family[1, k]),
            (float(mean - error * high[3]), float(mean - error * low[0])),
            (float(mean - error * high[2]), float(mean - error * low[1])),
        )


def _are_many(parts: tuple[_Part, ...]) -> bool:
    return all(
        part.clusters.n_sources >= moments.MANY_SOURCES and moments.many(part.clusters.residuals())
        for part in parts
    )


def _from_moments(parts: tuple[_Part, ...], observed: _Moments, seed: int) -> list[Law]:
    """Return both laws of very many sources: normal, and normal but for the skewness."""
    covariance = np.zeros((len(observed.mean),) * 2)
    for part in parts:
        residuals, n = part.clusters.residuals(), part.clusters.sizes.sum()
        covariance += residuals.T @ residuals / n**2
    draws = max(FEWEST_DRAWS, min(moments.DRAWS, NORMAL_NUMBERS // len(covariance)))
    z = moments.normal_draws(covariance, draws, np.random.default_rng((seed, 5)))
    t = moments.studentised(z, observed.third / observed.variance**1.5)
    fewest = min(part.clusters.n_as_skewed for part in parts)
    return [
        law_of(z, z, observed.skewless_t(fewest), extra=1),
        law_of(t, t, observed.t(), extra=1),
    ]


def _sign_flips(parts: tuple[_Part, ...], observed: _Moments, draws: int, seed: int) -> Law:
    """Flip whole sources: the changes themselves, or of a difference what exceeds the means."""
    fewest = min(part.clusters.n_as_skewed for part in parts)

    def statistic(drawn: _Moments) -> Values:
        return drawn.skewless_t(fewest)

    tables = [
        _flip_table(p.clusters, p.clusters.sums if len(parts) == 1 else p.clusters.residuals())
        for p in parts
    ]
    ends = np.cumsum([part.clusters.n_sources for part in parts])
    g = int(ends[-1])
    exact = g <= EXACT_SOURCES
    rng = np.random.default_rng((seed, 1))

    def draw(first: int, stop: int) -> _Moments:
        if exact:
            bits = np.arange(first, stop)[:, None] >> np.arange(g) & 1
        else:
            bits = rng.integers(0, 2, (stop - first, g), dtype=np.int8)
            bits[: first == 0] = 0  # the pattern of the data is one of them
        signs = np.split((1 - 2 * bits).astype(np.float64), ends[:-1], axis=1)
        found = (
            _flipped(part, table, own)
            for part, table, own in zip(parts, tables, signs, strict=True)
        )
        return functools.reduce(operator.add, found)

    n_draws = 2**g if exact else draws + 1
    return _count(draw, statistic, statistic(observed), n_draws, g, extra=0)


def _flip_table(clusters: Clusters, values: Values) -> Values:
    """Return the powers whose signed sums give the moments of flipped values: (G, 4 K)."""
    sizes = clusters.sizes[:, None]
    return np.concatenate([values, sizes * values, values**3, sizes**2 * values], axis=1)


def _flipped(part: _Part, table: Values, signs: Values) -> _Moments:
    sizes, n, g = part.clusters.sizes, part.clusters.sizes.sum(), part.clusters.n_sources
    k = table.shape[1] // 4
    total, by_size, cubes, by_square = np.split(signs @ table, 4, axis=1)
    values = table[:, :k]
    squared = (values**2).sum(0)
    mean = total / n
    squares = squared - 2 * mean * by_size + mean**2 * (sizes**2).sum()
    third = (
        cubes
        - 3 * mean * (sizes[:, None] * values**2).sum(0)
        + 3 * mean**2 * by_square
        - mean**3 * (sizes**3).sum()
    )
    variance = np.where(squares > ROUNDING * squared, squares, 0.0) * g / (g - 1) / n**2
    return _Moments(part.sign * mean, variance, part.sign * third / n**3)


def _bootstrap_t(parts: tuple[_Part, ...], observed: Values, draws: int, seed: int) -> Law:
    """Draw the sources of each group anew, of what exceeds the mean."""
    tables = [_drawn_table(part.clusters) for part in parts]
    rng = np.random.default_rng((seed, 2))

    def draw(first: int, stop: int) -> _Moments:
        found = []
        for part, table in zip(parts, tables, strict=True):
            counts = drawn_counts(rng, stop - first, part.clusters.n_sources)
            found.append(_drawn(part, counts @ table))
        return functools.reduce(operator.add, found)

    g = sum(part.clusters.n_sources for part in parts)
    return _count(draw, _Moments.t, observed, draws, g, extra=1)


def drawn_counts(rng: np.random.Generator, draws: int, g: int) -> Values:
    """Return how often each source is drawn in each of several samples of G: (draws, G)."""
    picks = rng.integers(0, g, (draws, g))
    picks += g * np.arange(draws)[:, None]
    counts = np.bincount(picks.ravel(), minlength=g * draws)
    return counts.reshape(draws, g).astype(np.float64)


def _drawn_table(clusters: Clusters) -> Values:
    residuals, sizes = clusters.residuals(), clusters.sizes[:, None]
    return np.concatenate([residuals, residuals**2, sizes * residuals, sizes, sizes**2], axis=1)


def _drawn(part: _Part, sums: Values) -> _Moments:
    g = part.clusters.n_sources
    k = (sums.shape[1] - 2) // 3
    total, squared, by_size = (sums[:, i * k : (i + 1) * k] for i in range(3))
    n, n2 = sums[:, -2:-1], sums[:, -1:]
    mean = total / n
    squares = squared - 2 * mean * by_size + mean**2 * n2
    variance = np.where(squares > ROUNDING * squared, squares, 0.0) * g / (g - 1) / n**2
    return _Moments(part.sign * mean, variance, np.zeros_like(mean))


def _count(
    draw: Callable[[int, int], _Moments],
    statistic: Callable[[_Moments], Values],
    observed: Values,
    n_draws: int,
    g: int,
    *,
    extra: int,
) -> Law:
    """Draw part by part; count how often the statistics reach the observed ones.

    Args:
        draw: Returns the moments of the draws from one number to another, each (draws, K).
        statistic: What is compared.
        observed: The same of the data: (K,).
        n_draws: All draws.
        g: Sources; with K they decide how many draws fit in memory at once.
        extra: 1 where the data are to count as a draw of their own, 0 where they are one.
    """
    counts, extremes = [], np.empty((2, n_draws))
    wide = max(4, HELD_NUMBERS // len(observed) // 4 * 4)  # fours leave the stream of signs alone
    size = max(1, min(4_000_000 // g, wide))
    for first in range(0, n_draws, size):
        stop = min(n_draws, first + size)
        found = draw(first, stop)
        t = found.t()
        counts.append(reached(statistic(found), observed))
        extremes[:, first:stop] = extremes_of(t)
    return law(np.sum(counts, axis=0), extremes, n_draws, extra)
