"""Results of tests, and how a result becomes JSON.

Results are written and never read: a report computes them anew from the rows. JSON keys are the
fields' names in their order, but where `merged` or `stored_as` says otherwise. What does not exist
(a test of one item, a mean of none) is None, never NaN.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, is_dataclass
from typing import Any, Literal

Interval = tuple[float, float]
Alternative = Literal["greater", "less", "two-sided"]


def stored_as(key: str) -> dict[str, object]:
    """Return the metadata of a field whose JSON key is not its name."""
    return {"key": key}


def merged(*keys: str) -> dict[str, object]:
    """Return the metadata of a field whose parts stand among the keys of what holds it.

    Args:
        keys: What the parts are called there, in their order; by default as they are.
    """
    return {"parts": keys}


def unwritten() -> dict[str, object]:
    """Return the metadata of a field that only the program itself uses."""
    return {"written": False}


def to_json(value: Any) -> Any:
    """Return a result as `json.dumps` takes it."""
    if is_dataclass(value):
        held: dict[str, Any] = {}
        for f in fields(value):
            part = to_json(getattr(value, f.name))
            if "parts" in f.metadata:
                held |= zip(f.metadata["parts"] or part, part.values(), strict=True)
            elif f.metadata.get("written", True):
                held[f.metadata.get("key", f.name)] = part
        return held
    if isinstance(value, dict):
        return {key: to_json(part) for key, part in value.items()}
    if isinstance(value, (tuple, list)):
        return [to_json(part) for part in value]
    return value


@dataclass(frozen=True, slots=True)
class PairedChange:
    """Means before and after of one quantity, and the mean change with its t interval."""

    before: float | None
    after: float | None
    change: float | None
    ci95: Interval | None


@dataclass(frozen=True, slots=True)
class Wilcoxon:
    """Result of a signed-rank test."""

    w_plus: float
    p: float
    alternative: Alternative
    method: str
    n_zero: int


@dataclass(frozen=True, slots=True)
class PairedT:
    """Result of a one-sample t-test of the mean difference against 0."""

    t: float | None
    df: int
    p_one_sided: float | None
    p_two_sided: float | None


@dataclass(frozen=True, slots=True)
class SignTest:
    """Result of an exact sign test: how many differences are positive."""

    n_positive: int
    n_nonzero: int
    p: float


@dataclass(frozen=True, slots=True)
class Welch:
    """Result of comparing two groups' means without assuming equal spreads."""

    difference: float
    t: float | None
    df: float | None
    p_two_sided: float | None
    ci95: Interval | None


@dataclass(frozen=True, slots=True)
class Equivalence:
    """Whether a change lies within a margin: that of two one-sided tests at 5 %."""

    estimate: float | None
    unit: Literal["d_z", "nats"]
    ci90: Interval | None  # over sources
    margin: float
    within: bool | None  # None where there is no interval
    smallest_margin: float | None  # the smallest that the interval would lie within


@dataclass(frozen=True, slots=True)
class Correlation:
    """Spearman's rank correlation."""

    rho: float
    p_two_sided: float
