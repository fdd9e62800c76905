"""Sets of constraints as bit masks: all their orders, and what is in a set beyond its parts."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Sequence

Order = tuple[str, ...]  # constraints as they stand before the context


def subset(constraints: Sequence[str], mask: int) -> Order:
    """Return the constraints whose bits a mask has; the first constraint is bit 0."""
    return tuple(text for k, text in enumerate(constraints) if mask >> k & 1)


def orders(constraints: Sequence[str]) -> Iterator[Order]:
    """Yield every order of every subset, the empty one first: 5, 16 or 65 of 2, 3 or 4."""
    for mask in range(1 << len(constraints)):
        yield from itertools.permutations(subset(constraints, mask))


def gains(constraints: Sequence[str], logp: Callable[[Order], float]) -> tuple[float, ...]:
    """Return I(x; S) of every subset S by its mask, the mean over the orders of S.

    Args:
        constraints: k texts.
        logp: Returns S(x | constraints in this order, context), in nats.

    Returns:
        2^k numbers in nats; that of the empty set is 0.
    """
    alone = logp(())
    found = []
    for mask in range(1 << len(constraints)):
        held = [logp(order) - alone for order in itertools.permutations(subset(constraints, mask))]
        found.append(math.fsum(held) / len(held))
    return tuple(found)


def moebius(of_subsets: Sequence[float]) -> tuple[float, ...]:
    """Return the term of every subset: m(T) = Σ over R in T of (-1)^(|T| - |R|) I(R).

    The terms of all subsets of S add up to I(S); those of single constraints are their gains.

    Source: Rota 1964, "On the foundations of combinatorial theory I".
    """
    terms = list(of_subsets)
    bit = 1
    while bit < len(terms):
        for mask in range(len(terms)):
            if mask & bit:
                terms[mask] -= terms[mask ^ bit]
        bit <<= 1
    return tuple(terms)


def gap(of_subsets: Sequence[float]) -> float:
    """Return G = I(x; y1 … yk) - Σ I(x; y_i), the sum of the terms of two constraints or more."""
    singles = (of_subsets[mask] for mask in range(len(of_subsets)) if mask.bit_count() == 1)
    return of_subsets[-1] - math.fsum(singles)


def gap_of_last(of_subsets: Sequence[float]) -> float:
    """Return the part of G that the last constraint has: the terms of it together with others."""
    before = len(of_subsets) // 2  # the mask of the last constraint alone
    return of_subsets[-1] - of_subsets[before - 1] - of_subsets[before]
