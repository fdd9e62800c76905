"""What must agree before a change counts as shown, beside its p."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from cqa.stats.clusters import Values, source_numbers, sum_by_source

HEAVY_SHARE = 0.1  # of the items, those with the largest changes in size


@dataclass(frozen=True, slots=True)
class Weights:
    """Who makes a mean: whether it keeps its sign without the heaviest source and items."""

    mean: float
    without_source: float | None  # mean without the source that weighs most; None with one source
    heaviest_source: str | None  # its name; None where an item without a source is it
    source_share: float | None  # of the sum, in that source; None where the sum is 0
    without_items: float | None  # mean without the tenth of items whose changes are largest in size
    n_items_left_out: int

    @property
    def turned_by_source(self) -> bool:
        """Whether one source decides the sign."""
        return _turned(self.mean, self.without_source)

    @property
    def turned_by_items(self) -> bool:
        """Whether a tenth of the items decides the sign."""
        return _turned(self.mean, self.without_items)


def _turned(mean: float, rest: float | None) -> bool:
    return rest is not None and np.sign(rest) != np.sign(mean)


def weigh(differences: Sequence[float] | Values, sources: Sequence[str | None]) -> Weights:
    """Return what remains of a mean change without the source and the items that weigh most.

    The source is the one without which the mean lies lowest, seen in the direction of its sign.

    Args:
        differences: One number an item; at least one.
        sources: The source of each item; an item without one is a source of its own.
    """
    values = np.asarray(differences, dtype=np.float64)
    n, mean = len(values), float(values.mean())
    numbers = source_numbers(sources)
    sums, sizes = sum_by_source(values, numbers), np.bincount(numbers)
    without_source = share = name = None
    if len(sums) > 1:
        rest = (values.sum() - sums) / (n - sizes)
        heaviest = int((rest * (1 if mean >= 0 else -1)).argmin())
        without_source = float(rest[heaviest])
        name = sources[int(np.argmax(numbers == heaviest))]
        share = float(sums[heaviest] / values.sum()) if values.sum() else None
    n_heavy = int(HEAVY_SHARE * n)
    light = np.argsort(np.abs(values), kind="stable")[: n - n_heavy]
    without_items = float(values[light].mean()) if n_heavy else None
    return Weights(mean, without_source, name, share, without_items, n_heavy)


def heavy(values: Sequence[float] | Values, sources: Sequence[str | None]) -> list[str]:
    """Return the source and the items without which a mean has not its sign."""
    problems = []
    weights = weigh(values, sources)
    if weights.turned_by_source:
        source = weights.heaviest_source
        which = f"source {source}" if source is not None else "one item"
        problems.append(f"without {which} the mean is {weights.without_source:+.2f}")
    if weights.turned_by_items:
        problems.append(
            f"without the {weights.n_items_left_out} items that change most the mean is "
            f"{weights.without_items:+.2f}"
        )
    return problems
