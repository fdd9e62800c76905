"""SwiGLU fused with dropout and the LoRA shrink of the down projection.

    act = silu(gate) · up,    silu(z) = z · sigmoid(z)

Source: arXiv:2002.05202, eq. 5 (without its biases).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from cqa.kernels.precision import wider
from cqa.kernels.rms_norm import with_constants
from cqa.kernels.shrink import (
    AugColumns,
    Shrink,
    augmented,
    shrink_backward_ref,
    shrink_forward_ref,
)


def swiglu_ref(gate_up: Tensor) -> Tensor:
    """The definition: gate_up (M, 2I) to (M, I).

    The sigmoid is written with exp: torch's silu rounds differently at the end of a vector, which
    would make a row's result depend on its place.
    """
    wide = gate_up.to(wider(gate_up.dtype))
    gate, up = wide.chunk(2, dim=1)
    return (gate / (torch.exp(-gate) + 1) * up).to(gate_up.dtype)


def _swiglu_backward_ref(dact: Tensor, gate_up: Tensor) -> Tensor:
    """Return d(gate_up); silu'(z) = s + z · s · (1 - s) with s = sigmoid(z)."""
    wide = gate_up.to(wider(gate_up.dtype))
    gate, up = wide.chunk(2, dim=1)
    dwide = dact.to(wide.dtype)
    s = torch.sigmoid(gate)
    silu = gate * s
    out = torch.empty_like(gate_up)
    dgate, dup = out.chunk(2, dim=1)
    dgate.copy_(dwide * up * (s + silu * (1 - s)))
    dup.copy_(dwide * silu)
    return out


class _SwigluShrink(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, gate_up: Tensor, lora_a: Tensor, columns: AugColumns, shrink: Shrink
    ) -> Tensor:
        act_aug = augmented(gate_up, columns, gate_up.dtype)
        act = act_aug[:, : columns.features]
        act.copy_(swiglu_ref(gate_up))
        masks = shrink_forward_ref(
            act, lora_a, shrink.modules, shrink.dropout, act_aug[:, columns.ranks]
        )
        ctx.save_for_backward(gate_up, lora_a, act_aug, *masks)
        ctx.columns = columns
        ctx.scale = shrink.dropout.scale if shrink.dropout else 1.0
        return act_aug

    @staticmethod
    def backward(ctx: Any, dact_aug: Tensor) -> tuple[Tensor | None, ...]:
        gate_up, lora_a, act_aug, *masks = ctx.saved_tensors
        columns: AugColumns = ctx.columns
        act, ds = act_aug[:, : columns.features], dact_aug[:, columns.ranks]
        dact = dact_aug[:, : columns.features]
        da = shrink_backward_ref(act, ds, lora_a, masks, ctx.scale, dact)
        return _swiglu_backward_ref(dact, gate_up), da, None, None


class _Swiglu(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, gate_up: Tensor) -> Tensor:
        ctx.save_for_backward(gate_up)
        return swiglu_ref(gate_up)

    @staticmethod
    def backward(ctx: Any, dact: Tensor) -> Tensor:
        return _swiglu_backward_ref(dact, *ctx.saved_tensors)


def swiglu_shrink(
    gate_up: Tensor,  # (M, 2I): gate, then up
    columns: AugColumns,  # of the down projection, features = I
    shrink: Shrink | None,
) -> Tensor:  # (M, columns.total)
    """Gate, and append the low-rank columns of down; see `norm_shrink` for the layout."""
    if shrink is None:
        act: Tensor = _Swiglu.apply(gate_up)  # type: ignore[no-untyped-call]
        return with_constants(act, columns)
    out: Tensor = _SwigluShrink.apply(gate_up, shrink.lora_a, columns, shrink)  # type: ignore[no-untyped-call]
    return out
