"""What one read of a row of logits z gives of its target t, in nats.

    lse  = ln Σ_v exp z_v         entropy = lse - Σ_v p_v z_v
    logp = z_t - lse              rank    = #{v : z_v > z_t}

The target's own term is kept apart from the sums over the others. So its logit may be given to more
digits than the row holds, no probability exceeds 1, and near certainty keeps its digits:

    logp = -ln(1 + Σ_{v ≠ t} exp(z_v - z_t))
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from cqa.kernels.launch import any_rows, launch

# A column that does not count, and a maximum before the first column. Both are finite, so that no
# difference of them is NaN, and below any logit: exp of the difference to one is 0.
NOTHING = tl.constexpr(-1e30)
LEAST = tl.constexpr(-1e29)
_TILE = 4096


@dataclass(frozen=True, slots=True)
class TokenStats:
    """What one read of a row of logits gives; every field has shape (M,)."""

    logp: Tensor  # nats, fp64
    entropy: Tensor  # nats, fp64
    rank: Tensor  # int64, 0 is the most probable token
    lse: Tensor  # fp64


def row_stats_ref(
    logits: Tensor,  # (M, V) fp32 or wider, overwritten
    target: Tensor,  # (M,) int64
    at_target: Tensor,  # (M,) fp64
) -> TokenStats:
    """The definition for one chunk of logits, which it uses as its working memory.

    `at_target` is the target's logit to more digits than the row holds; it takes the place of the
    row's own, also within the sum, so that no probability exceeds 1 and the others keep their
    digits where the target takes nearly all.
    """
    column = target[:, None]
    rank = (logits > logits.gather(1, column)).sum(1)
    top = logits.amax(1, keepdim=True)
    shifted = logits.sub_(top)
    weights = torch.exp(shifted)
    weights.scatter_(1, column, 0)
    exact = at_target - top.squeeze(1)
    log_total = torch.logaddexp(weights.sum(1).double().log(), exact)
    weighted = weights.mul_(shifted).sum(1).double() + exact.exp() * exact
    return TokenStats(
        logp=exact - log_total,
        entropy=(log_total - weighted * torch.exp(-log_total)).clamp_(min=0),
        rank=rank,
        lse=top.squeeze(1) + log_total,
    )


@triton.jit
def _log1p(x):
    """ln(1 + x) of x ≥ 0 to full precision (Goldberg 1991, theorem 4)."""
    u = x + 1
    lost = u == 1
    return tl.where(lost, x, tl.log(u) * x / tl.where(lost, 1.0, u - 1))


@triton.jit
def with_target(top, weight, weighted, at_target):
    """Return (logp, entropy, lse) from the sums over the others and the target's logit, all fp64.

    `top` is any shift; weight is Σ exp(z - top), weighted Σ exp(z - top) · (z - top).
    """
    new_top = tl.maximum(top, at_target)
    raised = top - new_top
    weighted = tl.exp(raised) * (weighted + raised * weight)
    weight = tl.exp(raised) * weight
    by = at_target - new_top
    own = tl.exp(by)
    hopeless = by < -600  # own is too small to divide by
    ratio = weight / tl.where(hopeless, 1.0, own)
    # the other branch is taken with weight ≥ 1 alone
    logp = tl.where(hopeless, by - tl.log(weight + own), -_log1p(ratio))
    log_total = by - logp
    entropy = log_total - (weighted + own * by) / (weight + own)
    return logp, tl.where(entropy < 0, 0.0, entropy), new_top + log_total


@any_rows
def _row_stats(
    logits, target, at_target, stats, rank, n_rows, n_cols, row_stride, TILE: tl.constexpr
):
    """One program a row; every lane keeps the sums of its own columns until the row is read."""
    row = tl.program_id(0).to(tl.int64)
    z_row = logits + row * row_stride
    t = tl.load(target + row)
    own = tl.load(z_row + t).to(tl.float32)
    top = tl.full((TILE,), LEAST, tl.float32)
    weight = tl.zeros((TILE,), tl.float32)
    weighted = tl.zeros((TILE,), tl.float32)
    above = tl.zeros((TILE,), tl.int32)
    for start in range(0, n_cols, TILE):
        column = start + tl.arange(0, TILE)
        z = tl.load(z_row + column, mask=column < n_cols, other=NOTHING).to(tl.float32)
        z = tl.where(column == t, NOTHING, z)
        above += (z > own).to(tl.int32)
        by = z - top
        e = tl.exp(-tl.abs(by))  # one exponential whichever of the two is larger
        raises = by > 0
        counted = tl.where(e > 0, e * by, 0.0)
        weighted = tl.where(raises, e * (weighted - by * weight), weighted + counted)
        weight = tl.where(raises, weight * e + 1, weight + e)
        top = tl.maximum(top, z)
    row_top = tl.max(top, 0)
    by = top - row_top
    e = tl.exp(by)
    weighted = tl.sum(e * (weighted + by * weight), 0).to(tl.float64)
    logp, entropy, lse = with_target(
        row_top.to(tl.float64), tl.sum(e * weight, 0).to(tl.float64), weighted,
        tl.load(at_target + row),
    )  # fmt: skip
    tl.store(stats + row, logp)
    tl.store(stats + n_rows + row, entropy)
    tl.store(stats + 2 * n_rows + row, lse)
    tl.store(rank + row, tl.sum(above, 0).to(tl.int64))


def row_stats_triton(logits: Tensor, target: Tensor, at_target: Tensor) -> TokenStats:
    """As `row_stats_ref`, the logits left as they are; columns contiguous."""
    n_rows, n_cols = logits.shape
    stats = torch.empty(3, n_rows, dtype=torch.float64, device=logits.device)
    rank = torch.empty(n_rows, dtype=torch.int64, device=logits.device)
    launch(
        _row_stats, (n_rows,),
        logits, target, at_target, stats, rank, n_rows, n_cols, logits.stride(0),
        TILE=min(_TILE, triton.next_power_of_2(n_cols)), num_warps=8,
    )  # fmt: skip
    return TokenStats(logp=stats[0], entropy=stats[1], rank=rank, lse=stats[2])
