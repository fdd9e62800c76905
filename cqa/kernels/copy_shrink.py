"""Dropout and LoRA shrink of an input that nothing precedes: the attention output before o."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from cqa.kernels.rms_norm import with_constants
from cqa.kernels.shrink import (
    AugColumns,
    Shrink,
    augmented,
    shrink_backward_ref,
    shrink_forward_ref,
)


class _CopyShrink(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, lora_a: Tensor, columns: AugColumns, shrink: Shrink) -> Tensor:
        x_aug = augmented(x, columns, x.dtype)
        copied = x_aug[:, : columns.features]
        copied.copy_(x)
        masks = shrink_forward_ref(
            copied, lora_a, shrink.modules, shrink.dropout, x_aug[:, columns.ranks]
        )
        ctx.save_for_backward(lora_a, x_aug, *masks)
        ctx.columns = columns
        ctx.scale = shrink.dropout.scale if shrink.dropout else 1.0
        return x_aug

    @staticmethod
    def backward(ctx: Any, dx_aug: Tensor) -> tuple[Tensor | None, ...]:
        lora_a, x_aug, *masks = ctx.saved_tensors
        columns: AugColumns = ctx.columns
        x, ds = x_aug[:, : columns.features], dx_aug[:, columns.ranks]
        dx = dx_aug[:, : columns.features]
        da = shrink_backward_ref(x, ds, lora_a, masks, ctx.scale, dx)
        return dx, da, None, None


def copy_shrink(
    x: Tensor,  # (M, K)
    columns: AugColumns,
    shrink: Shrink | None,
) -> Tensor:  # (M, columns.total)
    """Append the constant and low-rank columns to X; see `norm_shrink` for the layout."""
    if shrink is None:
        return with_constants(x, columns)
    out: Tensor = _CopyShrink.apply(x, shrink.lora_a, columns, shrink)  # type: ignore[no-untyped-call]
    return out
