"""Gradients of LoRA's factors: tall products xᵀ · s, all of a group in one launch.

    out[c, r] = scale · Σ_m dropout(x)[m, c] · s[m, r]        dA: x is X, s is dS
                                                              dB: x is dY, s is S

A tile of `out` takes one program for each share of the rows, as many as fill a GPU. The one that
ends last adds the shares' sums in the order of the rows, so `out` has the same bits every time.
The native op is dB's; dA, with dropout, is in csrc/shrink.cpp.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import torch
import triton
import triton.language as tl
from torch import Tensor

from cqa.kernels.arrivals import arrivals, comes_last
from cqa.kernels.dropout_tile import kept_tile
from cqa.kernels.launch import any_rows, dot_type, launch, rank_tile
from cqa.kernels.philox import GroupDropout


@triton.jit
def _store_tile(  # of `out`, scaled; added to what is there, if so
    out,  # fp32
    tile,  # of the table: see _tiles
    value,  # (WIDTH, RANK) fp32
    out_stride,
    scale,
    adds,
    ALIGNED: tl.constexpr,
    TURNED: tl.constexpr,
    RANK: tl.constexpr,
    WIDTH: tl.constexpr,
):
    columns, ranks, offset = tl.load(tile + 1) - tl.load(tile), tl.load(tile + 3), tl.load(tile + 4)
    if ALIGNED:
        columns, ranks = tl.multiple_of(columns, 8), tl.multiple_of(ranks, 8)
        offset = tl.multiple_of(offset, 8)
    c, r = tl.arange(0, WIDTH)[:, None], tl.arange(0, RANK)[None, :]
    at = out + offset + (r * out_stride + c if TURNED else c * out_stride + r)
    mask = (c < columns) & (r < ranks)
    before = tl.load(at, mask=mask & (adds != 0), other=0.0)
    tl.store(at, before + value * scale, mask=mask)


@triton.jit
def _inside(RANK: tl.constexpr, WIDTH: tl.constexpr, TURNED: tl.constexpr):
    """Where a tile's elements lie in its partial sum: side by side as they are in `out`."""
    c, r = tl.arange(0, WIDTH)[:, None], tl.arange(0, RANK)[None, :]
    return r * WIDTH + c if TURNED else c * RANK + r


@any_rows
def _outer_sum_kernel(  # a program: a tile of out, summed over a share of the rows
    x,  # (M, K)
    s,  # (M, G * R)
    out,  # fp32, written or added to, where there is one share
    partial,  # (shares, tiles, WIDTH * RANK) fp32, written where there are several
    arrivals,  # (at least tiles,) int32, see arrivals.py
    tiles,  # (tiles, 6): see _tiles
    m,
    share,  # rows, a multiple of ROWS
    x_stride,
    s_stride,
    out_stride,
    scale,
    adds,
    kept,  # (G, M, kept_stride) uint8
    kept_stride,
    ALIGNED: tl.constexpr,
    TURNED: tl.constexpr,
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
    begin = tl.program_id(1) * share
    for start in range(begin, tl.minimum(begin + share, m), ROWS):
        rows = start + tl.arange(0, ROWS).to(tl.int64)
        x_at = x + cols[:, None] + rows[None, :] * x_stride  # turned: all its loads are then async
        left = tl.load(x_at, mask=(cols < stop)[:, None] & (rows < m)[None, :], other=0.0)
        if DROPOUT:
            keep = kept_tile(kept, kept_stride, tl.load(tile + 5), rows, rows < m, m, first, WIDTH)
            left = tl.where(tl.trans(keep), left, 0.0)
        s_at = s + rows[:, None] * s_stride + (s_column + ranks)[None, :]
        right = tl.load(s_at, mask=(rows < m)[:, None] & (ranks < ranks_left)[None, :], other=0.0)
        total = tl.dot(left.to(DOT), right.to(DOT), total, input_precision="ieee")
    shares = tl.num_programs(1)
    if shares == 1:
        _store_tile(out, tile, total, out_stride, scale, adds, ALIGNED, TURNED, RANK, WIDTH)
    else:
        at = partial + tl.program_id(0).to(tl.int64) * (WIDTH * RANK) + _inside(RANK, WIDTH, TURNED)
        beyond = tl.num_programs(0).to(tl.int64) * (WIDTH * RANK)  # to the tile of the next share
        tl.store(at + tl.program_id(1) * beyond, total)
        if comes_last(arrivals, tl.program_id(0), shares):
            total = tl.zeros((WIDTH, RANK), tl.float32)
            for i in range(shares):
                total += tl.load(at + i * beyond, cache_modifier=".cg")
            _store_tile(out, tile, total, out_stride, scale, adds, ALIGNED, TURNED, RANK, WIDTH)


@dataclass(frozen=True, slots=True)
class OuterSum:
    """One product of `outer_sums`: columns of x, the first column of s, where it goes in `out`."""

    columns: tuple[int, int]
    s_column: int
    offset: int


_WIDTH, _ROWS = 64, 64  # columns of x a program, and rows at a time
_PROGRAMS = 512  # of all shares: about four on a multiprocessor
_SHARES = 8  # at most


def shares_of(m: int, tiles: int) -> tuple[int, int]:
    """Return how many shares the rows are cut into, and the rows of one.

    It depends on the shapes alone, so the bits are the same on every GPU of a kind.
    """
    blocks = max(1, triton.cdiv(m, _ROWS))
    wanted = min(_SHARES, max(1, round(_PROGRAMS / max(1, tiles))))
    share = triton.cdiv(blocks, min(wanted, blocks))
    return triton.cdiv(blocks, share), share * _ROWS


@cache
def _tiles(
    sums: tuple[OuterSum, ...], strides: tuple[int, int], rank: int, device: torch.device
) -> Tensor:
    """Return the table of tiles, shape (n, 6) int64.

    Per tile: first column of x, stop, column of s, ranks from there on, offset in out, product.
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
    add: bool = False,  # to what out holds
) -> None:
    """Form all products of a group; with dropout, product g takes x as member g dropped it.

    The columns of x then begin at 0 in all products.
    """
    tiles, m = _tiles(sums, strides, rank, x.device), x.shape[0]
    shares, share = shares_of(m, tiles.shape[0])
    partial = out
    if shares > 1:
        size = (shares, tiles.shape[0], _WIDTH * rank_tile(rank))
        partial = torch.empty(size, dtype=torch.float32, device=x.device)
    launch(
        _outer_sum_kernel,
        (tiles.shape[0], shares),
        x=x,
        s=s,
        out=out,
        partial=partial,
        arrivals=arrivals(tiles.shape[0], x.device),
        tiles=tiles,
        m=m,
        share=share,
        x_stride=x.stride(0),
        s_stride=s.stride(0),
        out_stride=strides[1] if strides[0] == 1 else strides[0],
        scale=scale,
        adds=int(add),
        ALIGNED=_aligned(sums, rank),
        TURNED=strides[0] == 1,
        ROWS=_ROWS,
        RANK=rank_tile(rank),
        WIDTH=_WIDTH,
        DOT=dot_type(x.dtype),
        **dropout.noted,
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
    *,
    sums: tuple[OuterSum, ...],
    scale: float,
) -> None:
    """Form all products of a group, each a block of rows of `out`, without dropout."""
    torch.ops.cqa.outer_sums(x, s, out, _parts(sums), scale)
