"""How many items a study needs, before any are collected: power of the deciding tests."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import stats

from cqa.schema.written import Result
from cqa.stats.clusters import Values, by_source
from cqa.stats.deciding import FEWEST_SOURCES, difference_test, family_test
from cqa.stats.equivalence import SMALL_D_Z, standardised_change

ALPHA = 0.05
RUNS = 400  # simulated studies at each size: a standard error of 2 points at 80 % power
DRAWS = 299
LARGEST = 20_000  # items; beyond, "more than"


@dataclass(frozen=True, slots=True)
class Design(Result):
    """What a study is assumed to look like; effects in units of the sd of the items' ddI."""

    d_z: float  # true effect in the primary group
    icc: float  # share of the variance that items of one source have in common
    items_per_source: int
    n_adapters: int  # epochs that are swept; their changes correlate as `rho`
    rho: float  # between adapters
    control_d_z: float  # true effect in the control group
    pilot: tuple[float, ...] = ()  # ddI of a pilot, whose shape is drawn from; () is normal

    def to_json(self) -> dict[str, Any]:
        """Return it as `json.dumps` takes it; of the pilot's values how many there are."""
        return Result.to_json(self) | {"pilot": len(self.pilot)}

    def shape(self) -> Values:
        """Return the pilot's values with mean 0 and sd 1."""
        values = np.asarray(self.pilot, dtype=np.float64)
        shape: Values = (values - values.mean()) / values.std()
        return shape


@dataclass(frozen=True, slots=True)
class Needed(Result):
    """How many items a group needs for 80 % power, and the power that was simulated there."""

    question: str
    n_items: int | None  # None: not within 20,000
    n_sources: int | None
    power: float | None


def draw_group(
    design: Design, n_items: int, d_z: float, rng: np.random.Generator
) -> tuple[dict[str, Values], list[str]]:
    """Return the changes of a group's items under each adapter, and their sources."""
    n_sources = math.ceil(n_items / design.items_per_source)
    source = np.arange(n_items) // design.items_per_source

    def once() -> Values:
        if design.pilot:
            shape = design.shape()
            own, common = rng.choice(shape, n_items), rng.choice(shape, n_sources)[source]
        else:
            own, common = rng.standard_normal(n_items), rng.standard_normal(n_sources)[source]
        found: Values = math.sqrt(design.icc) * common + math.sqrt(1 - design.icc) * own
        return found

    alike = once()
    values = {
        f"a{k}": d_z + math.sqrt(design.rho) * alike + math.sqrt(1 - design.rho) * once()
        for k in range(design.n_adapters)
    }
    return values, [f"s{k}" for k in source]


def power_at(design: Design, n_items: int, question: str, *, runs: int = RUNS) -> float:
    """Return the share of simulated studies in which a question is answered with "shown".

    Args:
        design: What the study looks like.
        n_items: Items of each group.
        question: "change", "selective" or "control_small".
        runs: Simulated studies.
    """
    judge = {"change": _change, "selective": _selective, "control_small": _control_small}[question]
    if math.ceil(n_items / design.items_per_source) < FEWEST_SOURCES:
        return 0.0
    return sum(judge(design, n_items, np.random.default_rng((k, 8))) for k in range(runs)) / runs


def _change(design: Design, n_items: int, rng: np.random.Generator) -> bool:
    values, sources = draw_group(design, n_items, design.d_z, rng)
    changes = family_test(by_source(values, sources), draws=DRAWS).changes.values()
    return any((c.p_greater_corrected or 1.0) <= ALPHA and c.mean > 0 for c in changes)


def _selective(design: Design, n_items: int, rng: np.random.Generator) -> bool:
    groups = [
        by_source(*draw_group(design, n_items, d_z, rng))
        for d_z in (design.d_z, design.control_d_z)
    ]
    changes = difference_test(*groups, draws=DRAWS).changes.values()
    return any((c.p_greater_corrected or 1.0) <= ALPHA / 2 and c.mean > 0 for c in changes)


def _control_small(design: Design, n_items: int, rng: np.random.Generator) -> bool:
    values, sources = draw_group(design, n_items, design.control_d_z, rng)
    return standardised_change(values["a0"], sources).within(SMALL_D_Z)


def items_needed(design: Design, question: str, *, goal: float = 0.8, runs: int = RUNS) -> Needed:
    """Return the fewest items, to within 5 %, at which the power reaches a goal."""

    def enough(n: int) -> bool:
        return power_at(design, n, question, runs=runs) >= goal

    low = high = max(design.items_per_source * FEWEST_SOURCES, _at_least(design, question, goal))
    if high > LARGEST:
        return Needed(question, None, None, None)
    while not enough(high):
        low, high = high, 2 * high
        if high > LARGEST:
            return Needed(question, None, None, None)
    n = _between(low, high, enough)
    sources = math.ceil(n / design.items_per_source)
    return Needed(question, n, sources, power_at(design, n, question, runs=runs))


def _at_least(design: Design, question: str, goal: float) -> int:
    """Return items that are too few for most designs, so that few sizes need be simulated."""
    n_groups, level, effect = {
        "change": (1, ALPHA, design.d_z),
        "selective": (2, ALPHA / 2, design.d_z - design.control_d_z),
        "control_small": (1, ALPHA, SMALL_D_Z - abs(design.control_d_z)),
    }[question]
    if effect <= 0:
        return LARGEST + 1
    normal = (float(stats.norm.isf(level)) + float(stats.norm.isf(1 - goal))) / effect
    inflated = 1 + (design.items_per_source - 1) * design.icc
    return min(LARGEST + 1, math.ceil(0.6 * n_groups * normal**2 * inflated))


def _between(low: int, high: int, enough: Callable[[int], bool]) -> int:
    while high - low > max(1, high // 20):
        middle = (low + high) // 2
        low, high = (low, middle) if enough(middle) else (middle, high)
    return high


def intraclass(values: Sequence[float], sources: Sequence[str | None]) -> float:
    """Return the share of the variance that items of one source have in common, 0 to 1.

    Source: Donner 1986, one-way analysis of variance with unequal sizes; negative estimates are 0.
    """
    table = by_source({"x": values}, sources)
    sizes, g, n = table.sizes, table.n_sources, table.n_items
    if g < 2 or n == g:
        return 0.0
    x = np.asarray(values, dtype=np.float64)
    means = table.sums[:, 0] / sizes
    between = (sizes * (means - x.mean()) ** 2).sum() / (g - 1)
    within = ((x**2).sum() - (sizes * means**2).sum()) / (n - g)
    typical = (n - (sizes**2).sum() / n) / (g - 1)
    total = between + (typical - 1) * within
    return float(min(1.0, max(0.0, (between - within) / total))) if total > 0 else 0.0
