"""The autograd of every op that makes an augmented input: norm, SwiGLU, copy.

    forward    x → X by the op;  S = dropout(X) · Aᵀ by shrink.py;  result [X | 1 | S]
    backward   dA = dSᵀ · dropout(X);  dX += mask · (dS · A);  dX → dx by the op

Without an adapter the result is the base part [X | 1], and backward is the op's alone. The native
and Triton implementations do both halves of a line in one call. Where x goes on beside the op, as
the residual stream does, the op passes it on, and backward adds the two gradients.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from cqa.kernels.aug_columns import AugColumns, augmented
from cqa.kernels.backend import Backend
from cqa.kernels.gradient import Form, adding, form_gradient
from cqa.kernels.shrink import (
    Shrink,
    shrink_backward_ref,
    shrink_da_native,
    shrink_da_triton,
    shrink_forward_ref,
)


@dataclass(frozen=True, slots=True)
class AugOp:
    """What makes X of x, and dx of dX; `*given` are frozen inputs, a norm's weight for instance.

    A fused backward adds the low-rank part to dX in place. dS is None without an adapter.
    Where x is passed on, Triton's functions take `passed=`, a buffer for a copy of x, and
    `dpassed=`, its gradient, to be added.
    """

    reference: Callable[..., Tensor]  # (x, *given) → X
    reference_backward: Callable[..., Tensor]  # (dX, x, *given) → dx
    native: Callable[..., None]  # (x, X, S or None, shrink, *given), writes X and S
    native_backward: Callable[..., Tensor]  # (dX, x, dS, shrink, *given) → dx
    triton: Callable[..., None]  # (x, x_aug, columns, shrink, *given), writes every column and kept
    triton_backward: Callable[..., Tensor]  # as the native one
    reads_x: bool  # backward does


class _Augment(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        lora_a: Tensor | None,
        op: AugOp,
        columns: AugColumns,
        shrink: Shrink | None,
        dtype: torch.dtype,
        backend: Backend,
        passes_on: bool,
        *given: Any,
    ) -> Tensor | tuple[Tensor, Tensor]:
        masks: list[Tensor] = []
        passed = x
        if backend == "triton":
            x_aug = x.new_empty(x.shape[0], columns.total, dtype=dtype)
            if shrink:
                shrink = shrink.with_kept(x)
                masks = [] if shrink.kept is None else [shrink.kept]
            beside = {}
            if passes_on:
                passed = torch.empty_like(x, memory_format=torch.contiguous_format)
                beside = {"passed": passed}
            op.triton(x, x_aug, columns, shrink, *given, **beside)
        else:
            x_aug = augmented(x, columns, dtype)
            made = x_aug[:, : columns.features]
            s = x_aug[:, columns.ranks] if shrink else None
            if backend == "native":
                op.native(x, made, s, shrink, *given)
            else:
                made.copy_(op.reference(x, *given))
                if shrink and s is not None:
                    masks = shrink_forward_ref(
                        made, shrink.lora_a, shrink.modules, shrink.dropout, s
                    )
        ctx.save_for_backward(x if op.reads_x else None, lora_a, x_aug if shrink else None, *masks)
        ctx.set_materialize_grads(False)
        ctx.op, ctx.columns, ctx.shrink, ctx.backend, ctx.given = (
            op,
            columns,
            shrink and replace(shrink, kept=None),
            backend,
            given,
        )
        return (x_aug, passed) if passes_on else x_aug

    @staticmethod
    def backward(
        ctx: Any, dx_aug: Tensor | None, dpassed: Tensor | None = None
    ) -> tuple[Tensor | None, ...]:
        nothing = [None] * (6 + len(ctx.given))
        if dx_aug is None:
            return (dpassed, None, *nothing)
        x, lora_a, x_aug, *masks = ctx.saved_tensors
        op, columns, shrink, fused = ctx.op, ctx.columns, ctx.shrink, ctx.backend != "reference"
        dmade = dx_aug[:, : columns.features] if ctx.needs_input_grad[0] else None
        da = ds = dx = None
        if shrink:
            made, ds = x_aug[:, : columns.features], dx_aug[:, columns.ranks]
            form: Form
            if ctx.backend == "triton":
                shrink = replace(shrink, kept=masks[0]) if masks else shrink
                form = partial(shrink_da_triton, ds, made, shrink)
            elif ctx.backend == "native":
                form = adding(partial(shrink_da_native, ds, made, shrink))
            else:
                form = adding(
                    partial(shrink_backward_ref, made, ds, lora_a, masks, shrink.scale, dmade)
                )
            da = form_gradient(shrink.gradient, lora_a.shape, lora_a, form)
        elif dmade is not None and fused:
            dmade = dmade.contiguous()
        if dmade is not None and ctx.backend == "triton":
            beside = {} if dpassed is None else {"dpassed": dpassed}
            dx = op.triton_backward(dmade, x, ds, shrink, *ctx.given, **beside)
        elif dmade is not None:
            if fused:
                dx = op.native_backward(dmade, x, ds, shrink, *ctx.given)
            else:
                dx = op.reference_backward(dmade, x, *ctx.given)
            if dpassed is not None:
                dx = dx + dpassed
        return (dx, da, *nothing)


def augment(
    op: AugOp,
    x: Tensor,  # (M, width that the op reads)
    columns: AugColumns,
    shrink: Shrink | None,
    *given: Any,
    dtype: torch.dtype,
    backend: Backend,
) -> Tensor:  # (M, columns.total) of `dtype`, or (M, columns.base) without `shrink`
    """Run an op, differentiable in x and in LoRA's A."""
    lora_a, columns = (shrink.lora_a, columns) if shrink else (None, columns.alone)
    out: Tensor = _Augment.apply(  # type: ignore[no-untyped-call]
        x, lora_a, op, columns, shrink, dtype, backend, False, *given
    )
    return out


def augment_beside(
    op: AugOp,
    x: Tensor,  # (M, width that the op reads)
    columns: AugColumns,
    shrink: Shrink | None,
    *given: Any,
    dtype: torch.dtype,
    backend: Backend,
) -> tuple[Tensor, Tensor]:  # as `augment`, and x (M, width)
    """Run an op that passes x on beside its result: a copy by Triton, else x itself."""
    lora_a, columns = (shrink.lora_a, columns) if shrink else (None, columns.alone)
    out: tuple[Tensor, Tensor] = _Augment.apply(  # type: ignore[no-untyped-call]
        x, lora_a, op, columns, shrink, dtype, backend, True, *given
    )
    return out
