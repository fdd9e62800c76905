"""Dropout and LoRA shrink of an input that nothing precedes: the attention output before o."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from cqa.kernels.backend import Backend, choose
from cqa.kernels.rms_norm import with_constants
from cqa.kernels.shrink import (
    AugColumns,
    Shrink,
    augmented,
    native_arguments,
    shrink_backward_ref,
    shrink_da_native,
    shrink_forward_ref,
)


class _CopyShrink(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, lora_a: Tensor, columns: AugColumns, shrink: Shrink, backend: Backend
    ) -> Tensor:
        x_aug = augmented(x, columns, x.dtype)
        copied, s = x_aug[:, : columns.features], x_aug[:, columns.ranks]
        masks = []
        if backend == "native":
            torch.ops.cqa.copy_shrink(
                x, copied, s, lora_a * shrink.scale, *native_arguments(shrink)
            )
        else:
            copied.copy_(x)
            masks = shrink_forward_ref(copied, lora_a, shrink.modules, shrink.dropout, s)
        ctx.save_for_backward(lora_a, x_aug, *masks)
        ctx.columns, ctx.shrink, ctx.backend = columns, shrink, backend
        return x_aug

    @staticmethod
    def backward(ctx: Any, dx_aug: Tensor) -> tuple[Tensor | None, ...]:
        lora_a, x_aug, *masks = ctx.saved_tensors
        columns, shrink = ctx.columns, ctx.shrink
        x, ds = x_aug[:, : columns.features], dx_aug[:, columns.ranks]
        dx = dx_aug[:, : columns.features]
        if ctx.backend == "native":
            da = shrink_da_native(ds, x, shrink)
            torch.ops.cqa.copy_shrink_backward(
                dx, ds, lora_a * shrink.scale, *native_arguments(shrink)
            )
        else:
            da = shrink_backward_ref(x, ds, lora_a, masks, shrink.scale, dx)
        return dx, da, None, None, None


def copy_shrink(
    x: Tensor,  # (M, K)
    columns: AugColumns,
    shrink: Shrink | None,
    *,
    backend: Backend | None = None,
) -> Tensor:  # (M, columns.total)
    """Append the constant and low-rank columns to X; see `norm_shrink` for the layout."""
    if shrink is None:
        return with_constants(x, columns)
    backend = choose(backend, x.device, x.dtype)
    out: Tensor = _CopyShrink.apply(x, shrink.lora_a, columns, shrink, backend)  # type: ignore[no-untyped-call]
    return out
