"""LoRA's shrink where a pass has few rows: the columns are cut into shares, summed in order.

A kernel that reads each row once and adds up its share of S = dropout(X) · Aᵀ is launched by
`launch_splits`, and stores the share by `store_split`. The one here takes X as it lies there, or
copies it to its place first.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from cqa.kernels.aug_columns import AugColumns, store_constants
from cqa.kernels.launch import TILE_ROWS, any_rows, dot_type, launch, tile_width
from cqa.kernels.shrink import GroupLaunch, Shrink, dropout_rows, member_of, shrink_tile

SPLITS = 4  # of the columns, so that a few hundred rows fill a GPU


@triton.jit
def store_split(  # one member's sum over one share of the columns, for `_sum_splits`
    partial,  # (splits, M, G * R) fp32, written
    s,  # (ROWS, RANK) fp32
    split,
    member,
    first_rank,
    rows,  # (ROWS,) int64
    in_range,  # (ROWS,)
    m,
    rank,
    rank_columns,
    RANK: tl.constexpr,
):
    ranks = first_rank + tl.arange(0, RANK)
    at = partial + (split * m + rows)[:, None] * rank_columns + (member * rank + ranks)[None, :]
    tl.store(at, s, mask=in_range[:, None] & (ranks < rank)[None, :])


@any_rows
def _sum_splits_kernel(  # a program: a row
    partial,  # (splits, M, G * R) fp32
    out,  # (M, G * R), written
    out_stride,
    m,
    rank_columns,
    n_splits,
    WIDTH: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    cols = tl.arange(0, WIDTH)
    total = tl.zeros((WIDTH,), tl.float32)
    for split in range(n_splits):
        at = partial + (split * m + row) * rank_columns + cols
        total += tl.load(at, mask=cols < rank_columns, other=0.0)
    tl.store(out + row * out_stride + cols, total, mask=cols < rank_columns)


def _sum_splits(partial: Tensor, out: Tensor) -> None:
    """Sum (splits, M, G * R) over the splits, in order, into (M, G * R)."""
    n_splits, m, rank_columns = partial.shape
    launch(
        _sum_splits_kernel,
        (m,),
        partial=partial,
        out=out,
        out_stride=out.stride(0),
        m=m,
        rank_columns=rank_columns,
        n_splits=n_splits,
        WIDTH=triton.next_power_of_2(rank_columns),
    )


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
    """Run a kernel that writes X and the constants, and its shares of S; then sum these.

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
    shape = (n_splits, m, columns.rank_columns)
    partial = x.new_empty(shape, dtype=torch.float32) if shrink else None
    launch(
        kernel,
        (triton.cdiv(m, TILE_ROWS), n_splits, group.parts),
        x=x,
        out=x_aug,
        partial=partial,
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
    if partial is not None:
        _sum_splits(partial, x_aug[:, columns.ranks])


@any_rows
def _shrink_kernel(  # a program: a block of rows, a share of the columns, one member
    x,  # (M, K); where nothing is copied, the X that `out` has already
    out,  # (M, total), X and the constants written where X is copied
    partial,  # (splits, M, G * R) fp32, written
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
            s, tile.to(tl.float32), member, first_rank, start, numbers, k, lora_a, rank, key,
            streams, threshold, RANK, WIDTH, DROPOUT, DOT,
        )  # fmt: skip
    store_split(
        partial, s * dropout_scale, split, member, first_rank, rows, in_range, m, rank,
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
