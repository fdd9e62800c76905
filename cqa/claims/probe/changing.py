"""An adapter's states against the base's: probes trained anew with the two exchanged.

Which of two sets of probes is the better cannot be tested with the probes taken as they are: much
of the difference is the luck of what each was trained on. So probes are trained anew with the
states of whole sources exchanged between base and adapter, by the same fair coins for every layer
and adapter; where the adapter changes nothing of what can be read off, the true assignment is one
of them like any other. For both to have the same scale in every exchange, features are scaled by
the training items' states of base and adapter together.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from cqa.claims.probe.auc import auc
from cqa.claims.probe.folds import Fold
from cqa.claims.probe.logistic import out_of_fold
from cqa.stats.clusters import Values


def exchanged(
    states: Iterable[tuple[Sequence[Values], Sequence[Values]]],
    folds: Sequence[Fold],
    swaps: Values,
) -> Values:
    """Return by how much the adapter's AUC exceeds the base's.

    Args:
        states: Of each layer the base's and the adapter's differences at each position, (n, d).
        folds: Of the items.
        swaps: (n, B) -1 where an item's states are exchanged.

    Returns:
        (F, 1 + B) for each state: in truth, and with sources exchanged.
    """
    n = len(swaps)
    truth = np.ones((n, 1))
    own = np.concatenate([truth, swaps], axis=1) > 0
    # an item is there twice, and each labelling leaves out one of its two states
    signs = np.concatenate([np.hstack([own, ~own]), np.hstack([~own, own])]).astype(np.float64)
    both = [_twice(fold, n) for fold in folds]
    found = []
    for base, adapter in states:
        for pair in zip(base, adapter, strict=True):
            told = out_of_fold(np.concatenate(pair), signs, both).odds
            areas = [auc(t[s != 0]) for t, s in zip(told.T, signs.T, strict=True)]
            first, second = np.split(np.array(areas), 2)
            found.append(second - first)
    return np.array(found)


def _twice(fold: Fold, n: int) -> Fold:
    """Return a fold of items that are there a second time, n places on."""
    train, test = (np.concatenate([items, items + n]) for items in (fold.train, fold.test))
    return Fold(train, test, tuple(_twice(one, n) for one in fold.inner))
