"""Responses dealt to other prompts: what a placebo run learns (`train --placebo`).

A placebo has the prompts, the responses and the steps of a real run; what it lacks is that a
response belongs to its prompt. What the real run gains beyond it is what the samples teach.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

from cqa.data.samples import Sample
from cqa.data.turns import Turn
from cqa.errors import DataError
from cqa.kernels.philox import DEAL, permutation, stream_of

PLACEBO_TEXT = "the responses are dealt to other prompts: a control, never a candidate"


def deal(samples: Sequence[Sample], seed: int, where: str) -> list[Sample]:
    """Return the samples with every learned turn replaced by a learned turn of another sample.

    Each learned turn is used once. All learned turns of a conversation are dealt, each on its own,
    so that none follows the question that it answers; turns that are not learned stay. Two samples
    that have a prompt or an answer in common count as one, so that no prompt gets back a response
    of its own by way of a copy.

    Args:
        samples: The samples to train on.
        seed: The run's.
        where: The file, for the message.

    Raises:
        DataError: There are fewer than two samples, or more than half of the responses belong to
            samples that count as one, so that some would have to stay.
    """
    slots = [
        (k, t)
        for k, sample in enumerate(samples)
        for t, turn in enumerate(sample.turns)
        if turn.learned
    ]
    if len(samples) < 2:
        raise DataError(
            f"expected two samples or more to deal responses among, got {len(samples)}",
            where=where,
            hint="without --placebo they are learned as they are",
        )
    kin = _kin(samples)
    by_kin: dict[int, list[tuple[int, int]]] = {}
    for i in permutation(seed, 0, stream_of(DEAL), len(slots)):
        by_kin.setdefault(kin[slots[i][0]], []).append(slots[i])
    most = max(len(members) for members in by_kin.values())
    if 2 * most > len(slots):
        raise DataError(
            f"expected responses that can go to other prompts, got {most} of {len(slots)} in one "
            f"sample or in samples that share a text",
            where=where,
            hint="a placebo needs samples that differ",
        )
    # Kin stand together; moved on by as many places as the largest kin has, none meets its own.
    order = [slot for members in by_kin.values() for slot in members]
    turns = [list(sample.turns) for sample in samples]
    for n, (k, t) in enumerate(order):
        other, turn = order[(n + most) % len(order)]
        turns[k][t] = replace(turns[k][t], text=samples[other].turns[turn].text)
    return [replace(sample, turns=tuple(own)) for sample, own in zip(samples, turns, strict=True)]


def _kin(samples: Sequence[Sample]) -> list[int]:
    """Return for each sample the first one that it is joined to by prompts or answers."""
    parent = list(range(len(samples)))

    def root(k: int) -> int:
        while parent[k] != k:
            parent[k] = parent[parent[k]]
            k = parent[k]
        return k

    first: dict[tuple[str, ...], int] = {}
    for k, sample in enumerate(samples):
        for text in _texts(sample.turns):
            one, other = sorted((root(k), root(first.setdefault(text, k))))
            parent[other] = one
    return [root(k) for k in range(len(samples))]


def _texts(turns: Sequence[Turn]) -> Iterator[tuple[str, ...]]:
    """Yield every learned answer, and the prompt that it follows."""
    for t, turn in enumerate(turns):
        if turn.learned:
            yield "answer", turn.text
            yield "prompt", *(before.text for before in turns[:t])
