"""SwiGLU fused with dropout and the LoRA shrink of the down projection.

    act = silu(gate) · up,    silu(z) = z · sigmoid(z)

Source: arXiv:2002.05202, eq. 5 (without its biases).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from cqa.kernels.backend import Backend, choose
from cqa.kernels.precision import wider
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


def _swiglu_native(gate_up: Tensor, out: Tensor, s: Tensor | None, shrink: Shrink | None) -> None:
    scaled_a = None if shrink is None else shrink.lora_a * shrink.scale
    torch.ops.cqa.swiglu_shrink(gate_up, out, s, scaled_a, *native_arguments(shrink))


def _swiglu_backward_native(
    dact: Tensor, gate_up: Tensor, ds: Tensor | None, shrink: Shrink | None
) -> Tensor:
    """Add the low-rank part to dact, in place; return d(gate_up)."""
    out = torch.empty_like(gate_up)
    scaled_a = None if shrink is None else shrink.lora_a * shrink.scale
    torch.ops.cqa.swiglu_shrink_backward(
        dact, ds, scaled_a, gate_up, out, *native_arguments(shrink)
    )
    return out


class _SwigluShrink(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        gate_up: Tensor,
        lora_a: Tensor,
        columns: AugColumns,
        shrink: Shrink,
        backend: Backend,
    ) -> Tensor:
        act_aug = augmented(gate_up, columns, gate_up.dtype)
        act, s = act_aug[:, : columns.features], act_aug[:, columns.ranks]
        masks = []
        if backend == "native":
            _swiglu_native(gate_up, act, s, shrink)
        else:
            act.copy_(swiglu_ref(gate_up))
            masks = shrink_forward_ref(act, lora_a, shrink.modules, shrink.dropout, s)
        ctx.save_for_backward(gate_up, lora_a, act_aug, *masks)
        ctx.columns, ctx.shrink, ctx.backend = columns, shrink, backend
        return act_aug

    @staticmethod
    def backward(ctx: Any, dact_aug: Tensor) -> tuple[Tensor | None, ...]:
        gate_up, lora_a, act_aug, *masks = ctx.saved_tensors
        columns, shrink = ctx.columns, ctx.shrink
        act, ds = act_aug[:, : columns.features], dact_aug[:, columns.ranks]
        dact = dact_aug[:, : columns.features]
        if ctx.backend == "native":
            da = shrink_da_native(ds, act, shrink)
            dgate_up = _swiglu_backward_native(dact, gate_up, ds, shrink)
        else:
            da = shrink_backward_ref(act, ds, lora_a, masks, shrink.scale, dact)
            dgate_up = _swiglu_backward_ref(dact, gate_up)
        return dgate_up, da, None, None, None


class _Swiglu(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, gate_up: Tensor, backend: Backend) -> Tensor:
        ctx.save_for_backward(gate_up)
        ctx.backend = backend
        if backend == "reference":
            return swiglu_ref(gate_up)
        out = gate_up.new_empty(gate_up.shape[0], gate_up.shape[1] // 2)
        _swiglu_native(gate_up, out, None, None)
        return out

    @staticmethod
    def backward(ctx: Any, dact: Tensor) -> tuple[Tensor, None]:
        (gate_up,) = ctx.saved_tensors
        if ctx.backend == "reference":
            return _swiglu_backward_ref(dact, gate_up), None
        return _swiglu_backward_native(dact.contiguous(), gate_up, None, None), None


def swiglu_shrink(
    gate_up: Tensor,  # (M, 2I): gate, then up
    columns: AugColumns,  # of the down projection, features = I
    shrink: Shrink | None,
    *,
    backend: Backend | None = None,
) -> Tensor:  # (M, columns.total)
    """Gate, and append the low-rank columns of down; see `norm_shrink` for the layout."""
    backend = choose(backend, gate_up.device, gate_up.dtype)
    if shrink is None:
        act: Tensor = _Swiglu.apply(gate_up, backend)  # type: ignore[no-untyped-call]
        return with_constants(act, columns)
    out: Tensor = _SwigluShrink.apply(gate_up, shrink.lora_a, columns, shrink, backend)  # type: ignore[no-untyped-call]
    return out
