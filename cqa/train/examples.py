"""One sample of every kind that the data holds: of each format, and of each pattern of turns."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from itertools import pairwise

from cqa.data.samples import EncodedSample, Sample
from cqa.data.turns import Turn


@dataclass(frozen=True, slots=True)
class Example:
    """The first sample of a kind."""

    sample: EncodedSample
    format: str
    turns: tuple[str, ...]  # who speaks in it
    n: int  # how many samples are of its kind


def examples_of(samples: Iterable[tuple[Sample, EncodedSample]]) -> tuple[Example, ...]:
    """Return the first sample of every kind, in the order of the data.

    Two are of one kind if they have one format and the same changes of speaker, so that a chat of
    three exchanges is like one of ten, but not like a single question and answer.

    Args:
        samples: Every sample as read and as encoded.
    """
    found: dict[tuple[str, frozenset[tuple[str, str]]], Example] = {}
    for sample, encoded in samples:
        turns = tuple(map(speaker, sample.turns))
        kind = (sample.format, frozenset(pairwise(("", *turns, ""))))
        first = found.setdefault(kind, Example(encoded, sample.format, turns, 0))
        found[kind] = replace(first, n=first.n + 1)
    return tuple(found.values())


def speaker(turn: Turn) -> str:
    """Name a turn by its role, and say of an answer that is not learned that it is none."""
    return turn.role if turn.role != "assistant" or turn.learned else "assistant (not learned)"
