"""Cross-entropy: loss and gradient of one chunk of logits z with targets t, row by row.

    logp = z_t - lse        d(-logp) / dz_v = p_v - [v = t]

The target's gradient is minus the sum of the others' probabilities: formed so, in fp32 before any
rounding, it keeps its digits where the target is nearly certain.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from cqa.kernels.backend import Backend
from cqa.kernels.launch import launch
from cqa.kernels.logit_stats import LEAST, NOTHING, with_target

_TILE = 4096


def cross_entropy_ref(
    logits: Tensor,  # (M, V) fp32 or wider, overwritten by d(-logp) / d(logits)
    target: Tensor,  # (M,) int64
) -> Tensor:  # (M,) logp
    """Return logp and turn the logits into the gradient rows p - onehot(target), in place."""
    row_max = logits.amax(1, keepdim=True)
    z_target = logits.gather(1, target[:, None]) - row_max
    sum_exp = torch.exp(logits.sub_(row_max), out=logits).sum(1, keepdim=True)
    logp = z_target.double() - sum_exp.double().log()
    logits.div_(sum_exp)
    logits.scatter_(1, target[:, None], torch.expm1(logp).to(logits.dtype))
    return logp.squeeze(1).to(logits.dtype)


@triton.jit
def _cross_entropy(  # a program: a row, read twice
    logits,  # (M, V)
    target,  # (M,)
    gradient,  # (M, V), written; may be the logits themselves
    logp,  # (M,) fp32, written
    n_cols,
    row_stride,
    gradient_stride,
    TILE: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    z_row = logits + row * row_stride
    g_row = gradient + row * gradient_stride
    t = tl.load(target + row)
    z_target = tl.load(z_row + t).to(tl.float32)
    lane_max = tl.full((TILE,), LEAST, tl.float32)
    sum_exp = tl.zeros((TILE,), tl.float32)
    for start in range(0, n_cols, TILE):
        column = start + tl.arange(0, TILE)
        z = tl.load(z_row + column, mask=column < n_cols, other=NOTHING).to(tl.float32)
        z = tl.where(column == t, NOTHING, z)
        shifted = z - lane_max
        e = tl.exp(-tl.abs(shifted))  # one exponential whichever of the two is larger
        sum_exp = tl.where(shifted > 0, sum_exp * e + 1, sum_exp + e)
        lane_max = tl.maximum(lane_max, z)
    others_max = tl.max(lane_max, 0)
    others = tl.sum(sum_exp * tl.exp(lane_max - others_max), 0)
    wide = others.to(tl.float64)
    result, _entropy, _lse = with_target(
        others_max.to(tl.float64), wide, 0.0 * wide, z_target.to(tl.float64)
    )
    tl.store(logp + row, result)

    row_max = tl.maximum(others_max, z_target)
    others *= tl.exp(others_max - row_max)
    scale = 1 / (others + tl.exp(z_target - row_max))
    for start in range(0, n_cols, TILE):
        column = start + tl.arange(0, TILE)
        z = tl.load(z_row + column, mask=column < n_cols, other=NOTHING).to(tl.float32)
        g = tl.where(column == t, -others, tl.exp(z - row_max)) * scale
        tl.store(g_row + column, g.to(gradient.dtype.element_ty), mask=column < n_cols)


def _cross_entropy_triton(
    logits: Tensor, target: Tensor, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    n_rows, n_cols = logits.shape
    logp = torch.empty(n_rows, dtype=torch.float32, device=logits.device)
    gradient = logits if dtype == logits.dtype else torch.empty_like(logits, dtype=dtype)
    launch(
        _cross_entropy,
        (n_rows,),
        logits=logits,
        target=target,
        gradient=gradient,
        logp=logp,
        n_cols=n_cols,
        row_stride=logits.stride(0),
        gradient_stride=gradient.stride(0),
        TILE=min(_TILE, triton.next_power_of_2(n_cols)),
        num_warps=8,
    )
    return logp, gradient


def _cross_entropy_native(logits: Tensor, target: Tensor) -> Tensor:
    logp = torch.empty(target.shape, dtype=torch.float64, device="cpu")
    torch.ops.cqa.loss_rows(logits, target, logp)
    return logp


def cross_entropy(
    logits: Tensor,  # (M, V)
    target: Tensor,  # (M,) int64
    dtype: torch.dtype,
    *,
    backend: Backend,
) -> tuple[Tensor, Tensor]:
    """Return the log-probability of each target and the gradient rows of -logp.

    Args:
        logits: Shape (M, V), fp32 or wider, columns contiguous. Used up: where `dtype` is theirs,
            the gradient takes their place.
        target: Column of each row, in [0, V), shape (M,).
        dtype: Of the gradient: that of the product it goes into. 16 bits halve what is written here
            and read there.
        backend: See cqa.kernels.backend.

    Returns:
        logp (M,) in nats, and the gradient (M, V).
    """
    target = target.contiguous()
    if backend == "triton":
        return _cross_entropy_triton(logits, target, dtype)
    logp = (_cross_entropy_native if backend == "native" else cross_entropy_ref)(logits, target)
    return logp, logits.to(dtype)
