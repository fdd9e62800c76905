"""Means before and after, and the mean change, of the same items under two models."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from cqa.schema.result import PairedChange
from cqa.stats.tests import Floats, t_interval


def differences(before: Floats, after: Floats) -> npt.NDArray[np.float64]:
    """Return after - before, item by item."""
    return np.asarray(after, dtype=np.float64) - np.asarray(before, dtype=np.float64)


def mean(values: Floats) -> float | None:
    """Return the mean, None of nothing."""
    return float(np.mean(values)) if len(values) else None


def paired_change(before: Floats, after: Floats) -> PairedChange:
    """Return the means before and after, and the mean change with its t interval."""
    moved = differences(before, after)
    return PairedChange(mean(before), mean(after), mean(moved), t_interval(moved))
