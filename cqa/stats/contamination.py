"""Did the base see an item in training: Min-K% of the right option, and items that stand out.

A text that was trained on has few tokens that surprise the model. Source: Shi et al. 2023,
"Detecting pretraining data from large language models", with K = 20. It is asked of the option by
itself, after the null context: after its own context it would measure the same as dI.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

K_SHARE = 0.2
# Iglewicz & Hoaglin 1993, "How to detect and handle outliers": 0.6745 (x - median) / MAD > 3.5
STANDS_OUT = 3.5
NORMAL_MAD = 0.6745


@dataclass(frozen=True, slots=True)
class Standing:
    """How an item stands in its group by Min-K%."""

    min_k: float  # nats/token
    robust_z: float | None  # None where half of the group or more have one value

    @property
    def stands_out(self) -> bool:
        """Whether it is more expected than the group explains."""
        return self.robust_z is not None and self.robust_z > STANDS_OUT


def min_k_percent(token_logp_nats: Sequence[float] | None) -> float | None:
    """Return the mean log-probability of the fifth of tokens that are least expected.

    At least one token is taken. None where no tokens are stored.

    Args:
        token_logp_nats: Log-probability of each token of a text, nats.
    """
    if not token_logp_nats:
        return None
    n_lowest = max(1, int(K_SHARE * len(token_logp_nats)))
    return float(np.mean(np.sort(token_logp_nats)[:n_lowest]))


def standings(min_k: Mapping[str, float | None]) -> dict[str, Standing] | None:
    """Return how the items of one group stand by Min-K%; None where one of them has no tokens."""
    known = {item_id: value for item_id, value in min_k.items() if value is not None}
    if not known or len(known) < len(min_k):
        return None
    values = np.array(list(known.values()))
    centre = float(np.median(values))
    mad = float(np.median(np.abs(values - centre)))
    return {
        item_id: Standing(value, NORMAL_MAD * (value - centre) / mad if mad > 0 else None)
        for item_id, value in known.items()
    }
