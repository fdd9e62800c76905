"""Root-mean-square norm, alone and fused with dropout and the LoRA shrink of what follows.

    rms_norm(x) = x · rsqrt(mean(x²) + eps) · weight

Source: arXiv:1910.07467, eq. 4.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from cqa.kernels.precision import wider
from cqa.kernels.shrink import (
    AugColumns,
    Shrink,
    augmented,
    shrink_backward_ref,
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
    ) -> Tensor:
        x_aug = augmented(x, columns, weight.dtype)
        normed = x_aug[:, : columns.features]
        normed.copy_(rms_norm_ref(x, weight, eps))
        masks = shrink_forward_ref(
            normed, lora_a, shrink.modules, shrink.dropout, x_aug[:, columns.ranks]
        )
        ctx.save_for_backward(x, weight, lora_a, x_aug, *masks)
        ctx.eps, ctx.columns = eps, columns
        ctx.scale = shrink.dropout.scale if shrink.dropout else 1.0
        return x_aug

    @staticmethod
    def backward(ctx: Any, dx_aug: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, lora_a, x_aug, *masks = ctx.saved_tensors
        columns: AugColumns = ctx.columns
        normed, ds = x_aug[:, : columns.features], dx_aug[:, columns.ranks]
        dnormed = dx_aug[:, : columns.features] if ctx.needs_input_grad[0] else None
        da = shrink_backward_ref(normed, ds, lora_a, masks, ctx.scale, dnormed)
        dx = None if dnormed is None else _rms_norm_backward_ref(dnormed, x, weight, ctx.eps)
        return dx, None, da, None, None, None


def norm_shrink(
    x: Tensor,  # (M, K)
    weight: Tensor,  # (K,)
    eps: float,
    columns: AugColumns,
    shrink: Shrink | None,
) -> Tensor:  # (M, columns.total)
    """Normalise, and append the constant and low-rank columns of the projections that follow.

    Args:
        x: Hidden states, shape (M, K), of the weight's dtype or wider.
        weight: Scale of the norm, shape (K,); frozen. Its dtype is the result's.
        eps: Added to the mean square.
        columns: Layout of the result.
        shrink: LoRA's A and dropout; None gives the base part [X | 1] alone.

    Returns:
        [X | 1 | S], shape (M, columns.total), or (M, columns.base) without `shrink`.
    """
    if shrink is None:
        return with_constants(rms_norm_ref(x, weight, eps), columns)
    out: Tensor = _NormShrink.apply(x, weight, shrink.lora_a, eps, columns, shrink)  # type: ignore[no-untyped-call]
    return out


def with_constants(x: Tensor, columns: AugColumns) -> Tensor:
    """Append the constant column to X where there is a bias: the base part of [X | 1 | S]."""
    if not columns.bias:
        return x
    constant = x.new_zeros(x.shape[0], columns.base - columns.features)
    constant[:, 0] = 1
    return torch.cat((x, constant), dim=1)
