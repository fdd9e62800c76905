"""Is a change smaller than a small effect: equivalence in units of the change's own spread."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from scipy import stats

from cqa.schema.result import Equivalence, Interval
from cqa.stats.clusters import Numbers, Values, by_source, source_numbers, sum_by_source
from cqa.stats.deciding import family_test
from cqa.stats.tests import noncentrality_interval

SMALL_D_Z = 0.2  # Cohen's "small"; fixed before anything is seen
LEVEL = 0.90  # two one-sided tests at 5 %


@dataclass(frozen=True, slots=True)
class StandardisedChange:
    """d_z of a change with an interval that allows for sources, skewness and heavy tails."""

    d_z: float | None  # None without spread
    ci90: tuple[float, float] | None
    n_items: int
    n_sources: int

    def within(self, margin: float) -> bool:
        """Say whether the interval lies within ± a margin, so that equivalence is shown."""
        return self.ci90 is not None and -margin < self.ci90[0] and self.ci90[1] < margin


def equivalence(
    differences: Sequence[float] | Values,
    sources: Sequence[str | None],
    margin_nats: float | None,
) -> Equivalence:
    """Ask whether a mean change is small: d_z within ±0.2, or the mean within a margin.

    Args:
        differences: One number an item, nats.
        sources: The source of each item; an item without one is a source of its own.
        margin_nats: A margin in nats that was fixed before scoring, in place of d_z.
    """
    if margin_nats is None:
        found = standardised_change(differences, sources)
        return _within(found.d_z, "d_z", found.ci90, SMALL_D_Z)
    test = family_test(by_source({"": differences}, sources)).changes[""]
    return _within(test.mean, "nats", test.ci90, margin_nats)


def _within(
    estimate: float | None, unit: Literal["d_z", "nats"], ci90: Interval | None, margin: float
) -> Equivalence:
    if ci90 is None:
        return Equivalence(estimate, unit, None, margin, None, None)
    smallest = max(abs(bound) for bound in ci90)
    return Equivalence(estimate, unit, ci90, margin, smallest < margin, smallest)


def standardised_change(
    differences: Sequence[float] | Values, sources: Sequence[str | None]
) -> StandardisedChange:
    """Return d_z = mean / sd over items with its 90 % interval.

    The interval spans two: that of the noncentral t distribution with the cluster-robust error and
    G - 1 degrees of freedom, exact for normal changes of independent items; and that of the delta
    method with the influence of each source on mean / sd, right for skewed and heavy-tailed ones.
    Where sources are of unequal size, G of the degrees of freedom is the number of equal ones that
    weigh as evenly, and the error allows for what a large one draws the mean to itself.

    Sources: Cumming & Finch 2001 for the noncentral t; van der Vaart 1998, chapter 3, for the delta
    method; Bell & McCaffrey 2002 for the error, the jackknife's (CR3); Kish 1965 for unequal sizes.

    Args:
        differences: One number an item.
        sources: The source of each item; an item without one is a source of its own.
    """
    values = np.asarray(differences, dtype=np.float64)
    numbers = source_numbers(sources)
    n, g = len(values), len(set(numbers.tolist()))
    sd = float(values.std(ddof=1)) if n > 1 and np.ptp(values) > 0 else 0.0
    if g < 2 or sd == 0:
        return StandardisedChange(None, None, n, g)
    z = (values - values.mean()) / sd
    d_z = float(values.mean()) / sd
    sizes = np.bincount(numbers)
    even = float(n**2 / (sizes**2).sum())
    error_of_mean = jackknife_error(sum_by_source(z, numbers), sizes)  # in units of sd
    influence = z - d_z / 2 * (z**2 - 1)
    error = jackknife_error(sum_by_source(influence, numbers), sizes)
    half = float(stats.t.ppf((1 + LEVEL) / 2, even - 1)) * error
    low, high = d_z - half, d_z + half
    if error_of_mean > 0:
        exact = noncentrality_interval(d_z / error_of_mean, even - 1, LEVEL)
        low, high = min(low, exact[0] * error_of_mean), max(high, exact[1] * error_of_mean)
    return StandardisedChange(d_z, (low, high), n, g)


def jackknife_error(sums: Values, sizes: Numbers) -> float:
    """Return the jackknife's error of a mean from the sums of each source's deviations."""
    g, n = len(sums), sizes.sum()
    left_out = sums / (1 - sizes / n)
    return float(np.sqrt((left_out**2).sum() * (g - 1) / g) / n)
