"""Floating-point operations that the result needs, whatever a program does to get it.

A multiply-add is two. Products with frozen weights are counted forward and for the input's
gradient; LoRA's A and B also for their own; attention as 3.5 times its forward (its backward forms
the scores again); the head on labelled rows only. Norms, gates and masks are not counted, nor what
padding adds. The last layer keeps labelled runs alone.
"""

from __future__ import annotations

from dataclasses import dataclass

from cqa.layout import PackedBatch, Segment
from cqa.model.config import DecoderConfig
from cqa.schema.written import Result


@dataclass(frozen=True, slots=True)
class Flops(Result):
    """Operations of one pass, by part."""

    frozen: int
    lora: int
    attention: int
    head: int

    @property
    def total(self) -> int:
        """The sum."""
        return self.frozen + self.lora + self.attention + self.head


def pass_flops(config: DecoderConfig, batch: PackedBatch, rank: int, *, training: bool) -> Flops:
    """Count a pass through the decoder and its head.

    Args:
        config: The model's sizes.
        batch: The rows.
        rank: LoRA rank on all modules; 0 is no adapter.
        training: Forward and backward, or forward alone.
    """
    d, wide = config.hidden_size, config.intermediate_size
    q, kv = config.n_heads * config.head_dim, config.n_kv_heads * config.head_dim
    n_kept = int(batch.kept.shape[0])
    all_rows = config.n_layers * batch.n_rows
    most_rows = all_rows - batch.n_rows + n_kept  # of what comes after the last layer's keys
    frozen = all_rows * d * (q + 2 * kv) + most_rows * (q * d + 3 * d * wide)
    lora = all_rows * (3 * d + q + 2 * kv) + most_rows * (q + d + 3 * (d + wide))
    scores = sum(
        _scores(segment, window, whole=index < config.n_layers - 1)
        for index, window in enumerate(config.windows)
        for segment in batch.segments
    )
    return Flops(
        frozen=2 * frozen * (2 if training else 1),
        lora=2 * lora * rank * (3 if training else 1),
        attention=round(4 * q * scores * (3.5 if training else 1)),
        head=2 * d * config.vocab_size * batch.n_targets * (2 if training else 1),
    )


def _scores(segment: Segment, window: int | None, *, whole: bool) -> int:
    """Return how many query-key pairs a segment has, of all its rows or of those that are kept."""
    start, stop = (
        (segment.start, segment.stop) if whole else (segment.kept_start, segment.kept_stop)
    )
    before = segment.prefix_stop - segment.prefix_start - segment.start
    if window is None:
        n = stop - start
        return n * (start + before) + n * (n + 1) // 2
    return sum(min(window, before + row + 1) for row in range(start, stop))
