"""Choosing one of several adapters, and what the choice is worth.

The number of the adapter that looked best on some items is too good on these items. It is honest
where the choice saw other sources (cross-fitting), another file, or nothing (the last epoch).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from cqa.stats import moments
from cqa.stats.clusters import Clusters, Values, by_source, source_numbers
from cqa.stats.deciding import drawn_counts, draws_for
from cqa.stats.tests import cohen_d_z, wilcoxon

FOLDS = 10
DRAWS = 2_000


@dataclass(frozen=True, slots=True)
class CrossFitted:
    """The change of each item under the adapter that the other sources chose."""

    values: Values  # in the order of the items
    n_chosen: dict[str, int]  # folds that chose each adapter
    n_folds: int


def choose(clusters: Clusters) -> str:
    """Return the adapter with the largest studentised mean; the earliest among equals."""
    return clusters.names[int(_studentised(clusters).argmax())]


def _studentised(clusters: Clusters) -> Values:
    errors = clusters.errors()
    with np.errstate(divide="ignore", invalid="ignore"):
        t = clusters.means() / errors
    return np.where(errors > 0, t, -np.inf)


def paper_choice(by_epoch: Mapping[str, Sequence[float] | Values]) -> str:
    """Return the epoch of the paper's rule: smallest one-sided Wilcoxon p, then largest d_z.

    Such a choice on the items that are then reported is exploratory.
    """

    def rank(name: str) -> tuple[float, float]:
        values = by_epoch[name]
        return wilcoxon(values).p, -(cohen_d_z(values) or 0.0)

    return min(by_epoch, key=rank)


def cross_fit(
    values: Mapping[str, Sequence[float] | Values], sources: Sequence[str | None], *, seed: int = 0
) -> CrossFitted | None:
    """Choose an adapter for each fold of sources on all other folds.

    None with fewer than four sources, too few to leave some out.

    Args:
        values: One number an item under each adapter, all in the order of `sources`.
        sources: The source of each item; an item without one is a source of its own.
        seed: Decides which sources share a fold.
    """
    numbers = source_numbers(sources)
    g = int(numbers.max(initial=-1)) + 1
    if g < 4:
        return None
    n_folds = min(FOLDS, g)
    fold_of_source = np.random.default_rng((seed, 3)).permutation(np.arange(g) % n_folds)
    folds = fold_of_source[numbers]
    whole = by_source(values, sources)
    chosen = []
    for fold in range(n_folds):
        others = fold_of_source != fold
        chosen.append(choose(Clusters(whole.names, whole.sums[others], whole.sizes[others])))
    found = np.empty(len(numbers))
    for name in dict.fromkeys(chosen):
        its = np.isin(folds, [fold for fold, own in enumerate(chosen) if own == name])
        found[its] = np.asarray(values[name], dtype=np.float64)[its]
    return CrossFitted(found, {name: chosen.count(name) for name in values}, n_folds)


def stability(clusters: Clusters, *, seed: int = 0) -> dict[str, float]:
    """Return how often each adapter would be chosen if the sources were drawn anew."""
    residuals = clusters.residuals()
    if moments.many(residuals):
        return _stability_of_many(clusters, residuals, seed)
    g = clusters.n_sources
    draws = min(DRAWS, draws_for(g))
    rng = np.random.default_rng((seed, 4))
    chosen = np.zeros(len(clusters.names))
    sizes = clusters.sizes[:, None]
    table = np.concatenate(
        [clusters.sums, clusters.sums**2, sizes * clusters.sums, sizes, sizes**2], axis=1
    )
    step = max(1, 4_000_000 // g)
    for first in range(0, draws, step):
        drawn = drawn_counts(rng, min(step, draws - first), g) @ table
        k = len(clusters.names)
        total, squared, by_size = (drawn[:, i * k : (i + 1) * k] for i in range(3))
        mean = total / drawn[:, -2:-1]
        squares = squared - 2 * mean * by_size + mean**2 * drawn[:, -1:]
        with np.errstate(divide="ignore", invalid="ignore"):
            t = total / np.sqrt(squares)
        best = np.where(squares > 1e-12 * squared, t, -np.inf).argmax(axis=1)
        chosen += np.bincount(best, minlength=k)
    return dict(zip(clusters.names, (chosen / draws).tolist(), strict=True))


def _stability_of_many(clusters: Clusters, residuals: Values, seed: int) -> dict[str, float]:
    """Return the same from the influence of each source on t = mean / error.

    Source: van der Vaart 1998, "Asymptotic statistics", chapter 3.
    """
    errors = clusters.errors() * clusters.n_items
    live = errors > 0
    t = np.where(live, clusters.means() * clusters.n_items, 0.0)[live] / errors[live]
    unit = residuals[:, live] / errors[live]  # squares sum to 1
    influence = unit - t / 2 * (unit**2 - 1 / clusters.n_sources)
    covariance = influence.T @ influence
    z = moments.normal_draws(covariance, moments.DRAWS, np.random.default_rng((seed, 4)))
    best = (t + z * np.sqrt(np.diag(covariance))).argmax(axis=1)
    chosen = np.zeros(len(live))
    chosen[live] = np.bincount(best, minlength=int(live.sum())) / len(best)
    return dict(zip(clusters.names, chosen.tolist(), strict=True))
