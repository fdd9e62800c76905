"""What one read of a row of logits z gives of its target t, in nats.

    lse  = ln Σ_v exp z_v         entropy    = lse - Σ_v p_v z_v
    logp = z_t - lse              rank       = #{v : z_v > z_t}
                                  varentropy = Σ_v p_v (z_v - Σ_u p_u z_u)²

The target's own term is kept apart from the sums over the others. So its logit may be given to more
digits than the row holds, no probability exceeds 1, and near certainty keeps its digits:

    logp = -ln(1 + Σ_{v ≠ t} exp(z_v - z_t))

Varentropy, the variance of -ln p, is computed where it is asked for. It is a sum of squares about
a mean, never a difference of moments of the row: of groups a and b of a row, which have the sums of
weights w, means μ and sums of squares about them M,

    M = M_a + M_b + w_a w_b / (w_a + w_b) · (μ_a - μ_b)²        (Chan, Golub and LeVeque 1983)
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
    varentropy: Tensor | None = None  # nats², fp64, at least 0; None where it was not asked for


def stats_of(stats: Tensor, rank: Tensor) -> TokenStats:
    """Name what a kernel wrote: logp, entropy, lse and, where it was asked for, varentropy."""
    logp, entropy, lse, *varentropy = stats.unbind()
    return TokenStats(logp, entropy, rank, lse, *varentropy)


def logit_stats_ref(
    logits: Tensor,  # (M, V) fp32 or wider, overwritten
    target: Tensor,  # (M,) int64
    target_logit: Tensor,  # (M,) fp64
    *,
    varentropy: bool = False,
) -> TokenStats:
    """The definition for one chunk of logits, which it uses as its working memory.

    `target_logit` is given to more digits than the row holds; it takes the place of the row's own,
    also within the sum, so that no probability exceeds 1 and the others keep their digits where
    the target takes nearly all.
    """
    column = target[:, None]
    rank = (logits > logits.gather(1, column)).sum(1)
    row_max = logits.amax(1, keepdim=True)
    shifted = logits.sub_(row_max).clamp_(min=torch.finfo(logits.dtype).min)  # 0 · -inf is NaN
    exps = torch.exp(shifted)
    exps.scatter_(1, column, 0)
    z_target = target_logit - row_max.squeeze(1)
    log_sum_exp = torch.logaddexp(exps.sum(1).double().log(), z_target)
    weights = exps.clone() if varentropy else None
    sum_exp_z = exps.mul_(shifted).sum(1).double() + z_target.exp() * z_target
    mean = sum_exp_z * torch.exp(-log_sum_exp)
    spread = None
    if weights is not None:
        off = shifted.sub_(mean.to(shifted.dtype)[:, None])
        spread = weights.mul_(off).mul_(off).sum(1).double()
        spread = (spread + z_target.exp() * (z_target - mean) ** 2) * torch.exp(-log_sum_exp)
    return TokenStats(
        logp=z_target - log_sum_exp,
        entropy=(log_sum_exp - mean).clamp_(min=0),
        rank=rank,
        lse=row_max.squeeze(1) + log_sum_exp,
        varentropy=spread,
    )


@triton.jit
def _log1p(x):
    """ln(1 + x) of x ≥ 0 to full precision (Goldberg 1991, theorem 4)."""
    u = x + 1
    lost = u == 1
    return tl.where(lost, x, tl.log(u) * x / tl.where(lost, 1.0, u - 1))


@triton.jit
def with_target(row_max, sum_exp, sum_exp_z, z_target):
    """Return (logp, entropy, lse) from the sums over the others and the target's logit, all fp64.

    `row_max` is any shift; sum_exp is Σ exp(z - row_max), sum_exp_z Σ exp(z - row_max) · (z -
    row_max).
    """
    new_max = tl.maximum(row_max, z_target)
    change = row_max - new_max
    sum_exp_z = tl.exp(change) * (sum_exp_z + change * sum_exp)
    sum_exp = tl.exp(change) * sum_exp
    shifted = z_target - new_max
    e_target = tl.exp(shifted)
    hopeless = shifted < -600  # e_target is too small to divide by
    ratio = sum_exp / tl.where(hopeless, 1.0, e_target)
    # the other branch is taken with sum_exp ≥ 1 alone
    logp = tl.where(hopeless, shifted - tl.log(sum_exp + e_target), -_log1p(ratio))
    log_sum_exp = shifted - logp
    entropy = log_sum_exp - (sum_exp_z + e_target * shifted) / (sum_exp + e_target)
    return logp, tl.where(entropy < 0, 0.0, entropy), new_max + log_sum_exp


@triton.jit
def mean_of(sum_exp, sum_exp_z):
    """Return Σ w z / Σ w, and 0 where there is no weight, so that both sums are 0."""
    return sum_exp_z / tl.where(sum_exp > 0, sum_exp, 1.0)


@triton.jit
def joined_spread(weight, mean, spread, total_mean):
    """Return Σ w (z - total_mean)² of groups of columns, along the first axis.

    Args:
        weight: Σ w of each.
        mean: Σ w z / Σ w of each.
        spread: Σ w (z - mean)² of each.
        total_mean: Of all of them; broadcasts.
    """
    off = tl.where(weight > 0, mean - total_mean, 0.0)
    return tl.sum(spread + weight * off * off, 0)


@triton.jit
def varentropy_with_target(row_max, sum_exp, sum_exp_z, spread, z_target):
    """Return the varentropy from the sums over the others and the target's logit, all fp64.

    As `with_target`; spread is Σ exp(z - row_max) · (z - mean)².
    """
    new_max = tl.maximum(row_max, z_target)
    change = tl.exp(row_max - new_max)
    others = change * sum_exp
    e_target = tl.exp(z_target - new_max)
    total = others + e_target
    apart = tl.where(others > 0, mean_of(sum_exp, sum_exp_z) + (row_max - z_target), 0.0)
    return (change * spread + others * (e_target / total) * apart * apart) / total


@any_rows
def _logit_stats(  # a program: a row; every lane sums its own columns until the row is read
    logits,  # (M, V)
    target,  # (M,)
    target_logit,  # (M,) fp64
    stats,  # (3 or 4, M) fp64: logp, entropy, lse, varentropy, written
    rank,  # (M,) int64, written
    n_rows,
    n_cols,
    row_stride,
    TILE: tl.constexpr,
    VARENTROPY: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    z_row = logits + row * row_stride
    t = tl.load(target + row)
    z_target = tl.load(z_row + t).to(tl.float32)
    lane_max = tl.full((TILE,), LEAST, tl.float32)
    sum_exp = tl.zeros((TILE,), tl.float32)
    sum_exp_z = tl.zeros((TILE,), tl.float32)
    # Σ e^(z - lane_max) (z - lane_max)². A lane's variance is the difference of its moments: that
    # costs at most as many roundings as 1 / the share of its greatest, so as a lane has columns.
    sum_exp_zz = tl.zeros((TILE,), tl.float32)
    n_above = tl.zeros((TILE,), tl.int32)
    for start in range(0, n_cols, TILE):
        column = start + tl.arange(0, TILE)
        z = tl.load(z_row + column, mask=column < n_cols, other=NOTHING).to(tl.float32)
        z = tl.where(column == t, NOTHING, z)
        n_above += (z > z_target).to(tl.int32)
        shifted = z - lane_max
        e = tl.exp(-tl.abs(shifted))  # one exponential whichever of the two is larger
        raises = shifted > 0
        e_shifted = tl.where(e > 0, e * shifted, 0.0)
        if VARENTROPY:
            rise = tl.maximum(shifted, 0.0)
            raised = e * (sum_exp_zz - rise * (2 * sum_exp_z - rise * sum_exp))
            near = tl.where(e > 0, shifted, 0.0)
            sum_exp_zz = tl.where(raises, raised, sum_exp_zz + e_shifted * near)
        sum_exp_z = tl.where(raises, e * (sum_exp_z - shifted * sum_exp), sum_exp_z + e_shifted)
        sum_exp = tl.where(raises, sum_exp * e + 1, sum_exp + e)
        lane_max = tl.maximum(lane_max, z)
    row_max = tl.max(lane_max, 0)
    shifted = lane_max - row_max
    e = tl.exp(shifted)
    top = row_max.to(tl.float64)
    weight = tl.sum(e * sum_exp, 0).to(tl.float64)
    weighted = tl.sum(e * (sum_exp_z + shifted * sum_exp), 0).to(tl.float64)
    exact = tl.load(target_logit + row)
    logp, entropy, lse = with_target(top, weight, weighted, exact)
    if VARENTROPY:
        mean = mean_of(sum_exp, sum_exp_z)
        spread = tl.maximum(sum_exp_zz - mean * sum_exp_z, 0.0)
        total_mean = mean_of(weight, weighted).to(tl.float32)
        spread = joined_spread(e * sum_exp, mean + shifted, e * spread, total_mean)
        spread = varentropy_with_target(top, weight, weighted, spread.to(tl.float64), exact)
        tl.store(stats + 3 * n_rows + row, spread)
    tl.store(stats + row, logp)
    tl.store(stats + n_rows + row, entropy)
    tl.store(stats + 2 * n_rows + row, lse)
    tl.store(rank + row, tl.sum(n_above, 0).to(tl.int64))


def logit_stats_triton(
    logits: Tensor, target: Tensor, target_logit: Tensor, *, varentropy: bool = False
) -> TokenStats:
    """As `logit_stats_ref`, the logits left as they are; columns contiguous."""
    n_rows, n_cols = logits.shape
    stats = torch.empty(3 + varentropy, n_rows, dtype=torch.float64, device=logits.device)
    rank = torch.empty(n_rows, dtype=torch.int64, device=logits.device)
    launch(
        _logit_stats,
        (n_rows,),
        logits=logits,
        target=target,
        target_logit=target_logit,
        stats=stats,
        rank=rank,
        n_rows=n_rows,
        n_cols=n_cols,
        row_stride=logits.stride(0),
        TILE=min(_TILE, triton.next_power_of_2(n_cols)),
        VARENTROPY=varentropy,
        num_warps=8,
    )
    return stats_of(stats, rank)
