"""Folds of whole sources: nothing of a source that is tested was trained on."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from cqa.stats.clusters import Numbers

OUTER, INNER = 5, 3
FEWEST_SOURCES = 4  # so that three remain to choose the penalty by


@dataclass(frozen=True, slots=True)
class Fold:
    """Numbers of the items that train and are tested, and folds within those that train."""

    train: Numbers
    test: Numbers
    inner: tuple[Fold, ...]


def folds(names: Sequence[str]) -> list[Fold]:
    """Split items into outer folds, and what trains in each into inner ones.

    What falls together does not hang on the order of the items: the largest source goes first, to
    the smallest fold; among equals the digest of its name decides.

    Args:
        names: The source of each item, of at least `FEWEST_SOURCES`.
    """
    every = np.arange(len(names), dtype=np.intp)
    return [
        Fold(train, test, tuple(Fold(a, b, ()) for a, b in _split(names, train, INNER)))
        for train, test in _split(names, every, OUTER)
    ]


def _split(names: Sequence[str], items: Numbers, n_folds: int) -> Iterator[tuple[Numbers, Numbers]]:
    by_source: dict[str, list[int]] = {}
    for k in items:
        by_source.setdefault(names[k], []).append(int(k))
    parts: list[list[int]] = [[] for _ in range(min(n_folds, len(by_source)))]
    for name in sorted(by_source, key=lambda name: (-len(by_source[name]), _digest(name))):
        min(parts, key=len).extend(by_source[name])
    for part in parts:
        tested = np.isin(items, part)
        yield items[~tested], items[tested]


def _digest(name: str) -> str:
    return hashlib.sha256(name.encode("utf-8", "surrogatepass")).hexdigest()
