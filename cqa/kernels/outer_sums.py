"""Gradients of LoRA's factors: tall products xᵀ · s, all of a group in one launch.

    out[c, r] = scale · Σ_m dropout(x)[m, c] · s[m, r]        dA: x is X, s is dS
                                                              dB: x is dY, s is S

Each tile of `out` is summed by one program in the order of the rows, so it has the same bits every
time. The native op is dB's; dA, with dropout, is in csrc/shrink.cpp.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import torch
import triton.language as tl
from torch import Tensor

from cqa.kernels.launch import any_rows, dot_type, launch, rank_tile
from cqa.kernels.philox import GroupDropout, dropout_keep


@any_rows
def _outer_sum_kernel(  # a program: a tile of out
    x,  # (M, K)
    s,  # (M, G * R)
    out,  # fp32, written
    tiles,  # (tiles, 6): see _tiles
    m,
    k,
    x_stride,
    s_stride,
    out_column_stride,
    out_rank_stride,
    scale,
    key,
    streams,
    batch_rows,
    threshold,
    ALIGNED: tl.constexpr,
    ROWS: tl.constexpr,
    RANK: tl.constexpr,
    WIDTH: tl.constexpr,
    DROPOUT: tl.constexpr,
    DOT: tl.constexpr,
):
    tile = tiles + tl.program_id(0) * 6
    first, stop = tl.load(tile), tl.load(tile + 1)
    s_column, ranks_left = tl.load(tile + 2), tl.load(tile + 3)
    if ALIGNED:  # what comes from a table is not known to be; loads are 16 bytes wide with it
        first, stop = tl.multiple_of(first, 8), tl.multiple_of(stop, 8)
        s_column, ranks_left = tl.multiple_of(s_column, 8), tl.multiple_of(ranks_left, 8)
    cols, ranks = first + tl.arange(0, WIDTH), tl.arange(0, RANK)
    total = tl.zeros((WIDTH, RANK), tl.float32)
    for start in range(0, m, ROWS):
        rows = start + tl.arange(0, ROWS).to(tl.int64)
        x_at = x + rows[:, None] * x_stride + cols[None, :]
        block = tl.load(x_at, mask=(rows < m)[:, None] & (cols < stop)[None, :], other=0.0)
        if DROPOUT:
            stream = tl.load(streams + tl.load(tile + 5))
            numbers = tl.load(batch_rows + rows, mask=rows < m, other=0)
            keep = dropout_keep(key, stream, threshold, numbers, first, k, WIDTH)
            block = tl.where(keep, block, 0.0)
        s_at = s + rows[:, None] * s_stride + (s_column + ranks)[None, :]
        right = tl.load(s_at, mask=(rows < m)[:, None] & (ranks < ranks_left)[None, :], other=0.0)
        left = tl.trans(block.to(DOT))
        total = tl.dot(left, right.to(DOT), total, input_precision="ieee")
    at = out + tl.load(tile + 4) + (cols - first)[:, None] * out_column_stride
    at += ranks[None, :] * out_rank_stride
    mask = (cols < stop)[:, None] & (ranks < ranks_left)[None, :]
    tl.store(at, total * scale, mask=mask)


@dataclass(frozen=True, slots=True)
class OuterSum:
    """One product of `outer_sums`: columns of x, the first column of s, where it goes in `out`."""

    columns: tuple[int, int]
    s_column: int
    offset: int


_WIDTH, _ROWS = 64, 64  # columns of x a program, and rows at a time


@cache
def _tiles(
    sums: tuple[OuterSum, ...], strides: tuple[int, int], rank: int, device: torch.device
) -> Tensor:
    """Return the table of tiles, shape (n, 6) int64.

    Per tile: first column of x, stop, column of s, ranks from there on, offset in out, stream.
    """
    tiles = [
        (first, part.columns[1], part.s_column + r, rank - r, offset, g)
        for g, part in enumerate(sums)
        for r in range(0, rank, rank_tile(rank))
        for first in range(*part.columns, _WIDTH)
        for offset in [part.offset + (first - part.columns[0]) * strides[0] + r * strides[1]]
    ]
    return torch.tensor(tiles, device="cpu").to(device)


def _aligned(sums: tuple[OuterSum, ...], rank: int) -> bool:
    """Say whether every tile begins and ends at a multiple of 8 columns of x and of s."""
    places = [place for part in sums for place in (*part.columns, part.s_column)]
    return all(place % 8 == 0 for place in (*places, rank))


def outer_sums(
    x: Tensor,  # (M, K)
    s: Tensor,  # (M, G * R)
    out: Tensor,  # fp32, written
    sums: tuple[OuterSum, ...],
    strides: tuple[int, int],  # of out, along the columns of x and of s
    rank: int,
    *,
    scale: float,
    dropout: GroupDropout,
) -> None:
    """Form all products of a group; with dropout, product g takes x as member g dropped it."""
    tiles = _tiles(sums, strides, rank, x.device)
    launch(
        _outer_sum_kernel,
        (tiles.shape[0],),
        x=x,
        s=s,
        out=out,
        tiles=tiles,
        m=x.shape[0],
        k=x.shape[1],
        x_stride=x.stride(0),
        s_stride=s.stride(0),
        out_column_stride=strides[0],
        out_rank_stride=strides[1],
        scale=scale,
        ALIGNED=_aligned(sums, rank),
        ROWS=_ROWS,
        RANK=rank_tile(rank),
        WIDTH=_WIDTH,
        DOT=dot_type(x.dtype),
        **dropout.arguments,
        num_warps=4,
    )


@cache
def _parts(sums: tuple[OuterSum, ...]) -> Tensor:
    """Return the table of products, shape (n, 4) int64."""
    return torch.tensor(
        [(*part.columns, part.s_column, part.offset) for part in sums], device="cpu"
    )


def outer_sums_native(
    x: Tensor,  # (M, K), rows contiguous
    s: Tensor,  # (M, at least the columns that the sums read)
    out: Tensor,  # (rows, R), written
    sums: tuple[OuterSum, ...],
    *,
    scale: float,
) -> None:
    """Form all products of a group, each a block of rows of `out`, without dropout."""
    torch.ops.cqa.outer_sums(x, s, out, _parts(sums), scale)
