"""What of a matrix of works and wordings belongs to an audience: residual, test, and ranks.

The columns are wordings, those of one audience beside each other. A column without its mean over
works has no more what a wording does to all works; a row without its mean over columns no more what
a work is to all wordings. If an audience is more than its wordings, what remains is alike among
them, and the share of its squares that lies between audiences is larger than with the columns dealt
to audiences at random; for that all columns are made of one size. Works stay as they are: the test
holds whatever their dependence.

Source: Anderson 2001, "A new method for non-parametric multivariate analysis of variance"; the
share R is its R², and between / within is R / (1 - R), of the same order in every dealing.
"""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from cqa.stats.clusters import Numbers, Values
from cqa.stats.deciding import DRAWS
from cqa.stats.tests import ALPHA

MOST_EXACT = 20_000  # dealings that are enumerated; of more, 9,999 are drawn
BOOTSTRAP_DRAWS = 1_999
SEED = 0
_ROUNDING = 1e-24  # a share of the squares that is no residual
_ROUNDS = 2  # of weighing: with more, one wording comes to be the mean of all
_LEAST = 1e-3  # of the mean square of columns, what one counts as at least
_AT_ONCE = 4_000_000  # numbers of a part of the dealings
_SLACK = 1e-9
Model = TypeVar("Model")


@dataclass(frozen=True, slots=True)
class Dealings:
    """Ways to deal N columns to groups of given sizes, the one of the data first."""

    columns: Numbers  # (P, N): which columns the groups get, group after group
    sizes: tuple[int, ...]
    exact: bool  # whether they are all

    def __len__(self) -> int:
        return len(self.columns)


@dataclass(frozen=True, slots=True)
class Share:
    """The share of a residual's squares between audiences, against its law over dealings."""

    value: float | None  # None where works and wordings only add
    dealt: float  # its mean over dealings
    p: float | None  # of a share as large, corrected for all models; None if not tested
    p_against: float | None  # of one as small
    untested: str | None

    @property
    def excess(self) -> float | None:
        """The share beyond what dealt wordings have."""
        return None if self.value is None else self.value - self.dealt

    @property
    def ratio(self) -> float | None:
        """Squares between audiences by those within; None where there are none within."""
        if self.value is None or self.value > 1 - _SLACK:
            return None
        return self.value / (1 - self.value)


def centred(matrix: Values) -> Values:
    """Return a matrix without its row means and its column means."""
    rows, columns = matrix.mean(1, keepdims=True), matrix.mean(0, keepdims=True)
    found: Values = matrix - rows - columns + matrix.mean()
    return found


def n_dealings(sizes: Sequence[int]) -> int:
    """Return how many dealings are not the same groups in another order."""
    ways = math.factorial(sum(sizes))
    for size, n_groups in Counter(sizes).items():
        ways //= math.factorial(size) ** n_groups * math.factorial(n_groups)
    return ways


def dealings(sizes: Sequence[int]) -> Dealings:
    """Return all dealings of columns to groups, or 9,999 drawn ones beside that of the data.

    Args:
        sizes: Columns of each group, as they stand beside each other.
    """
    n, exact = sum(sizes), n_dealings(sizes) <= MOST_EXACT
    if exact:
        found = np.array(list(_all_dealings(sizes)), dtype=np.intp)
    else:
        rng = np.random.default_rng((SEED, 1))
        own = np.arange(n, dtype=np.intp)
        found = np.concatenate([own[None], rng.permuted(np.tile(own, (DRAWS, 1)), axis=1)])
    return Dealings(found, tuple(sizes), exact)


def _all_dealings(sizes: Sequence[int]) -> Iterator[list[int]]:
    """Yield every dealing once, groups of one size in the order of their first column."""

    def deal(group: int, left: tuple[int, ...], dealt: list[list[int]]) -> Iterator[list[int]]:
        if group == len(sizes):
            yield [column for held in dealt for column in held]
            return
        before = [dealt[k][0] for k in range(group) if sizes[k] == sizes[group]]
        for held in itertools.combinations(left, sizes[group]):
            if not before or held[0] > before[-1]:
                rest = tuple(column for column in left if column not in held)
                yield from deal(group + 1, rest, [*dealt, list(held)])

    return deal(0, tuple(range(sum(sizes))), [])


def standardised(columns: Values) -> Values | None:
    """Return the residual of works and wordings with every wording of one size: (W, N).

    Strong or wild wordings have large residuals. Dealt as they are, they would seem alike where
    they stand together, in one test of ten at three times the others' spread and in one of four
    where their audience has fewer wordings; and in the mean of a work they would stand in every
    other's residual. So that mean weighs each wording by its precision, found in two rounds, and
    what remains has columns of norm 1.

    Args:
        columns: A number of each work after each wording: (W, N).

    Returns:
        None where the residual is nothing but rounding.
    """
    moved = columns - columns.mean(0)
    residual: Values = moved - moved.mean(1, keepdims=True)
    if (residual**2).sum() <= _ROUNDING * (columns**2).sum():
        return None
    for _ in range(_ROUNDS):
        weights = 1 / _squares(residual)
        residual = moved - (moved @ weights / weights.sum())[:, None]
    residual = residual / np.sqrt(_squares(residual))
    found: Values = residual - residual.mean(1, keepdims=True)
    return found


def _squares(residual: Values) -> Values:
    """Return the squares of each column, of one that is almost 0 a small share of the mean."""
    squares = (residual**2).sum(0)
    found: Values = np.maximum(squares, _LEAST * squares.mean())
    return found


def share_law(residual: Values, ways: Dealings) -> Values:
    """Return the share between groups in every dealing: (P,), that of the data first.

    Args:
        residual: Of each work and each wording, the mean of a work 0: (W, N).
        ways: How the columns are dealt.
    """
    gram = residual.T @ residual
    between = np.zeros(len(ways))
    starts = np.cumsum([0, *ways.sizes])
    at_once = max(1, _AT_ONCE // max(ways.sizes) ** 2)
    for first in range(0, len(ways), at_once):
        part = ways.columns[first : first + at_once]
        for start, size in itertools.pairwise(starts):
            held = part[:, start:size]
            inner = gram[held[:, :, None], held[:, None, :]]
            between[first : first + at_once] += inner.sum((1, 2)) / held.shape[1]
    found: Values = between / np.trace(gram)
    return found


def tested_shares(models: Mapping[Model, Values], ways: Dealings) -> dict[Model, Share]:
    """Test under every model whether wordings of one audience are alike in what they do to works.

    One dealing serves all models; each law is freed of its mean and spread, and the largest of a
    dealing is what a model's own must exceed (max-T, single step).

    Args:
        models: Of each model a number of each work after each wording: (W, N).
        ways: To deal the wordings to audiences.
    """
    residuals = {name: standardised(columns) for name, columns in models.items()}
    laws = {n: None if held is None else share_law(held, ways) for n, held in residuals.items()}
    live = {name: law for name, law in laws.items() if law is not None and np.ptp(law) > _SLACK}
    standard = {name: (law - law.mean()) / law.std() for name, law in live.items()}
    expected = (len(ways.sizes) - 1) / (sum(ways.sizes) - 1)
    fewest = math.ceil(1 / ALPHA)
    few = None
    if len(ways) < fewest:
        few = f"{len(ways)} ways to deal the wordings, of {fewest} that the test needs"
    highest = np.max(list(standard.values()), axis=0) if standard else None
    lowest = np.min(list(standard.values()), axis=0) if standard else None
    found = {}
    for name, law in laws.items():
        if law is None or name not in standard:
            value = None if law is None else float(law[0])
            found[name] = Share(value, expected, None, None, "no residual that dealing changes")
            continue
        p = p_against = None
        if few is None:
            observed = standard[name][0]
            p = float(np.mean(highest >= observed - _SLACK))
            p_against = float(np.mean(lowest <= observed + _SLACK))
        found[name] = Share(float(law[0]), float(law.mean()), p, p_against, few)
    return found


def audience_means(columns: Values, sizes: Sequence[int]) -> Values:
    """Return the mean over the wordings of each audience: (W, A)."""
    ends = np.cumsum(sizes)[:-1]
    return np.stack([part.mean(1) for part in np.split(columns, ends, axis=1)], axis=1)


def ranks(residual: Values) -> Numbers:
    """Return each audience's rank within each work, the largest residual 1: (W, A)."""
    order = np.argsort(-residual, axis=1, kind="stable")
    found: Numbers = np.argsort(order, axis=1, kind="stable") + 1
    return found


def rank_intervals(columns: Values, sizes: Sequence[int]) -> NDArray[np.intp]:
    """Return the central 95 % of each rank over wordings drawn anew: (W, A, 2).

    The wordings of each audience are drawn with replacement, the same ones for all works.

    Source: Efron & Tibshirani 1993, "An introduction to the bootstrap", section 13.3.
    """
    n_works, n_audiences = len(columns), len(sizes)
    rng = np.random.default_rng((SEED, 2))
    counts = np.zeros((n_works, n_audiences, n_audiences), dtype=np.int32)
    place = np.ix_(np.arange(n_works), np.arange(n_audiences))
    for _ in range(BOOTSTRAP_DRAWS):
        drawn = [rng.multinomial(size, np.full(size, 1 / size)) / size for size in sizes]
        starts = np.cumsum([0, *sizes])
        means = np.stack(
            [
                columns[:, start : start + len(weights)] @ weights
                for start, weights in zip(starts[:-1], drawn, strict=True)
            ],
            axis=1,
        )
        counts[(*place, ranks(centred(means)) - 1)] += 1
    below = counts.cumsum(2)
    low = (below > 0.025 * BOOTSTRAP_DRAWS).argmax(2) + 1
    high = (below >= 0.975 * BOOTSTRAP_DRAWS).argmax(2) + 1
    return np.stack([low, high], axis=2)
