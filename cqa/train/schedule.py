"""Learning rate by step: linear warm-up, then a cosine to zero, as transformers'."""

from __future__ import annotations

import math


def warmup_steps(total: int, ratio: float) -> int:
    """Steps with rising learning rate, rounded up."""
    return math.ceil(total * ratio)


def first_learning_step(total: int, ratio: float) -> int | None:
    """Return the first step whose rate is not zero, None where all are."""
    rises = warmup_steps(total, ratio) > 0  # a warm-up begins at zero
    return None if rises and total == 1 else 1 + rises


def learning_rate(step: int, total: int, *, peak: float, warmup: int) -> float:
    """Return the learning rate of step 1 … total; the first is 0 where there is a warm-up.

    Source: `get_cosine_schedule_with_warmup` with half a cycle; arXiv:1608.03983, eq. 5.
    """
    done = step - 1
    if done < warmup:
        return peak * done / warmup
    progress = (done - warmup) / max(1, total - warmup)
    return peak * max(0.0, 0.5 * (1 + math.cos(math.pi * progress)))
