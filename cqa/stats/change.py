"""Means before and after, and the mean change, of the same items under two models."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from cqa.schema.result import PairedChange
from cqa.stats.tests import t_interval


def differences(before: Sequence[float], after: Sequence[float]) -> list[float]:
    """Return after - before, item by item."""
    return [y - x for x, y in zip(before, after, strict=True)]


def mean(values: Sequence[float]) -> float | None:
    """Return the mean, None of nothing."""
    return float(np.mean(values)) if len(values) else None


def paired_change(before: Sequence[float], after: Sequence[float]) -> PairedChange:
    """Return the means before and after, and the mean change with its t interval."""
    moved = differences(before, after)
    return PairedChange(mean(before), mean(after), mean(moved), t_interval(moved))
