"""Fused log-softmax and gather: hidden states and head weights to token statistics.

    z = hidden · headᵀ        row statistics of z as in logit_stats.py, z itself never written

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
from cqa.kernels.logit_stats import (
    LEAST,
    NOTHING,
    TokenStats,
    joined_spread,
    mean_of,
    stats_of,
    varentropy_with_target,
    with_target,
)

SPLIT = 512  # columns of one program
_ROWS = 1 << 14  # rows whose partial results exist at a time
_EXACT_ROWS, _JOIN_ROWS = 4, 8  # of a program
_GROUP = 8  # blocks of rows that run beside each other, so that their operands stay in L2


def _tiles(dtype: torch.dtype) -> dict[str, int]:
    """Return the tile sizes: 16-bit floats run on tensor cores, fp32 is multiplied as it is."""
    if dtype == torch.float32:
        return {"BM": 64, "BN": 64, "BK": 16, "num_warps": 4, "num_stages": 3}
    return {"BM": 128, "BN": 128, "BK": 64, "num_warps": 8, "num_stages": 4}


@triton.jit
def _logits_tile(  # the logits of some rows and columns, all of them in range
    hidden,  # (M, D)
    head,  # (V, D)
    rows,  # (BM,) int64
    columns,  # (BN,) int64
    hidden_stride,
    head_stride,
    DEPTH: tl.constexpr,
    BK: tl.constexpr,
    DOT: tl.constexpr,
):
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
def _target_logits(  # the diagonal of a tile whose columns are the rows' targets
    hidden,  # (M, D)
    head,  # (V, D)
    target,  # (M,)
    target_logit,  # (M,) fp32, written
    n_rows,
    hidden_stride,
    head_stride,
    DEPTH: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
    BK: tl.constexpr,
    DOT: tl.constexpr,
):
    i, j = tl.arange(0, BM), tl.arange(0, BN)
    first = tl.program_id(0) * BM
    rows = tl.minimum(first + i, n_rows - 1).to(tl.int64)
    columns = tl.load(target + tl.minimum(first + j % BM, n_rows - 1))
    z = _logits_tile(hidden, head, rows, columns, hidden_stride, head_stride, DEPTH, BK, DOT)
    diagonal = tl.sum(tl.where(i[:, None] == j[None, :], z, 0.0), 1)
    tl.store(target_logit + first + i, diagonal, mask=first + i < n_rows)


@any_rows
def _exact_logits(
    hidden,  # (M, D)
    head,  # (V, D)
    target,  # (M,)
    exact,  # (M,) fp64, written
    n_rows,
    hidden_stride,
    head_stride,
    depth,
    ROWS: tl.constexpr,
    TILE: tl.constexpr,
):
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
def _split_stats(  # a program: one block of rows, one split of the columns, the targets left out
    hidden,  # (M, D)
    head,  # (V, D)
    target,  # (M,)
    target_logit,  # (M,) fp32
    row_maxes,  # (splits, pitch) fp32, as the sums and the count, written
    sums_exp,  # (splits, pitch) fp32
    sums_exp_z,  # (splits, pitch) fp32
    spreads,  # (splits, pitch) fp32, or None without VARENTROPY
    counts_above,  # (splits, pitch) int32
    n_rows,
    pitch,
    n_cols,
    hidden_stride,
    head_stride,
    DEPTH: tl.constexpr,
    SPLIT: tl.constexpr,
    GROUP: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
    BK: tl.constexpr,
    DOT: tl.constexpr,
    VARENTROPY: tl.constexpr,
):
    n_splits = tl.cdiv(n_cols, SPLIT)
    place = tl.program_id(0) % (GROUP * n_splits)
    first_block = tl.program_id(0) // (GROUP * n_splits) * GROUP
    n_blocks = tl.minimum(tl.cdiv(n_rows, BM) - first_block, GROUP)
    row = (first_block + place % n_blocks) * BM + tl.arange(0, BM)
    split = place // n_blocks
    safe = tl.minimum(row, n_rows - 1).to(tl.int64)
    t = tl.load(target + safe).to(tl.int32)  # as columns are, which are compared with it
    z_target = tl.load(target_logit + safe)
    row_max = tl.full((BM,), LEAST, tl.float32)
    sum_exp = tl.zeros((BM,), tl.float32)
    sum_exp_z = tl.zeros((BM,), tl.float32)  # Σ exp(z - row_max) · (z - row_max)
    spread = tl.zeros((BM,), tl.float32)  # Σ exp(z - row_max) · (z - their mean)²
    n_above = tl.zeros((BM,), tl.int32)
    # What each tile computes again would be kept in registers, and on sm_120 there is none left.
    end = tl.minimum((split + 1) * SPLIT, n_cols)
    for start in tl.range(split * SPLIT, end, BN, disable_licm=True):
        column = start + tl.arange(0, BN)
        columns = tl.minimum(column, n_cols - 1).to(tl.int64)
        z = _logits_tile(hidden, head, safe, columns, hidden_stride, head_stride, DEPTH, BK, DOT)
        counts = (column < n_cols)[None, :] & (column[None, :] != t[:, None])
        z = tl.where(counts, z, NOTHING)
        n_above += tl.sum((z > z_target[:, None]).to(tl.int32), 1)
        new_max = tl.maximum(row_max, tl.max(z, 1))
        change = row_max - new_max
        rescale = tl.exp(change)
        shifted = z - new_max[:, None]
        shifted = tl.maximum(shifted, NOTHING, tl.PropagateNan.ALL)  # finite: 0 · -inf is NaN
        e = tl.exp(shifted)
        tile, tile_z = tl.sum(e, 1), tl.sum(e * shifted, 1)
        before = rescale * sum_exp
        if VARENTROPY:
            mean = mean_of(tile, tile_z)
            off = shifted - mean[:, None]
            apart = mean_of(sum_exp, sum_exp_z) + change - mean  # finite where before is 0
            share = tile / tl.maximum(before + tile, 1.0)  # 0, or 1 of the greatest and more
            spread = rescale * spread + tl.sum(e * off * off, 1) + before * share * apart * apart
        sum_exp_z = rescale * (sum_exp_z + change * sum_exp) + tile_z
        sum_exp = before + tile
        row_max = new_max
    to = split.to(tl.int64) * pitch + row
    tl.store(row_maxes + to, row_max, mask=row < n_rows)
    tl.store(sums_exp + to, sum_exp, mask=row < n_rows)
    tl.store(sums_exp_z + to, sum_exp_z, mask=row < n_rows)
    if VARENTROPY:
        tl.store(spreads + to, spread, mask=row < n_rows)
    tl.store(counts_above + to, n_above, mask=row < n_rows)


@any_rows
def _join_splits(  # a program: some rows
    row_maxes,  # (splits, pitch) fp32
    sums_exp,  # (splits, pitch) fp32
    sums_exp_z,  # (splits, pitch) fp32
    spreads,  # (splits, pitch) fp32, or None without VARENTROPY
    counts_above,  # (splits, pitch) int32
    exact,  # (M,) fp64
    stats,  # (3 or 4, M) fp64: logp, entropy, lse, varentropy, written
    rank,  # (M,) int64, written
    n_rows,
    pitch,
    n_splits,
    plane,
    ROWS: tl.constexpr,
    SPLITS: tl.constexpr,
    VARENTROPY: tl.constexpr,
):
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    split = tl.arange(0, SPLITS)
    place = split.to(tl.int64)[:, None] * pitch + row[None, :]
    inside = (split < n_splits)[:, None] & (row < n_rows)[None, :]
    split_max = tl.load(row_maxes + place, mask=inside, other=LEAST).to(tl.float64)
    sum_exp = tl.load(sums_exp + place, mask=inside, other=0).to(tl.float64)
    sum_exp_z = tl.load(sums_exp_z + place, mask=inside, other=0).to(tl.float64)
    n_above = tl.sum(tl.load(counts_above + place, mask=inside, other=0), 0)
    row_max = tl.max(split_max, 0)
    shifted = split_max - row_max[None, :]
    e = tl.exp(shifted)
    z_target = tl.load(exact + row, mask=row < n_rows, other=0)
    weight, weighted = tl.sum(e * sum_exp, 0), tl.sum(e * (sum_exp_z + shifted * sum_exp), 0)
    logp, entropy, lse = with_target(row_max, weight, weighted, z_target)
    if VARENTROPY:
        spread = e * tl.load(spreads + place, mask=inside, other=0).to(tl.float64)
        mean = mean_of(sum_exp, sum_exp_z) + shifted
        spread = joined_spread(e * sum_exp, mean, spread, mean_of(weight, weighted)[None, :])
        spread = varentropy_with_target(row_max, weight, weighted, spread, z_target)
        tl.store(stats + 3 * plane + row, spread, mask=row < n_rows)
    tl.store(stats + row, logp, mask=row < n_rows)
    tl.store(stats + plane + row, entropy, mask=row < n_rows)
    tl.store(stats + 2 * plane + row, lse, mask=row < n_rows)
    tl.store(rank + row, n_above.to(tl.int64), mask=row < n_rows)


def exact_logits_ref(hidden: Tensor, head: Tensor, target: Tensor) -> Tensor:
    """Return the logit of each row's target in fp64, shape (M,)."""
    return (hidden.double() * head[target].double()).sum(1)


def exact_logits_triton(hidden: Tensor, head: Tensor, target: Tensor) -> Tensor:
    """As `exact_logits_ref`."""
    n_rows, depth = hidden.shape
    exact = torch.empty(n_rows, dtype=torch.float64, device=hidden.device)
    launch(
        _exact_logits,
        (triton.cdiv(n_rows, _EXACT_ROWS),),
        hidden=hidden,
        head=head,
        target=target,
        exact=exact,
        n_rows=n_rows,
        hidden_stride=hidden.stride(0),
        head_stride=head.stride(0),
        depth=depth,
        ROWS=_EXACT_ROWS,
        TILE=512,
        num_warps=4,
    )
    return exact


def fused_linear_logprob_triton(
    hidden: Tensor, head: Tensor, target: Tensor, *, varentropy: bool = False
) -> TokenStats:
    """Return the statistics of rows whose logits exist in registers alone."""
    n_rows = hidden.shape[0]
    stats = torch.empty(3 + varentropy, n_rows, dtype=torch.float64, device=hidden.device)
    rank = torch.empty(n_rows, dtype=torch.int64, device=hidden.device)
    for start in range(0, n_rows, _ROWS):
        part = slice(start, start + _ROWS)
        _write_stats(hidden[part], head, target[part], stats[:, part], rank[part])
    return stats_of(stats, rank)


def _write_stats(hidden: Tensor, head: Tensor, target: Tensor, stats: Tensor, rank: Tensor) -> None:
    (n_rows, depth), n_cols, device = hidden.shape, head.shape[0], hidden.device
    tiles = _tiles(head.dtype)
    n_blocks, n_splits = triton.cdiv(n_rows, tiles["BM"]), triton.cdiv(n_cols, SPLIT)
    exact = exact_logits_triton(hidden, head, target)
    target_logit = torch.empty(n_rows, dtype=torch.float32, device=device)
    product = {
        "hidden": hidden,
        "head": head,
        "target": target,
        "target_logit": target_logit,
        "n_rows": n_rows,
        "hidden_stride": hidden.stride(0),
        "head_stride": head.stride(0),
        "DEPTH": depth,
        "DOT": dot_type(head.dtype),
        **tiles,
    }
    launch(_target_logits, (n_blocks,), **product)
    pitch = triton.cdiv(n_rows, 16) * 16  # keeps every row of partial results aligned
    varentropy = stats.shape[0] == 4
    sums = torch.empty(3 + varentropy, n_splits, pitch, dtype=torch.float32, device=device)
    splits = {
        **dict(zip(("row_maxes", "sums_exp", "sums_exp_z"), sums[:3], strict=True)),
        "spreads": sums[3] if varentropy else None,
        "VARENTROPY": varentropy,
        "counts_above": torch.empty(n_splits, pitch, dtype=torch.int32, device=device),
        "pitch": pitch,
    }
    launch(
        _split_stats,
        (n_blocks * n_splits,),
        n_cols=n_cols,
        SPLIT=SPLIT,
        GROUP=_GROUP,
        **product,
        **splits,
    )
    launch(
        _join_splits,
        (triton.cdiv(n_rows, _JOIN_ROWS),),
        exact=exact,
        stats=stats,
        rank=rank,
        n_rows=n_rows,
        n_splits=n_splits,
        plane=stats.stride(0),
        **splits,
        ROWS=_JOIN_ROWS,
        SPLITS=triton.next_power_of_2(n_splits),
        num_warps=8,
    )
