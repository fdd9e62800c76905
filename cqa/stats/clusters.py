"""Items summed by source: the unit of every deciding test.

Items of one source (a book, an author's page) say much the same thing, so what is independent is
the source. All tests and intervals are of the mean over items, with the sources as the units that
are flipped or drawn anew.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from cqa.stats.moments import MANY_SOURCES

Values = npt.NDArray[np.float64]
Numbers = npt.NDArray[np.intp]


@dataclass(frozen=True, slots=True)
class Clusters:
    """One number an item under each of K adapters, summed by source."""

    names: tuple[str, ...]  # of the K adapters
    sums: Values  # (G, K)
    sizes: Values  # (G,): items of each source

    @property
    def n_sources(self) -> int:
        """G, the sources."""
        return len(self.sizes)

    @property
    def n_as_skewed(self) -> float:
        """As many sources of equal size leave a mean as skewed as these: (sum n²)³ / (sum n³)².

        G where all are of one size; the fewer, the more of the items a few sources hold.
        """
        return float((self.sizes**2).sum() ** 3 / (self.sizes**3).sum() ** 2)

    @property
    def n_items(self) -> int:
        """N, the items of all sources."""
        return int(self.sizes.sum())

    def means(self) -> Values:
        """Return the mean over items under each adapter: (K,)."""
        found: Values = self.sums.sum(axis=0) / self.sizes.sum()
        return found

    def only(self, kept: npt.NDArray[np.bool_]) -> Clusters:
        """Return some of the adapters."""
        if kept.all() and len(self.sizes) >= MANY_SOURCES:
            return self  # a copy of a million sources is dear
        names = tuple(name for name, k in zip(self.names, kept, strict=True) if k)
        return Clusters(names, self.sums[:, kept], self.sizes)

    def residuals(self) -> Values:
        """Return what each source adds to the sum beyond the mean of its items: (G, K)."""
        found: Values = self.sums - self.sizes[:, None] * self.means()
        return found

    def errors(self) -> Values:
        """Return the standard error of each mean, robust to dependence within sources: (K,).

        Zero where all that remains of the spread is rounding. With one item a source it is the
        ordinary sd / sqrt(n).

        Source: Liang & Zeger 1986; G / (G - 1) as in Cameron & Miller 2015, "A practitioner's
        guide to cluster-robust inference".
        """
        squares = (self.residuals() ** 2).sum(axis=0)
        rounding = 1e-24 * (self.sums**2).sum(axis=0) * self.n_sources
        g = self.n_sources
        found = np.sqrt(np.where(squares > rounding, squares, 0.0) * g / max(g - 1, 1))
        errors: Values = found / self.sizes.sum()
        return errors


def by_source(
    values: Mapping[str, Sequence[float] | Values], sources: Sequence[str | None]
) -> Clusters:
    """Sum the items of each source.

    Args:
        values: One number an item under each adapter, all in the order of `sources`.
        sources: The source of each item; an item without one is a source of its own.
    """
    numbers = source_numbers(sources)
    sums = [sum_by_source(np.asarray(v, dtype=np.float64), numbers) for v in values.values()]
    sizes = np.bincount(numbers).astype(np.float64)
    return Clusters(tuple(values), np.stack(sums, axis=1), sizes)


def source_numbers(sources: Sequence[str | None]) -> Numbers:
    """Number sources in the order in which they first come, so that a renaming moves nothing."""
    keys: Sequence[str | int] = sources  # type: ignore[assignment]
    if None in sources:
        keys = [k if name is None else name for k, name in enumerate(sources)]
    numbers = {name: k for k, name in enumerate(dict.fromkeys(keys))}
    return np.fromiter(map(numbers.__getitem__, keys), dtype=np.intp, count=len(keys))


def sum_by_source(values: Values, numbers: Numbers) -> Values:
    """Return the sum of each source's items: (G,)."""
    return np.bincount(numbers, weights=values).astype(np.float64)
