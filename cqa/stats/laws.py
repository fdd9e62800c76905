"""What the draws of a reference law say: how often they reach what was observed, and their ends."""

from __future__ import annotations

import functools
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Values = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Law:
    """How often a reference law reached each adapter's own statistic, and its extremes."""

    alone: Values  # (2, K): share of draws whose own statistic is as large, as small
    family: Values  # (2, K): the same for the largest and the smallest of the family
    quantiles: Values  # (4,): 2.5 and 5 % of the smallest t, 95 and 97.5 % of the largest


def law_of(found: Values, t: Values, observed: Values, *, extra: int) -> Law:
    """Return the law of draws that are all held: of the statistic, and of t, (draws, K) each."""
    return law(reached(found, observed), np.stack(extremes_of(t)), len(found), extra)


def extremes_of(found: Values) -> tuple[Values, Values]:
    """Return the largest and the smallest of each draw's few numbers, each (draws,)."""
    columns = list(found.T)  # numpy is slow over a short last axis
    return functools.reduce(np.maximum, columns), functools.reduce(np.minimum, columns)


def reached(found: Values, observed: Values) -> Values:
    """Count the draws that are as large, as small, and the same of the family: (4, K)."""
    slack = 1e-9 * np.abs(observed) + 1e-12
    low, high = observed - slack, observed + slack
    largest, smallest = extremes_of(found)
    columns = list(zip(found.T, low, high, strict=True))
    counts = [
        [np.count_nonzero(column >= least) for column, least, _ in columns],
        [np.count_nonzero(column <= most) for column, _, most in columns],
        [np.count_nonzero(largest >= least) for least in low],
        [np.count_nonzero(smallest <= most) for most in high],
    ]
    return np.array(counts, dtype=np.float64)


def law(counts: Values, extremes: Values, n_draws: int, extra: int) -> Law:
    """Return the law of draws that were counted, with `extra` of the data themselves."""
    low, high = np.quantile(extremes[1], (0.025, 0.05)), np.quantile(extremes[0], (0.95, 0.975))
    shares = (counts + extra) / (n_draws + extra)
    return Law(shares[:2], shares[2:], np.concatenate([low, high]))
