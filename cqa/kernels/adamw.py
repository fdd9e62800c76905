"""AdamW with gradient clipping on flat fp32 buffers.

    g ← g · min(1, max_norm / (‖g‖ + 1e-6))
    m ← β1 m + (1 - β1) g        v ← β2 v + (1 - β2) g²
    p ← p (1 - lr λ) - lr · (m / (1 - β1ᵗ)) / (√(v / (1 - β2ᵗ)) + ε)

Nothing is read back between the norm and the step, and what changes from step to step lies in
tensors, so a device runs both without waiting for the host, or as part of a CUDA graph. A step
whose norm is not finite changes nothing; the host may look at the norm afterwards.
Source: arXiv:1711.05101, algorithm 2; clipping as torch.nn.utils.clip_grad_norm_.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from cqa.kernels.backend import Backend, choose
from cqa.kernels.launch import launch

BETA1, BETA2, EPS = 0.9, 0.999, 1e-8
_PIECE = 1 << 16  # elements whose squares are one partial sum on a device
_TILE = 1024


@dataclass(slots=True)
class AdamState:
    """Flat fp32 parameters, their gradient and moments, each shape (P,)."""

    param: Tensor
    grad: Tensor
    exp_avg: Tensor
    exp_avg_sq: Tensor


def adam_rates(*, lr: float, step: int, weight_decay: float, device: torch.device) -> Tensor:
    """Return what a step's update depends on, where the step runs.

    Args:
        lr: Learning rate of this step.
        step: Its number, counted from 1 (the bias correction).
        weight_decay: Decoupled weight decay.
        device: Of the buffers.

    Returns:
        (1 - lr λ, √(1 - β2ᵗ), lr / (1 - β1ᵗ)), shape (3,), fp64.
    """
    rates = (1 - lr * weight_decay, (1 - BETA2**step) ** 0.5, lr / (1 - BETA1**step))
    return torch.tensor(rates, dtype=torch.float64, device="cpu").to(device, non_blocking=True)


def _clip_factor_ref(norm: Tensor, max_norm: float) -> Tensor:
    return (max_norm / (norm + 1e-6)).clamp(max=1.0)


def adamw_ref(state: AdamState, rates: Tensor, norm: Tensor, max_norm: float) -> None:
    """The definition, in place."""
    if not norm.isfinite():
        return
    if max_norm > 0:
        state.grad.mul_(_clip_factor_ref(norm, max_norm))
    decay, root, rate = rates.tolist()
    state.param.mul_(decay)
    state.exp_avg.lerp_(state.grad, 1 - BETA1)
    state.exp_avg_sq.mul_(BETA2).addcmul_(state.grad, state.grad, value=1 - BETA2)
    denominator = (state.exp_avg_sq.sqrt() / root).add_(EPS)
    state.param.addcdiv_(state.exp_avg, denominator, value=-rate)


@triton.jit
def _square_sums(  # a program: the squares of one piece
    grad,  # (P,)
    sums,  # (pieces,) fp64, written
    n,
    PIECE: tl.constexpr,
    TILE: tl.constexpr,
):
    piece = tl.program_id(0)
    first = piece.to(tl.int64) * PIECE
    total = tl.zeros((TILE,), tl.float64)
    for start in range(0, PIECE, TILE):
        at = first + start + tl.arange(0, TILE)
        g = tl.load(grad + at, mask=at < n, other=0).to(tl.float64)
        total += g * g
    tl.store(sums + piece, tl.sum(total, 0))


@triton.jit
def _norm_of_sums(
    sums,  # (pieces,) fp64
    norm,  # (), written
    n,
    TILE: tl.constexpr,
):
    total = tl.zeros((TILE,), tl.float64)
    for start in range(0, n, TILE):
        at = start + tl.arange(0, TILE)
        total += tl.load(sums + at, mask=at < n, other=0)
    tl.store(norm, tl.sqrt(tl.sum(total, 0)).to(norm.dtype.element_ty))


def _gradient_norm_triton(grad: Tensor) -> Tensor:
    """Two stages whose pieces depend on the length alone."""
    pieces = triton.cdiv(grad.numel(), _PIECE)
    sums = torch.empty(pieces, dtype=torch.float64, device=grad.device)
    norm = torch.empty((), dtype=grad.dtype, device=grad.device)
    n, tile = grad.numel(), {"TILE": _TILE, "num_warps": 4}
    launch(_square_sums, (pieces,), grad=grad, sums=sums, n=n, PIECE=_PIECE, **tile)
    launch(_norm_of_sums, (1,), sums=sums, norm=norm, n=pieces, **tile)
    return norm


@triton.jit
def _adamw(
    param,  # (P,), as the moments, updated
    grad,  # (P,)
    exp_avg,  # (P,)
    exp_avg_sq,  # (P,)
    rates,  # (3,) fp64
    norm,  # ()
    max_norm,
    n,
    BETA1: tl.constexpr,
    BETA2: tl.constexpr,
    EPS: tl.constexpr,
    TILE: tl.constexpr,
):
    total = tl.load(norm)
    if total < float("inf"):  # neither infinite nor NaN
        at = tl.program_id(0).to(tl.int64) * TILE + tl.arange(0, TILE)
        inside = at < n
        decay = tl.load(rates).to(tl.float32)
        root = tl.load(rates + 1).to(tl.float32)
        rate = tl.load(rates + 2).to(tl.float32)
        factor = tl.where(max_norm > 0, tl.minimum(max_norm / (total + 1e-6), 1.0), 1.0)
        g = tl.load(grad + at, mask=inside, other=0) * factor
        m = tl.load(exp_avg + at, mask=inside, other=0)
        v = tl.load(exp_avg_sq + at, mask=inside, other=0)
        p = tl.load(param + at, mask=inside, other=0)
        m += (g - m) * (1 - BETA1)
        v = v * BETA2 + g * g * (1 - BETA2)
        denominator = tl.div_rn(tl.sqrt_rn(v), root) + EPS
        tl.store(exp_avg + at, m, mask=inside)
        tl.store(exp_avg_sq + at, v, mask=inside)
        tl.store(param + at, p * decay - rate * tl.div_rn(m, denominator), mask=inside)


def _adamw_triton(state: AdamState, rates: Tensor, norm: Tensor, max_norm: float) -> None:
    n = state.param.numel()
    launch(
        _adamw,
        (triton.cdiv(n, _TILE),),
        param=state.param,
        grad=state.grad,
        exp_avg=state.exp_avg,
        exp_avg_sq=state.exp_avg_sq,
        rates=rates,
        norm=norm,
        max_norm=float(max_norm),
        n=n,
        BETA1=BETA1,
        BETA2=BETA2,
        EPS=EPS,
        TILE=_TILE,
        num_warps=4,
    )


def _adamw_native(state: AdamState, rates: Tensor, norm: Tensor, max_norm: float) -> None:
    if not norm.isfinite():
        return
    if max_norm > 0:
        state.grad.mul_(_clip_factor_ref(norm, max_norm))
    decay, root, rate = rates.tolist()
    torch.ops.cqa.adamw(
        state.param, state.grad, state.exp_avg, state.exp_avg_sq, decay, BETA1, BETA2, root, rate,
        EPS,
    )  # fmt: skip


def gradient_norm(grad: Tensor, *, backend: Backend | None = None) -> Tensor:
    """Return the Euclidean norm of a flat gradient as a scalar tensor beside it.

    Its bits depend on the gradient alone, however many threads or processors add it up.

    Args:
        grad: Shape (P,), fp32, contiguous.
        backend: See cqa.kernels.backend.
    """
    backend = choose(backend, grad.device, grad.dtype)
    if backend == "triton":
        return _gradient_norm_triton(grad)
    if backend == "native":
        return torch.tensor(torch.ops.cqa.norm(grad), device="cpu")
    norm: Tensor = torch.linalg.vector_norm(grad)
    return norm


def adamw_step(
    state: AdamState,
    rates: Tensor,  # (3,) fp64
    *,
    norm: Tensor,  # ()
    max_norm: float,
    backend: Backend | None = None,
) -> None:
    """Take one clipped step in place, or none at all if `norm` is not finite.

    Args:
        state: Flat buffers; `param` and the moments change, `grad` is used up.
        rates: What `adam_rates` returns.
        norm: The gradient's norm, a scalar tensor.
        max_norm: The gradient is scaled down to this norm; 0 leaves it.
        backend: See cqa.kernels.backend.
    """
    backend = choose(backend, state.param.device, state.param.dtype)
    take = {"triton": _adamw_triton, "native": _adamw_native}.get(backend, adamw_ref)
    take(state, rates, norm, max_norm)
