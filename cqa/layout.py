"""Token segments to one packed batch: no batch dimension, no padding.

Rows of a batch are tokens. A segment is a run of rows that attends causally to itself, after a
prefix of other rows that it sees in full. Samples of a training pass are segments without a
prefix; a scoring tree is a context and, for each text that may follow it, a segment that has the
context as its prefix.

Only some rows are asked for their next token. Of each segment the run of rows that holds them is
kept by the last layer, whose other queries and MLP rows nobody would read; only the asked rows
reach the head.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import accumulate

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Segment:
    """Rows [start, stop) that see rows [prefix_start, prefix_stop) in full, themselves causally.

    The last layer keeps rows [kept_start, kept_stop) of it.
    """

    start: int
    stop: int
    kept_start: int
    kept_stop: int
    prefix_start: int = 0
    prefix_stop: int = 0


@dataclass(frozen=True, slots=True)
class PackedBatch:
    """Rows for one pass of the decoder; index tensors are int64."""

    input_ids: Tensor  # (M,)
    position_ids: Tensor  # (M,)
    segments: tuple[Segment, ...]  # tile the rows in order
    kept: Tensor  # (L,) the rows that the last layer keeps, in order
    target_rows: Tensor  # (T,) index into `kept` of the row that predicts each target
    target: Tensor  # (T,) the token that follows

    @property
    def n_rows(self) -> int:
        """M: tokens fed."""
        return int(self.input_ids.shape[0])

    @property
    def n_targets(self) -> int:
        """T: tokens whose log-probability is asked for."""
        return int(self.target.shape[0])

    def to(self, device: torch.device) -> PackedBatch:
        """Move the index tensors to a device."""
        names = ("input_ids", "position_ids", "kept", "target_rows", "target")
        return replace(self, **{name: getattr(self, name).to(device) for name in names})


def pack_documents(documents: Sequence[tuple[Sequence[int], Sequence[bool]]]) -> PackedBatch:
    """Pack training samples.

    Args:
        documents: (ids, loss_mask) of equal length: the tokens, and which of them are asked for.
            The first token has nothing before it and is never asked for; some other must be.
    """
    starts = [0, *accumulate(len(ids) for ids, _ in documents)]
    segments: list[Segment] = []
    target_rows: list[int] = []
    target: list[int] = []
    n_kept = 0
    for start, (ids, loss_mask) in zip(starts, documents, strict=False):
        asked = [i for i, flag in enumerate(loss_mask[1:]) if flag]
        first, stop = (asked[0], asked[-1] + 1) if asked else (0, 0)
        segments.append(Segment(start, start + len(ids), start + first, start + stop))
        target_rows += [n_kept + i - first for i in asked]
        target += [ids[i + 1] for i in asked]
        n_kept += stop - first
    return PackedBatch(
        input_ids=_index([token for ids, _ in documents for token in ids]),
        position_ids=_index([i for ids, _ in documents for i in range(len(ids))]),
        segments=tuple(segments),
        kept=_kept_rows(segments),
        target_rows=_index(target_rows),
        target=_index(target),
    )


@dataclass(frozen=True, slots=True)
class Tree:
    """A context and the texts whose tokens are scored after it, as ids."""

    context: tuple[int, ...]
    options: tuple[tuple[int, ...], ...]

    @property
    def n_rows(self) -> int:
        """Tokens fed: an option's last token predicts nothing and is not fed."""
        return len(self.context) + sum(len(option) - 1 for option in self.options)


def pack_trees(trees: Sequence[Tree]) -> tuple[PackedBatch, list[list[slice]]]:
    """Pack scoring trees; also return, per tree and option, the slice of its tokens in `target`."""
    ids: list[int] = []
    positions: list[int] = []
    segments: list[Segment] = []
    target_rows: list[int] = []
    target: list[int] = []
    places: list[list[slice]] = []
    n_kept = 0
    for tree in trees:
        start, depth = len(ids), len(tree.context)
        stop = start + depth
        ids += tree.context
        positions += range(depth)
        segments.append(Segment(start, stop, stop - 1, stop))
        last_of_context = n_kept
        n_kept += 1
        places.append([])
        for option in tree.options:
            row, n_fed = len(ids), len(option) - 1
            if n_fed:
                ids += option[:-1]
                positions += range(depth, depth + n_fed)
                segments.append(Segment(row, row + n_fed, row, row + n_fed, start, stop))
            places[-1].append(slice(len(target), len(target) + len(option)))
            target_rows += [last_of_context, *range(n_kept, n_kept + n_fed)]
            target += option
            n_kept += n_fed
    batch = PackedBatch(
        input_ids=_index(ids),
        position_ids=_index(positions),
        segments=tuple(segments),
        kept=_kept_rows(segments),
        target_rows=_index(target_rows),
        target=_index(target),
    )
    return batch, places


@dataclass(frozen=True, slots=True)
class OptionRows:
    """Where an option's tokens lie in a pass that feeds all of them."""

    context: slice  # rows of the batch
    own: slice  # rows of the batch
    kept: slice  # the same rows, among those that the last layer keeps


def pack_whole_options(trees: Sequence[Tree]) -> tuple[PackedBatch, list[list[OptionRows]]]:
    """Pack trees so that every token of an option is fed, its last one too.

    `pack_trees` feeds what a next token is asked for, so each option, which has tokens, gets one
    more: its last one again, which is asked for and not fed.

    Returns:
        The batch, and per tree and option where its tokens lie.
    """
    longer = [Tree(t.context, tuple((*option, option[-1]) for option in t.options)) for t in trees]
    batch, places = pack_trees(longer)
    target_rows, segments = batch.target_rows.tolist(), iter(batch.segments)
    rows = []
    for slices in places:
        context = next(segments)
        rows.append(
            [
                OptionRows(
                    slice(context.start, context.stop),
                    slice(own.start, own.stop),
                    slice(target_rows[place.start + 1], target_rows[place.stop - 1] + 1),
                )
                for place, own in zip(slices, segments, strict=False)
            ]
        )
    return batch, rows


def _kept_rows(segments: Sequence[Segment]) -> Tensor:
    return _index([row for s in segments for row in range(s.kept_start, s.kept_stop)])


def _index(values: list[int]) -> Tensor:
    return torch.tensor(values, dtype=torch.int64)
