"""Which option of each item is called good: in truth, by chance, and by its first token."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from cqa.claims.probe.row import ProbeRow
from cqa.stats.clusters import Values, source_numbers

CONTROLS = 20  # random labels of tokens
SEED = 0


def swapped(sources: Sequence[str | None], n: int) -> Values:
    """Return labels with the options of whole sources swapped by fair coins: (n_items, n).

    A source is swapped as a whole, as its items may lean one way together.
    """
    numbers = source_numbers(sources)
    coins = np.random.default_rng((SEED, 1)).integers(0, 2, (n, numbers.max() + 1))
    return np.where(coins[:, numbers].T == 1, -1.0, 1.0)


def by_first_token(rows: Sequence[ProbeRow]) -> Values:
    """Return labels of a task that only memory solves: (n_items, CONTROLS).

    Every token gets a random number, and the option whose first token has the larger one is called
    good; 0 where both begin alike.

    Source: Hewitt & Liang 2019, "Designing and interpreting probes with control tasks".
    """
    tokens = np.array([row.first_tokens for row in rows])
    _, places = np.unique(tokens, return_inverse=True)
    places = places.reshape(tokens.shape)
    drawn = np.random.default_rng((SEED, 2)).random((places.max() + 1, CONTROLS))
    found: Values = np.sign(drawn[places[:, 0]] - drawn[places[:, 1]])
    return found
