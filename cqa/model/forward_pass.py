"""What the layers of one pass are run with, and what looks on or adds to it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, TypeVar

import torch
from torch import Tensor

from cqa.kernels.attention import AttentionSpan, Gathered
from cqa.kernels.philox import Dropout
from cqa.layout import PackedBatch
from cqa.model.architectures import Rotation

Result = TypeVar("Result", Tensor, tuple[Tensor, ...])
Spans = tuple[AttentionSpan, ...] | Gathered


class Observer:
    """Looks at every layer of a pass of scoring, and changes nothing; this one looks at none.

    Rows are those that the layer runs queries and MLP for: all M of the batch, in the last layer
    the L that `PackedBatch.kept` names.
    """

    def embedded(self, h: Tensor) -> None:
        """Look at the residual stream before the first layer: (M, hidden_size)."""

    def attended(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> None:
        """Look at what attention takes: queries (rows, H, D), keys and values (M, H_kv, D)."""

    def finished(self, layer: int, h: Tensor) -> None:
        """Look at the residual stream after a layer: (rows, hidden_size)."""


class EarlierKeys(Protocol):
    """Keys and values of tokens that earlier passes have run, which this one's rows see too."""

    @property
    def spans(self) -> tuple[AttentionSpan, ...]:
        """What each row of the pass sees, as rows of what `extended` returns."""

    def extended(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Take the pass's keys and values (M, H_kv, D); return all that its rows see."""


def attention_spans(
    batch: PackedBatch,
) -> tuple[tuple[AttentionSpan, ...], tuple[AttentionSpan, ...]]:
    """Return what sees what in every layer but the last, and in the last."""
    spans, last, row = [], [], 0
    for s in batch.segments:
        prefix = (s.prefix_start, s.prefix_stop)
        spans.append(AttentionSpan((s.start, s.stop), (s.start, s.stop), prefix))
        n_kept = s.kept_stop - s.kept_start
        if n_kept:
            last.append(AttentionSpan((row, row + n_kept), (s.start, s.kept_stop), prefix))
        row += n_kept
    return tuple(spans), tuple(last)


@dataclass(frozen=True, slots=True)
class RowBlocks:
    """Applies a row-wise function to all rows at once, or to blocks of a fixed height."""

    height: int | None = None
    pad: bool = False  # the last block to that height

    def __call__(self, function: Callable[..., Result], *rows: Tensor) -> Result:
        """Call a function of row tensors (M, …) that returns one row tensor or several."""
        height, n_rows = self.height, rows[0].shape[0]
        if height is None or (n_rows <= height and not self.pad):
            return function(*rows)
        outs: tuple[Tensor, ...] = ()
        for start in range(0, n_rows, height):
            n = min(height, n_rows - start)
            block = [r[start : start + n] for r in rows]
            if n < height and self.pad:
                block = [torch.cat((r, r.new_zeros(height - n, *r.shape[1:]))) for r in block]
            result = function(*block)
            results = (result,) if isinstance(result, Tensor) else result
            outs = outs or tuple(r.new_empty(n_rows, *r.shape[1:]) for r in results)
            for out, r in zip(outs, results, strict=True):
                out[start : start + n] = r[:n]
        return outs[0] if isinstance(result, Tensor) else outs


ALL_ROWS = RowBlocks()


@dataclass(frozen=True, slots=True)
class ForwardPass:
    """What the layers of one pass are run with."""

    angles: dict[Rotation, tuple[Tensor, Tensor]]  # cos and sin, (M, head_dim / 2), fp32
    spans: Spans  # what sees what
    dropout: Dropout | None
    blocks: RowBlocks
    kept: Tensor | None = None  # (L,) rows that queries and MLP are run for; None is all
    earlier: EarlierKeys | None = None
    observer: Observer | None = None
