"""AdamW with gradient clipping on flat fp32 buffers.

    g ← g · min(1, max_norm / (‖g‖ + 1e-6))
    m ← β1 m + (1 - β1) g        v ← β2 v + (1 - β2) g²
    p ← p (1 - lr λ) - lr · (m / (1 - β1ᵗ)) / (√(v / (1 - β2ᵗ)) + ε)

Source: arXiv:1711.05101, algorithm 2; clipping as torch.nn.utils.clip_grad_norm_.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from cqa.kernels.backend import Backend, choose

BETA1, BETA2, EPS = 0.9, 0.999, 1e-8


@dataclass(slots=True)
class AdamState:
    """Flat fp32 parameters, their gradient and moments, each shape (P,)."""

    param: Tensor
    grad: Tensor
    exp_avg: Tensor
    exp_avg_sq: Tensor


def clip_gradient(state: AdamState, max_norm: float, *, backend: Backend | None = None) -> Tensor:
    """Scale the gradient in place to a norm of at most `max_norm` (0: leave it).

    Returns:
        The norm before, a scalar tensor; the caller checks that it is finite before stepping.
    """
    if choose(backend, state.grad.device, state.grad.dtype) == "native":
        norm = torch.tensor(torch.ops.cqa.norm(state.grad))
    else:
        norm = torch.linalg.vector_norm(state.grad)
    if max_norm > 0:
        state.grad.mul_((max_norm / (norm + 1e-6)).clamp(max=1.0))
    return norm


def adamw_ref(state: AdamState, *, lr: float, step: int, weight_decay: float) -> None:
    """The definition, in place."""
    state.param.mul_(1 - lr * weight_decay)
    state.exp_avg.lerp_(state.grad, 1 - BETA1)
    state.exp_avg_sq.mul_(BETA2).addcmul_(state.grad, state.grad, value=1 - BETA2)
    denominator = (state.exp_avg_sq.sqrt() / (1 - BETA2**step) ** 0.5).add_(EPS)
    state.param.addcdiv_(state.exp_avg, denominator, value=-lr / (1 - BETA1**step))


def _adamw_native(state: AdamState, *, lr: float, step: int, weight_decay: float) -> None:
    torch.ops.cqa.adamw(
        state.param, state.grad, state.exp_avg, state.exp_avg_sq, 1 - lr * weight_decay,
        BETA1, BETA2, (1 - BETA2**step) ** 0.5, lr / (1 - BETA1**step), EPS,
    )  # fmt: skip


def adamw_step(
    state: AdamState,
    *,
    lr: float,
    step: int,
    weight_decay: float,
    backend: Backend | None = None,
) -> None:
    """Take one step in place.

    Args:
        state: Flat buffers; `param` and the moments change.
        lr: Learning rate of this step.
        step: Its number, counted from 1 (the bias correction).
        weight_decay: Decoupled weight decay.
        backend: See cqa.kernels.backend.
    """
    native = choose(backend, state.param.device, state.param.dtype) == "native"
    take = _adamw_native if native else adamw_ref
    take(state, lr=lr, step=step, weight_decay=weight_decay)
