"""Laws of means of very many sources, from their moments instead of draws.

Draws of a million sources take hours, and what they would show is known: a mean of many parts none
of which weighs much is normal but for its skewness. What that leaves out is of the order of the
weight of the heaviest part, so that with the limits below p is off by less than the Monte Carlo
error of 9,999 draws. `tests/stats/test_moments.py` holds these laws to draws.

Source: Hall 1992, "The bootstrap and Edgeworth expansion", sections 2.3 and 3.5.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Values = npt.NDArray[np.float64]
MANY_SOURCES = 2_000  # where 9,999 draws are as many numbers as a test may draw
HEAVIEST = 0.01  # of the squares: no source may weigh more
DRAWS = 99_999  # of the few statistics, not of the sources


def many(residuals: Values) -> bool:
    """Whether sources are so many, and each weighs so little, that moments tell the law.

    Args:
        residuals: What each source adds beyond the mean: (sources,) or (sources, K).
    """
    if len(residuals) < MANY_SOURCES:
        return False
    table = residuals.reshape(len(residuals), -1)
    heaviest = np.maximum(table.max(0), -table.min(0)) ** 2
    return bool((heaviest <= HEAVIEST * np.einsum("gk,gk->k", table, table)).all())


def normal_draws(covariance: Values, draws: int, rng: np.random.Generator) -> Values:
    """Return draws of K normal numbers of variance 1 with the correlations of a covariance.

    Args:
        covariance: (K, K), none of the variances 0.
        draws: How many.
        rng: Draws them.

    Returns:
        (draws, K).
    """
    sd = np.sqrt(np.diag(covariance))
    values, vectors = np.linalg.eigh(covariance / np.outer(sd, sd))
    roots = vectors * np.sqrt(np.maximum(values, 0.0))
    found: Values = rng.standard_normal((draws, len(sd))) @ roots.T
    return found


def studentised(z: Values, skewness: Values) -> Values:
    """Return the bootstrap's t of what is normally z, to second order.

    Args:
        z: Standard normal numbers.
        skewness: Of the mean, not of its parts.
    """
    found: Values = z - skewness * (2 * z**2 + 1) / 6
    return found


def bca_ends(z: Values, skewness: float) -> Values:
    """Return the ends of the BCa interval of a mean, in standard errors from it.

    Bias correction and acceleration are both a sixth of the skewness, and a bootstrap mean is at
    z + skewness (z² - 1) / 6 where it is normally z.

    Args:
        z: The normal quantiles of the ends.
        skewness: Of the mean.
    """
    a = skewness / 6
    corrected = a + (a + z) / (1 - a * (a + z))
    found: Values = corrected + a * (corrected**2 - 1)
    return found
