"""Probes of every layer of a model, and of its text-only baselines."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from cqa.claims.probe.auc import auc
from cqa.claims.probe.folds import Fold
from cqa.claims.probe.logistic import out_of_fold
from cqa.claims.probe.row import POSITIONS, ProbeRow
from cqa.stats.clusters import Values


@dataclass(frozen=True, slots=True)
class Probed:
    """What probes of a model told out of fold; F states, layer by layer, the positions of each."""

    odds: Values  # (F, n): of each item by its true label
    chosen: Values  # (n,): of the layer that the training items of each fold choose
    auc: Values  # (F,)
    null: Values  # (F, B): with labels swapped
    control: Values  # (F, controls)
    text: Values  # (n,): by length, bytes and S
    s_alone: Values  # (n,): S of the good option minus that of the bad one


def probed(
    states: Iterable[Sequence[Values]],
    rows: Sequence[ProbeRow],
    folds: Sequence[Fold],
    swaps: Values,
    controls: Values,
) -> Probed:
    """Train every probe, of all labellings alike.

    Args:
        states: Of each layer the differences good minus bad at each position, (n, d).
        rows: The items.
        folds: Of the items.
        swaps: (n, B) signs of items whose options are swapped.
        controls: (n, controls) signs by random labels of first tokens.
    """
    truth = np.ones((len(rows), 1))
    signs = np.concatenate([truth, swaps, controls], axis=1)
    odds, losses, areas = [], [], []
    for positions in states:
        for differences in positions:
            told = out_of_fold(differences, signs, folds)
            odds.append(told.odds[:, 0])
            losses.append(told.losses[:, 0])
            areas.append([auc(t[s != 0]) for t, s in zip(told.odds.T, signs.T, strict=True)])
    table, n_swaps = np.array(areas), swaps.shape[1]
    text = np.array([_text(row) for row in rows])
    return Probed(
        odds=np.array(odds),
        chosen=_chosen(np.array(odds), np.array(losses), folds),
        auc=table[:, 0],
        null=table[:, 1 : n_swaps + 1],
        control=table[:, n_swaps + 1 :],
        text=out_of_fold(text, truth, folds).odds[:, 0],
        s_alone=text[:, 2],
    )


def _chosen(odds: Values, losses: Values, folds: Sequence[Fold]) -> Values:
    """Return each fold's log-odds by the layer of the least loss within what it trains on.

    So the layer is chosen without a look at the items that are asked of: its AUC needs no
    correction for having looked at all of them.
    """
    found = np.zeros(odds.shape[1])
    for k, fold in enumerate(folds):
        best = int(layers_after(losses)[:, k].argmin())
        found[fold.test] = layers_after(odds)[best, fold.test]
    return found


def _text(row: ProbeRow) -> tuple[float, float, float]:
    (n, m), (b, c), (s, t) = row.n_tokens, row.n_bytes, row.logp_nats
    return n - m, b - c, s - t


def first_layer(values: Values) -> Values:
    """Return what is of the embeddings."""
    return values[: len(POSITIONS)]


def layers_after(values: Values) -> Values:
    """Return what is of the layers after the embeddings."""
    return values[len(POSITIONS) :]
