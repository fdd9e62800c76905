"""Root-mean-square norm, alone and fused with dropout and the LoRA shrink of what follows.

    rms_norm(x) = x · rsqrt(mean(x²) + eps) · weight

Source: arXiv:1910.07467, eq. 4.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from cqa.kernels.backend import Backend, choose
from cqa.kernels.precision import wider
from cqa.kernels.shrink import (
    AugColumns,
    Shrink,
    augmented,
    native_arguments,
    shrink_backward_ref,
    shrink_da_native,
    shrink_forward_ref,
)


def rms_norm_ref(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """The definition, differentiable: x (..., D), weight (D,) to (..., D) in the weight's dtype."""
    wide = x.to(wider(weight.dtype))
    rstd = torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps)
    return (wide * rstd * weight.to(wide.dtype)).to(weight.dtype)


def _rms_norm_backward_ref(dy: Tensor, x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """Return dx; with n = x · rstd and g = dy · weight: dx = rstd · (g - n · mean(g · n))."""
    wide = x.to(wider(weight.dtype))
    rstd = torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps)
    normed = wide * rstd
    g = dy.to(wide.dtype) * weight.to(wide.dtype)
    return (rstd * (g - normed * (g * normed).mean(-1, keepdim=True))).to(x.dtype)


def _norm_native(
    x: Tensor, weight: Tensor, eps: float, out: Tensor, s: Tensor | None, shrink: Shrink | None
) -> None:
    """Write the norm to `out`, and S to `s` where there is an adapter."""
    scaled_a = None if shrink is None else shrink.lora_a * shrink.scale
    torch.ops.cqa.norm_shrink(x, weight, eps, out, s, scaled_a, *native_arguments(shrink))


class _NormShrink(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        lora_a: Tensor,
        eps: float,
        columns: AugColumns,
        shrink: Shrink,
        backend: Backend,
    ) -> Tensor:
        x_aug = augmented(x, columns, weight.dtype)
        normed, s = x_aug[:, : columns.features], x_aug[:, columns.ranks]
        masks = []
        if backend == "native":
            _norm_native(x, weight, eps, normed, s, shrink)
        else:
            normed.copy_(rms_norm_ref(x, weight, eps))
            masks = shrink_forward_ref(normed, lora_a, shrink.modules, shrink.dropout, s)
        ctx.save_for_backward(x, weight, lora_a, x_aug, *masks)
        ctx.eps, ctx.columns, ctx.shrink, ctx.backend = eps, columns, shrink, backend
        return x_aug

    @staticmethod
    def backward(ctx: Any, dx_aug: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, lora_a, x_aug, *masks = ctx.saved_tensors
        columns, shrink = ctx.columns, ctx.shrink
        normed, ds = x_aug[:, : columns.features], dx_aug[:, columns.ranks]
        dnormed = dx_aug[:, : columns.features] if ctx.needs_input_grad[0] else None
        dx = None
        if ctx.backend == "native":
            da = shrink_da_native(ds, normed, shrink)
            if dnormed is not None:
                dx = _norm_backward_native(dnormed, x, weight, ctx.eps, ds, shrink)
        else:
            da = shrink_backward_ref(normed, ds, lora_a, masks, shrink.scale, dnormed)
            if dnormed is not None:
                dx = _rms_norm_backward_ref(dnormed, x, weight, ctx.eps)
        return dx, None, da, None, None, None, None


def _norm_backward_native(
    dy: Tensor, x: Tensor, weight: Tensor, eps: float, ds: Tensor | None, shrink: Shrink | None
) -> Tensor:
    """Add the low-rank part to dy, in place; return dx."""
    dx = torch.empty_like(x)
    scaled_a = None if shrink is None else shrink.lora_a.detach() * shrink.scale
    torch.ops.cqa.norm_shrink_backward(
        dy, ds, scaled_a, x, weight, eps, dx, *native_arguments(shrink)
    )
    return dx


def norm_shrink(
    x: Tensor,  # (M, K)
    weight: Tensor,  # (K,)
    eps: float,
    columns: AugColumns,
    shrink: Shrink | None,
    *,
    backend: Backend | None = None,
) -> Tensor:  # (M, columns.total)
    """Normalise, and append the constant and low-rank columns of the projections that follow.

    Args:
        x: Hidden states, shape (M, K), of the weight's dtype or wider.
        weight: Scale of the norm, shape (K,); frozen. Its dtype is the result's.
        eps: Added to the mean square.
        columns: Layout of the result.
        shrink: LoRA's A and dropout; None gives the base part [X | 1] alone.
        backend: See cqa.kernels.backend.

    Returns:
        [X | 1 | S], shape (M, columns.total), or (M, columns.base) without `shrink`.
    """
    backend = choose(backend, weight.device, weight.dtype)
    if shrink is None:
        return with_constants(rms_norm(x, weight, eps, backend=backend), columns)
    out: Tensor = _NormShrink.apply(x, weight, shrink.lora_a, eps, columns, shrink, backend)  # type: ignore[no-untyped-call]
    return out


class _RmsNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.eps = eps
        out = torch.empty_like(x, dtype=weight.dtype)
        _norm_native(x, weight, eps, out, None, None)
        return out

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        dx = _norm_backward_native(dy.contiguous(), x, weight, ctx.eps, None, None)
        return dx, None, None


def rms_norm(
    x: Tensor,  # (..., K)
    weight: Tensor,  # (K,)
    eps: float,
    *,
    backend: Backend | None = None,
) -> Tensor:  # (..., K)
    """Normalise the last dimension; arguments as for `norm_shrink`."""
    if choose(backend, weight.device, weight.dtype) != "native":
        return rms_norm_ref(x, weight, eps)
    out: Tensor = _RmsNorm.apply(x.reshape(-1, x.shape[-1]), weight, eps)  # type: ignore[no-untyped-call]
    return out.view(x.shape)


def with_constants(x: Tensor, columns: AugColumns) -> Tensor:
    """Append the constant column to X where there is a bias: the base part of [X | 1 | S]."""
    if not columns.bias:
        return x
    constant = x.new_zeros(x.shape[0], columns.base - columns.features)
    constant[:, 0] = 1
    return torch.cat((x, constant), dim=1)
