"""Sums of log-probabilities to the paper's quantities. Nats throughout.

    I(x; y) = S(x|y) - S(x|∅)          pointwise mutual information
    dI      = I(good) - I(bad)          several options: I(right) - mean I(wrong)
Source: the paper's section 4.1.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

BIT = math.log(2)  # nats


def contrast(values: Sequence[float], answer: int) -> float:
    """Return the right option's value minus the wrong ones' mean: dI, for values of I(x; y)."""
    wrong = [value for k, value in enumerate(values) if k != answer]
    return values[answer] - math.fsum(wrong) / len(wrong)


def delta_i_best_wrong(pmi_nats: Sequence[float], answer: int) -> float:
    """Return dI against the strongest wrong option."""
    return pmi_nats[answer] - max(value for k, value in enumerate(pmi_nats) if k != answer)


def log_mean_exp(values: Sequence[float]) -> float:
    """Return ln of the mean of exp(values): of one value that value, to the last bit."""
    top = max(values)
    return top + math.log(math.fsum(math.exp(value - top) for value in values) / len(values))


def place_of_largest(values: Sequence[float]) -> int:
    """Return the place of the largest value, the earliest among equals."""
    return max(range(len(values)), key=values.__getitem__)


def softmax(values: Sequence[float]) -> list[float]:
    """Return probabilities proportional to exp(values)."""
    top = max(values)
    weights = [math.exp(value - top) for value in values]
    total = math.fsum(weights)
    return [weight / total for weight in weights]


def entropy(probabilities: Sequence[float]) -> float:
    """Return -sum p ln p in nats; what is impossible adds nothing."""
    return -math.fsum(p * math.log(p) for p in probabilities if p > 0)


def entropies(table: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Return the entropy of each row of probabilities; NaN stands for no candidate."""
    terms = np.nan_to_num(table * np.log(np.where(table > 0, table, 1.0)))
    if table.shape[1] == 2:
        return np.asarray(-(terms[:, 0] + terms[:, 1]))
    return np.array([-math.fsum(row) for row in terms.tolist()], dtype=np.float64)


def rank_prob(logp_nats: Sequence[float], n_bytes: Sequence[int], answer: int) -> float:
    """Return the right option's share of the softmax over log-probability per byte (§4.2)."""
    return softmax([s / n for s, n in zip(logp_nats, n_bytes, strict=True)])[answer]
