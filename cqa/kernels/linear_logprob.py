"""Fused log-softmax and gather: hidden states and head weights to token statistics.

    z = hidden · headᵀ        row statistics of z as in row_stats.py, z itself never written

The vocabulary is cut into splits. One program forms the logits of some rows and one split, a tile
at a time, and keeps what the statistics need of them; a second kernel joins the splits in fp64.
Tiles and splits do not depend on the number of rows, so a row's bits depend on that row alone.

Two logits of the target are formed beforehand. In fp64, since log-probability hinges on this one;
and with the very arithmetic of the tiles, so that equal logits compare equal in the rank.
Source: the online normaliser of arXiv:1805.02867; tiles over the vocabulary as in arXiv:2411.09009.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from cqa.kernels.launch import any_rows, dot_type, launch
from cqa.kernels.row_stats import LEAST, NOTHING, TokenStats, with_target

SPLIT = 512  # columns of one program
_ROWS = 1 << 14  # rows whose partial results exist at a time
_GROUP = 8  # blocks of rows that run beside each other, so that their operands stay in L2


def _tiles(dtype: torch.dtype) -> dict[str, int]:
    """Return the tile sizes: 16-bit floats run on tensor cores, fp32 is multiplied as it is."""
    if dtype == torch.float32:
        return {"BM": 64, "BN": 64, "BK": 16, "num_warps": 4, "num_stages": 3}
    return {"BM": 128, "BN": 128, "BK": 64, "num_warps": 8, "num_stages": 4}


@triton.jit
def _logits_tile(
    hidden, head, rows, columns, hidden_stride, head_stride,
    DEPTH: tl.constexpr, BK: tl.constexpr, DOT: tl.constexpr,
):  # fmt: skip
    """The logits of some rows and columns, int64, all of them in range."""
    k = tl.arange(0, BK)
    a = hidden + rows[:, None] * hidden_stride + k[None, :]
    b = head + columns[None, :] * head_stride + k[:, None]
    z = tl.zeros((rows.shape[0], columns.shape[0]), tl.float32)
    for start in range(0, DEPTH, BK):
        if DEPTH % BK == 0:
            x = tl.load(a)
            w = tl.load(b)
        else:
            x = tl.load(a, mask=k[None, :] < DEPTH - start, other=0)
            w = tl.load(b, mask=k[:, None] < DEPTH - start, other=0)
        z = tl.dot(x.to(DOT), w.to(DOT), z, input_precision="ieee")
        a += BK
        b += BK
    return z


@any_rows
def _own_logits(
    hidden, head, target, own, n_rows, hidden_stride, head_stride, DEPTH: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, DOT: tl.constexpr,
):  # fmt: skip
    """Each row's logit of its target: the diagonal of a tile whose columns are the targets."""
    i, j = tl.arange(0, BM), tl.arange(0, BN)
    first = tl.program_id(0) * BM
    rows = tl.minimum(first + i, n_rows - 1).to(tl.int64)
    columns = tl.load(target + tl.minimum(first + j % BM, n_rows - 1))
    z = _logits_tile(hidden, head, rows, columns, hidden_stride, head_stride, DEPTH, BK, DOT)
    diagonal = tl.sum(tl.where(i[:, None] == j[None, :], z, 0.0), 1)
    tl.store(own + first + i, diagonal, mask=first + i < n_rows)


@any_rows
def _exact_logits(
    hidden, head, target, exact, n_rows, hidden_stride, head_stride, depth,
    ROWS: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    inside = row < n_rows
    a = hidden + row.to(tl.int64)[:, None] * hidden_stride
    b = head + tl.load(target + row, mask=inside, other=0)[:, None] * head_stride
    total = tl.zeros((ROWS, TILE), tl.float64)
    for start in range(0, depth, TILE):
        k = start + tl.arange(0, TILE)[None, :]
        given = inside[:, None] & (k < depth)
        x = tl.load(a + k, mask=given, other=0).to(tl.float32).to(tl.float64)
        w = tl.load(b + k, mask=given, other=0).to(tl.float32).to(tl.float64)
        total += x * w
    tl.store(exact + row, tl.sum(total, 1), mask=inside)


@any_rows
def _split_stats(
    hidden, head, target, own, tops, weights, weighteds, aboves, n_rows, pitch, n_cols,
    hidden_stride, head_stride, DEPTH: tl.constexpr, SPLIT: tl.constexpr, GROUP: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, DOT: tl.constexpr,
):  # fmt: skip
    """The sums of one block of rows over one split of the columns, the targets' own left out."""
    n_splits = tl.cdiv(n_cols, SPLIT)
    place = tl.program_id(0) % (GROUP * n_splits)
    first_block = tl.program_id(0) // (GROUP * n_splits) * GROUP
    n_blocks = tl.minimum(tl.cdiv(n_rows, BM) - first_block, GROUP)
    row = (first_block + place % n_blocks) * BM + tl.arange(0, BM)
    split = place // n_blocks
    safe = tl.minimum(row, n_rows - 1).to(tl.int64)
    t = tl.load(target + safe)
    own_logit = tl.load(own + safe)
    top = tl.full((BM,), LEAST, tl.float32)
    weight = tl.zeros((BM,), tl.float32)
    weighted = tl.zeros((BM,), tl.float32)
    above = tl.zeros((BM,), tl.int32)
    for start in range(split * SPLIT, tl.minimum((split + 1) * SPLIT, n_cols), BN):
        column = start + tl.arange(0, BN)
        columns = tl.minimum(column, n_cols - 1).to(tl.int64)
        z = _logits_tile(hidden, head, safe, columns, hidden_stride, head_stride, DEPTH, BK, DOT)
        counts = (column < n_cols)[None, :] & (column[None, :] != t[:, None])
        z = tl.where(counts, z, NOTHING)
        above += tl.sum((z > own_logit[:, None]).to(tl.int32), 1)
        new_top = tl.maximum(top, tl.max(z, 1))
        raised = top - new_top
        scale = tl.exp(raised)
        by = z - new_top[:, None]
        e = tl.exp(by)
        counted = tl.where(e > 0, e * by, 0.0)
        weighted = scale * (weighted + raised * weight) + tl.sum(counted, 1)
        weight = scale * weight + tl.sum(e, 1)
        top = new_top
    to = split.to(tl.int64) * pitch + row
    tl.store(tops + to, top, mask=row < n_rows)
    tl.store(weights + to, weight, mask=row < n_rows)
    tl.store(weighteds + to, weighted, mask=row < n_rows)
    tl.store(aboves + to, above, mask=row < n_rows)


@any_rows
def _join_splits(
    tops, weights, weighteds, aboves, exact, stats, rank, n_rows, pitch, n_splits, plane,
    ROWS: tl.constexpr, SPLITS: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    split = tl.arange(0, SPLITS)
    place = split.to(tl.int64)[:, None] * pitch + row[None, :]
    inside = (split < n_splits)[:, None] & (row < n_rows)[None, :]
    top = tl.load(tops + place, mask=inside, other=LEAST).to(tl.float64)
    weight = tl.load(weights + place, mask=inside, other=0).to(tl.float64)
    weighted = tl.load(weighteds + place, mask=inside, other=0).to(tl.float64)
    above = tl.sum(tl.load(aboves + place, mask=inside, other=0), 0)
    row_top = tl.max(top, 0)
    by = top - row_top[None, :]
    e = tl.exp(by)
    at_target = tl.load(exact + row, mask=row < n_rows, other=0)
    logp, entropy, lse = with_target(
        row_top, tl.sum(e * weight, 0), tl.sum(e * (weighted + by * weight), 0), at_target
    )
    tl.store(stats + row, logp, mask=row < n_rows)
    tl.store(stats + plane + row, entropy, mask=row < n_rows)
    tl.store(stats + 2 * plane + row, lse, mask=row < n_rows)
    tl.store(rank + row, above.to(tl.int64), mask=row < n_rows)


def exact_logits_ref(hidden: Tensor, head: Tensor, target: Tensor) -> Tensor:
    """Return the logit of each row's target in fp64, shape (M,)."""
    return (hidden.double() * head[target].double()).sum(1)


def exact_logits_triton(hidden: Tensor, head: Tensor, target: Tensor) -> Tensor:
    """As `exact_logits_ref`."""
    n_rows, depth = hidden.shape
    exact = torch.empty(n_rows, dtype=torch.float64, device=hidden.device)
    launch(
        _exact_logits, (triton.cdiv(n_rows, 4),),
        hidden, head, target, exact, n_rows, hidden.stride(0), head.stride(0), depth,
        ROWS=4, TILE=512, num_warps=4,
    )  # fmt: skip
    return exact


def linear_logprob_triton(hidden: Tensor, head: Tensor, target: Tensor) -> TokenStats:
    """Return the statistics of rows whose logits exist in registers alone."""
    n_rows = hidden.shape[0]
    stats = torch.empty(3, n_rows, dtype=torch.float64, device=hidden.device)
    rank = torch.empty(n_rows, dtype=torch.int64, device=hidden.device)
    for start in range(0, n_rows, _ROWS):
        part = slice(start, start + _ROWS)
        _write_stats(hidden[part], head, target[part], stats[:, part], rank[part])
    return TokenStats(logp=stats[0], entropy=stats[1], rank=rank, lse=stats[2])


def _write_stats(hidden: Tensor, head: Tensor, target: Tensor, stats: Tensor, rank: Tensor) -> None:
    (n_rows, depth), n_cols, device = hidden.shape, head.shape[0], hidden.device
    tiles = _tiles(head.dtype) | {"DEPTH": depth, "DOT": dot_type(head.dtype)}
    strides = hidden.stride(0), head.stride(0)
    n_blocks, n_splits = triton.cdiv(n_rows, tiles["BM"]), triton.cdiv(n_cols, SPLIT)
    exact = exact_logits_triton(hidden, head, target)
    own = torch.empty(n_rows, dtype=torch.float32, device=device)
    launch(_own_logits, (n_blocks,), hidden, head, target, own, n_rows, *strides, **tiles)
    pitch = triton.cdiv(n_rows, 16) * 16  # keeps every row of partial results aligned
    sums = torch.empty(3, n_splits, pitch, dtype=torch.float32, device=device)
    above = torch.empty(n_splits, pitch, dtype=torch.int32, device=device)
    launch(
        _split_stats, (n_blocks * n_splits,),
        hidden, head, target, own, *sums, above, n_rows, pitch, n_cols, *strides,
        SPLIT=SPLIT, GROUP=_GROUP, **tiles,
    )  # fmt: skip
    launch(
        _join_splits, (triton.cdiv(n_rows, 8),),
        *sums, above, exact, stats, rank, n_rows, pitch, n_splits, stats.stride(0),
        ROWS=8, SPLITS=triton.next_power_of_2(n_splits), num_warps=8,
    )  # fmt: skip
