"""LoRA's shrink where a pass has few rows: the columns are cut into shares, summed in order.

A kernel that reads each row once and adds up its share of S = dropout(X) · Aᵀ is launched by
`launch_splits`, and ends with `store_split`, which sums the shares where all are there. The one
here takes X as it lies there, or copies it to its place first.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from cqa.kernels.arrivals import arrivals, comes_last
from cqa.kernels.aug_columns import AugColumns, store_constants
from cqa.kernels.launch import TILE_ROWS, any_rows, dot_type, launch, tile_width
from cqa.kernels.shrink import GroupLaunch, Shrink, dropout_rows, member_of, shrink_tile

SPLITS = 4  # of the columns, so that a few hundred rows fill a GPU


@triton.jit
def store_split(  # one member's sum over one share of the columns; the last program adds all shares
    s,  # (ROWS, RANK) fp32
    partial,  # (splits, M, G * R) fp32, written
    arrivals,  # int32, see arrivals.py
    out,  # (M, total), S written
    out_stride,
    base,
    rows,  # (ROWS,) int64
    in_range,  # (ROWS,)
    m,
    rank,
    rank_columns,
    RANK: tl.constexpr,
):
    split, part, n_splits = tl.program_id(1), tl.program_id(2), tl.num_programs(1)
    member, first_rank = member_of(part, rank, RANK)
    ranks = first_rank + tl.arange(0, RANK)
    mask = in_range[:, None] & (ranks < rank)[None, :]
    columns = (member * rank + ranks)[None, :]
    tl.store(partial + (split * m + rows)[:, None] * rank_columns + columns, s, mask=mask)
    if comes_last(arrivals, tl.program_id(0) * tl.num_programs(2) + part, n_splits):
        total = tl.zeros((rows.shape[0], RANK), tl.float32)
        for i in range(n_splits):
            at = partial + (i * m + rows)[:, None] * rank_columns + columns
            total += tl.load(at, mask=mask, other=0.0, cache_modifier=".cg")
        tl.store(out + rows[:, None] * out_stride + base + columns, total, mask=mask)


def launch_splits(
    kernel: Any,
    n_splits: int,
    x: Tensor,  # (M, width that the op reads)
    x_aug: Tensor,  # (M, columns.total), written
    columns: AugColumns,
    shrink: Shrink | None,
    *,
    width: int | None = None,
    **constants: Any,
) -> None:
    """Run a kernel that writes X and the constants, and sums S over shares of the columns.

    Args:
        kernel: Takes the arguments that are named here, and `constants`.
        n_splits: How many shares of the columns.
        x: What the op reads; rows contiguous.
        x_aug: The augmented input.
        columns: Its layout.
        shrink: The low-rank side, if there is one.
        width: Columns at a time; by default those of `tile_width`.
        constants: What the kernel alone takes.
    """
    m, group = x.shape[0], GroupLaunch.of(shrink)
    partial = counters = None
    blocks = int(triton.cdiv(m, TILE_ROWS))
    if shrink is not None:
        partial = x.new_empty(n_splits, m, columns.rank_columns, dtype=torch.float32)
        counters = arrivals(blocks * group.parts, x.device)
    launch(
        kernel,
        (blocks, n_splits, group.parts),
        x=x,
        out=x_aug,
        partial=partial,
        arrivals=counters,
        m=m,
        k=columns.features,
        x_stride=x.stride(0),
        out_stride=x_aug.stride(0),
        **columns.bounds,
        rank_columns=columns.rank_columns,
        ROWS=TILE_ROWS,
        WIDTH=width or tile_width(x_aug.dtype),
        DOT=dot_type(x_aug.dtype),
        **group.arguments,
        **constants,
        num_warps=4,
    )


@any_rows
def _shrink_kernel(  # a program: a block of rows, a share of the columns, one member
    x,  # (M, K); where nothing is copied, the X that `out` has already
    out,  # (M, total), X and the constants written where X is copied
    partial,  # (splits, M, G * R) fp32, written
    arrivals,
    m,
    k,
    x_stride,
    out_stride,
    base,
    end_of_ranks,
    total,
    rank_columns,
    lora_a,  # (G * R, K)
    rank,
    dropout_scale,
    key,
    streams,
    batch_rows,
    threshold,
    kept,  # (G, M, kept_stride) uint8, written
    kept_stride,
    COPY: tl.constexpr,
    ROWS: tl.constexpr,
    RANK: tl.constexpr,
    WIDTH: tl.constexpr,
    DROPOUT: tl.constexpr,
    DOT: tl.constexpr,
):
    rows = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    split, part, in_range = tl.program_id(1), tl.program_id(2), rows < m
    member, first_rank = member_of(part, rank, RANK)
    numbers = dropout_rows(batch_rows, rows, in_range, DROPOUT)
    s = tl.zeros((ROWS, RANK), tl.float32)
    for start in range(split * WIDTH, k, tl.num_programs(1) * WIDTH):
        cols = start + tl.arange(0, WIDTH)
        mask = in_range[:, None] & (cols < k)[None, :]
        tile = tl.load(x + rows[:, None] * x_stride + cols[None, :], mask=mask, other=0.0)
        if (part == 0) & COPY:
            tl.store(out + rows[:, None] * out_stride + cols[None, :], tile, mask=mask)
        s = shrink_tile(
            s, tile.to(tl.float32), kept, kept_stride, member, first_rank, start, rows, in_range,
            numbers, m, k, lora_a, rank, key, streams, threshold, RANK, WIDTH, DROPOUT, DOT,
        )  # fmt: skip
    store_split(
        s * dropout_scale, partial, arrivals, out, out_stride, base, rows, in_range, m, rank,
        rank_columns, RANK,
    )  # fmt: skip
    if (split == 0) & (part == 0) & COPY:
        store_constants(out, out_stride, rows, in_range, k, base, end_of_ranks, total)


def shrink_made(x_aug: Tensor, columns: AugColumns, shrink: Shrink) -> None:
    """Write S beside an X that is in the augmented input (M, columns.total) already."""
    made = x_aug[:, : columns.features]
    launch_splits(_shrink_kernel, SPLITS, made, x_aug, columns, shrink, COPY=False)


def shrink_copied(x: Tensor, x_aug: Tensor, columns: AugColumns, shrink: Shrink) -> None:
    """Write every column of the augmented input (M, columns.total) of X (M, K) as it is."""
    launch_splits(_shrink_kernel, SPLITS, x, x_aug, columns, shrink, COPY=True)
