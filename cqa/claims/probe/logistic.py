"""Probes of differences: L2 logistic regression by its Gram matrix, for many labellings at once.

Of each item the difference d of two options' features is known, and a sign says which of them a
labelling calls good. The probe w minimises

    Σ_i log(1 + exp(-s_i w·d_i)) + |w|² / 2C

which is scikit-learn's LogisticRegression(C=C, fit_intercept=False) of the features s_i d_i given
the labels s_i, whatever signs the differences are written with: swapping the two options of an item
changes nothing. There is no intercept, and features are divided by their root mean square with no
mean taken off, for the same reason. So the random sign that a difference would be given needs no
draw, and a labelling with the options of some items swapped has the same scaled features. w is a
combination of the differences, so all labellings of a fold share one matrix of their products.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from cqa.claims.probe.folds import Fold
from cqa.errors import NumericsError
from cqa.stats.clusters import Values

PENALTIES = (0.01, 0.1, 1.0, 10.0)  # C, of features scaled to a mean square norm of 1
_TOLERANCE = 1e-7  # of log-odds
_MOST_STEPS = 20_000


@dataclass(frozen=True, slots=True)
class Told:
    """What probes say of items that they were not trained on, by each of B labellings."""

    odds: Values  # (n, B) log-odds of the option that is called good; 0 for items left out
    losses: Values  # (folds, B) log loss of the training items, over inner folds, by the chosen C


def out_of_fold(differences: Values, signs: Values, folds: Sequence[Fold]) -> Told:
    """Return what probes say of items that they were not trained on.

    Scaling, C (of `PENALTIES`, the smallest log loss over inner folds) and w are of the training
    items of a fold alone, and of each labelling alone.

    Args:
        differences: (n, d) features of one option minus those of the other.
        signs: (n, B) ±1 for each labelling: whether it calls the first option good; 0 leaves an
            item out.
        folds: Which items are trained on and tested together.

    Raises:
        NumericsError: A feature is not finite.
    """
    if not np.isfinite(differences).all():
        raise NumericsError("expected finite states of the model, got others")
    odds, least = np.zeros(signs.shape), []
    for fold in folds:
        losses = np.zeros((len(PENALTIES), signs.shape[1]))
        for inner in fold.inner:
            for loss, told in zip(losses, _told(differences, signs, inner), strict=True):
                loss += np.logaddexp(0, -told).sum(axis=0)
        chosen = losses.argmin(axis=0)
        least.append(losses.min(axis=0))
        odds[fold.test] = _chosen(differences, signs, fold, chosen)
    return Told(odds, np.array(least))


def _told(differences: Values, signs: Values, fold: Fold) -> list[Values]:
    """Return the tested items' log-odds by each C: a list of (n_test, B)."""
    gram, across = _products(differences, fold)
    own = signs[fold.train]
    return [signs[fold.test] * (c * across @ fit(gram, own, c)) for c in PENALTIES]


def _chosen(
    differences: Values,
    signs: Values,
    fold: Fold,
    chosen: np.ndarray[tuple[int], np.dtype[np.intp]],
) -> Values:
    """Return the tested items' log-odds, of each labelling by its own C."""
    gram, across = _products(differences, fold)
    told = np.zeros((len(fold.test), signs.shape[1]))
    for k, c in enumerate(PENALTIES):
        held = np.flatnonzero(chosen == k)
        if len(held):
            own = signs[np.ix_(fold.train, held)]
            told[:, held] = signs[np.ix_(fold.test, held)] * (c * across @ fit(gram, own, c))
    return told


def _products(differences: Values, fold: Fold) -> tuple[Values, Values]:
    """Return the products of scaled training items with each other, and of tested with them."""
    train = differences[fold.train]
    size = np.sqrt((train**2).mean(axis=0))
    held = size > 0  # what is the same in both options of every training item tells nothing
    scale = size[held] * np.sqrt(max(held.sum(), 1))
    scaled = train[:, held] / scale
    tested = differences[np.ix_(fold.test, held)] / scale
    return scaled @ scaled.T, tested @ scaled.T


def fit(gram: Values, signs: Values, c: float) -> Values:
    """Fit a probe for each labelling.

    The curvature of the loss is at most a quarter, so that steps by this bound always descend, and
    all labellings and steps share one inverse.

    Args:
        gram: (n, n) products of the items' features.
        signs: (n, B) of each labelling.
        c: Inverse strength of the L2 penalty.

    Returns:
        (n, B) g, where w = c Σ_i g_i d_i.

    Raises:
        NumericsError: A fit does not converge.

    Source: Böhning & Lindsay 1988, "Monotonicity of quadratic-approximation algorithms".
    """
    n, n_fits = signs.shape
    scaled = c * gram
    step = np.linalg.inv(np.eye(n) + scaled / 4)
    found = np.empty((n, n_fits))
    left = np.arange(n_fits)
    odds = np.zeros((n, n_fits))
    for _ in range(_MOST_STEPS):
        own = signs[:, left]
        pull = own / (1 + np.exp(own * odds))
        move = step @ (scaled @ pull - odds)
        odds += move
        moving = np.abs(move).max(axis=0, initial=0.0) > _TOLERANCE
        found[:, left[~moving]] = pull[:, ~moving]
        left, odds = left[moving], odds[:, moving]
        if not len(left):
            return found
    raise NumericsError(f"expected a probe to converge in {_MOST_STEPS} steps, got no end")
