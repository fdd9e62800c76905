"""Shrinkage: a change of dI that is only a part of what dI was before.

Where an adapter draws every dI towards 0, dI_B = b dI_A with b below 1, the mean rises wherever it
was negative, and nothing was learned of quality. A line through the items tells that part of the
mean ddI, (b - 1) mean dI_A, from the rest: what an item with dI_A = 0 gains.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy import stats

from cqa.schema.comparison import Shrinkage
from cqa.stats.clusters import source_numbers
from cqa.stats.tests import Floats


def shrinkage(before: Floats, after: Floats, sources: Sequence[str | None]) -> Shrinkage | None:
    """Return the least-squares line of dI_B on dI_A with intervals that allow for sources.

    None with fewer than three sources, or where dI_A has no spread.

    Source: Cameron & Miller 2015, "A practitioner's guide to cluster-robust inference": CR1 errors,
    t with G - 1 degrees of freedom.

    Args:
        before: dI under the base, nats, an item each.
        after: dI under the adapter.
        sources: The source of each item; an item without one is a source of its own.
    """
    x, y = np.asarray(before, dtype=np.float64), np.asarray(after, dtype=np.float64)
    numbers = source_numbers(sources)
    n, g = len(x), len(set(numbers.tolist()))
    if g < 3 or float(np.ptp(x)) <= 1e-12 * float(np.abs(x).max()):
        return None
    design = np.stack([np.ones(n), x], axis=1)
    bread = np.linalg.inv(design.T @ design)
    rest, slope = bread @ (design.T @ y)
    scores = design * (y - design @ np.array([rest, slope]))[:, None]
    sums = np.stack([np.bincount(numbers, weights=column) for column in scores.T], axis=1)
    meat = sums.T @ sums * (g / (g - 1)) * ((n - 1) / (n - 2))
    halves = stats.t.ppf(0.975, g - 1) * np.sqrt(np.diag(bread @ meat @ bread))
    mean = float(x.mean())
    return Shrinkage(
        mean_delta_i_base_nats=mean,
        slope=float(slope),
        slope_ci95=(float(slope - halves[1]), float(slope + halves[1])),
        by_shrinkage_nats=float((slope - 1) * mean),
        rest_nats=float(rest),
        rest_ci95_nats=(float(rest - halves[0]), float(rest + halves[0])),
    )
