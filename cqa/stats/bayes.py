"""How much more likely the changes are where there is an effect than where there is none."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from scipy import integrate

from cqa.stats.clusters import Values, by_source
from cqa.stats.tests import spread

SCALE = math.sqrt(2) / 2  # of the Cauchy prior of the standardised effect; "medium"


def jzs_bayes_factor(t: float, n: int, scale: float = SCALE) -> float:
    """Return BF10 of a one-sample t: a Cauchy prior of the standardised effect against none.

        BF10 = ∫ (1 + n g r²)^(-1/2) (1 + t² / ((1 + n g r²) ν))^(-(ν+1)/2) p(g) dg
               / (1 + t²/ν)^(-(ν+1)/2),   p(g) = (2π)^(-1/2) g^(-3/2) e^(-1/(2g)),   ν = n - 1

    The integral is taken over ln g, where its integrand has one smooth peak.

    Source: Rouder et al. 2009, "Bayesian t tests for accepting and rejecting the null hypothesis",
    equation 1, with the scale r of the prior.

    Args:
        t: The statistic of the mean against 0.
        n: How many values it is of, at least two.
        scale: r.
    """
    nu = n - 1
    null = -(nu + 1) / 2 * math.log1p(t * t / nu)

    def log_integrand(u: float) -> float:
        wide = 1 + n * scale**2 * math.exp(u)
        fit = -(nu + 1) / 2 * math.log1p(t * t / (wide * nu))
        prior = -0.5 * math.log(2 * math.pi) - u / 2 - math.exp(-u) / 2
        return fit - 0.5 * math.log(wide) + prior - null

    grid = np.linspace(-8, 60, 2001)
    heights = np.array([log_integrand(float(u)) for u in grid])
    top = int(heights.argmax())
    peak, height = float(grid[top]), float(heights[top])
    area = sum(
        integrate.quad(lambda u: math.exp(log_integrand(u) - height), *ends, limit=200)[0]
        for ends in ((-8.0, peak), (peak, peak + 20), (peak + 20, 120.0))
    )
    log_factor = height + math.log(area)
    return math.exp(log_factor) if log_factor < 700 else math.inf


def bayes_factor(
    differences: Sequence[float] | Values, sources: Sequence[str | None]
) -> float | None:
    """Return BF10 of the means of the sources, each counted once; None without spread.

    Args:
        differences: One number an item.
        sources: The source of each item; an item without one is a source of its own.
    """
    clusters = by_source({"": differences}, sources)
    means = clusters.sums[:, 0] / clusters.sizes
    sd = spread(means)
    if not sd:
        return None
    factor = jzs_bayes_factor(float(means.mean()) / sd * math.sqrt(len(means)), len(means))
    return factor if math.isfinite(factor) else None
