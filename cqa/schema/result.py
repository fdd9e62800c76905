"""Results of tests: written and never read, since a report computes them anew from the rows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from cqa.schema.written import Result

Interval = tuple[float, float]
Alternative = Literal["greater", "less", "two-sided"]


@dataclass(frozen=True, slots=True)
class PairedChange(Result):
    """Means before and after of one quantity, and the mean change with its t interval."""

    before: float | None
    after: float | None
    change: float | None
    ci95: Interval | None


@dataclass(frozen=True, slots=True)
class Wilcoxon(Result):
    """Result of a signed-rank test."""

    w_plus: float
    p: float
    alternative: Alternative
    method: str
    n_zero: int


@dataclass(frozen=True, slots=True)
class PairedT(Result):
    """Result of a one-sample t-test of the mean difference against 0."""

    t: float | None
    df: int
    p_one_sided: float | None
    p_two_sided: float | None


@dataclass(frozen=True, slots=True)
class SignTest(Result):
    """Result of an exact sign test: how many differences are positive."""

    n_positive: int
    n_nonzero: int
    p: float


@dataclass(frozen=True, slots=True)
class Welch(Result):
    """Result of comparing two groups' means without assuming equal spreads."""

    difference: float
    t: float | None
    df: float | None
    p_two_sided: float | None
    ci95: Interval | None


@dataclass(frozen=True, slots=True)
class Equivalence(Result):
    """Whether a change lies within a margin: that of two one-sided tests at 5 %."""

    estimate: float | None
    unit: Literal["d_z", "nats"]
    ci90: Interval | None  # over sources
    margin: float
    within: bool | None  # None where there is no interval
    smallest_margin: float | None  # the smallest that the interval would lie within


@dataclass(frozen=True, slots=True)
class Correlation(Result):
    """Spearman's rank correlation."""

    rho: float
    p_two_sided: float
