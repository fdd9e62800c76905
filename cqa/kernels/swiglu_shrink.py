"""SwiGLU fused with dropout and the LoRA shrink of the down projection.

    act = silu(gate) · up,    silu(z) = z · sigmoid(z)

Source: arXiv:2002.05202, eq. 5 (without its biases).
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from cqa.kernels.backend import Backend, choose
from cqa.kernels.launch import any_rows, dot_type, launch, tile_width
from cqa.kernels.precision import wider
from cqa.kernels.shrink import (
    AugColumns,
    GroupLaunch,
    Shrink,
    augmented,
    expand_tile,
    native_arguments,
    numbers_of,
    shrink_backward_ref,
    shrink_da_native,
    shrink_da_triton,
    shrink_forward_ref,
    shrink_tile,
    store_constants,
    store_split,
    sum_splits,
)

SPLITS = 8  # of the columns, so that a few hundred rows fill a GPU


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


@triton.jit
def _sigmoid(z):
    small = tl.exp(-tl.abs(z))  # never overflows
    return tl.div_rn(tl.where(z < 0, small, 1.0), 1.0 + small)


@any_rows
def _swiglu_shrink_kernel(  # a program: a block of rows, a share of the columns, one member
    gate_up, lora_a, out, partial, key, streams, window_rows, m, k, in_stride, out_stride, base,
    rank, end_of_ranks, total, threshold, scale,
    ROWS: tl.constexpr, RANK: tl.constexpr, WIDTH: tl.constexpr, LORA: tl.constexpr,
    DROPOUT: tl.constexpr, DOT: tl.constexpr,
):  # fmt: skip
    rows = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    split, member, in_range = tl.program_id(1), tl.program_id(2), rows < m
    numbers = numbers_of(window_rows, rows, in_range, DROPOUT)
    s = tl.zeros((ROWS, RANK), tl.float32)
    for start in range(split * WIDTH, k, tl.num_programs(1) * WIDTH):
        cols = start + tl.arange(0, WIDTH)
        mask = in_range[:, None] & (cols < k)[None, :]
        at = gate_up + rows[:, None] * in_stride + cols[None, :]
        gate = tl.load(at, mask=mask, other=0.0).to(tl.float32)
        up = tl.load(at + k, mask=mask, other=0.0).to(tl.float32)
        act = (gate * _sigmoid(gate) * up).to(out.dtype.element_ty)
        if member == 0:
            tl.store(out + rows[:, None] * out_stride + cols[None, :], act, mask=mask)
        if LORA:
            s = shrink_tile(
                s, act.to(tl.float32), lora_a, member, rank, k, start, key, streams, threshold,
                numbers, RANK, WIDTH, DROPOUT, DOT,
            )  # fmt: skip
    if LORA:
        store_split(
            partial, s * scale, split, member, m, tl.num_programs(2), rows, in_range, rank, RANK
        )
    if (split == 0) & (member == 0):
        store_constants(out, out_stride, rows, in_range, k, base, end_of_ranks, total)


@any_rows
def _swiglu_backward_kernel(  # a tile a program
    dact, ds, lora_a, gate_up, out, key, streams, window_rows, m, k, dact_stride, ds_stride,
    in_stride, rank, threshold, scale,
    MEMBERS: tl.constexpr, ROWS: tl.constexpr, RANK: tl.constexpr, WIDTH: tl.constexpr,
    DROPOUT: tl.constexpr, DOT: tl.constexpr,
):  # fmt: skip
    rows = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    start, in_range = tl.program_id(1) * WIDTH, rows < m
    cols = start + tl.arange(0, WIDTH)
    mask = in_range[:, None] & (cols < k)[None, :]
    d = tl.load(dact + rows[:, None] * dact_stride + cols[None, :], mask=mask, other=0.0)
    d = d.to(tl.float32)
    if MEMBERS > 0:
        numbers = numbers_of(window_rows, rows, in_range, DROPOUT)
        d += scale * expand_tile(
            ds, ds_stride, lora_a, rank, k, start, key, streams, threshold, numbers, rows, in_range,
            MEMBERS, ROWS, RANK, WIDTH, DROPOUT, DOT,
        )  # fmt: skip
    at = gate_up + rows[:, None] * in_stride + cols[None, :]
    gate = tl.load(at, mask=mask, other=0.0).to(tl.float32)
    up = tl.load(at + k, mask=mask, other=0.0).to(tl.float32)
    sigmoid = _sigmoid(gate)
    silu = gate * sigmoid
    at = out + rows[:, None] * (2 * k) + cols[None, :]
    tl.store(at, d * up * (sigmoid + silu * (1 - sigmoid)), mask=mask)
    tl.store(at + k, d * silu, mask=mask)


def _swiglu_triton(
    gate_up: Tensor, out: Tensor, columns: AugColumns, shrink: Shrink | None
) -> None:
    """Write all columns of `out`, [X | 1 | S], or those of [X | 1] without an adapter."""
    m, k = gate_up.shape[0], columns.features
    group = GroupLaunch.of(shrink)
    dropout = group.dropout
    shape = (SPLITS, m, columns.rank_columns)
    partial = out.new_empty(shape, dtype=torch.float32) if shrink else None
    launch(
        _swiglu_shrink_kernel, (triton.cdiv(m, 32), SPLITS, max(1, group.members)),
        gate_up, group.lora_a, out, partial, dropout.key, dropout.streams, dropout.rows, m, k,
        gate_up.stride(0), out.stride(0), columns.base, group.rank, columns.ranks.stop,
        columns.total, dropout.threshold, group.scale,
        ROWS=32, WIDTH=tile_width(out.dtype), LORA=group.members > 0, DOT=dot_type(out.dtype),
        **group.constants, num_warps=4,
    )  # fmt: skip
    if partial is not None:
        sum_splits(partial, out[:, columns.ranks])


def _swiglu_backward_triton(
    dact: Tensor, gate_up: Tensor, ds: Tensor | None, shrink: Shrink | None
) -> Tensor:
    """Return d(gate_up), the low-rank part included."""
    out = torch.empty_like(gate_up, memory_format=torch.contiguous_format)
    m, k = dact.shape
    group, width = GroupLaunch.of(shrink), tile_width(dact.dtype)
    dropout = group.dropout
    launch(
        _swiglu_backward_kernel, (triton.cdiv(m, 32), triton.cdiv(k, width)),
        dact, ds, group.lora_a, gate_up, out, dropout.key, dropout.streams, dropout.rows, m, k,
        dact.stride(0), ds.stride(0) if ds is not None else 0, gate_up.stride(0), group.rank,
        dropout.threshold, group.scale,
        MEMBERS=group.members, ROWS=32, WIDTH=width, DOT=dot_type(dact.dtype), **group.constants,
        num_warps=4,
    )  # fmt: skip
    return out


def _swiglu_native(gate_up: Tensor, out: Tensor, s: Tensor | None, shrink: Shrink | None) -> None:
    lora_a = None if shrink is None else shrink.lora_a
    torch.ops.cqa.swiglu_shrink(gate_up, out, s, lora_a, *native_arguments(shrink))


def _swiglu_backward_native(
    dact: Tensor, gate_up: Tensor, ds: Tensor | None, shrink: Shrink | None
) -> Tensor:
    """Add the low-rank part to dact, in place; return d(gate_up)."""
    out = torch.empty_like(gate_up)
    lora_a = None if shrink is None else shrink.lora_a
    torch.ops.cqa.swiglu_shrink_backward(dact, ds, lora_a, gate_up, out, *native_arguments(shrink))
    return out


FUSED = {
    "native": (shrink_da_native, _swiglu_backward_native),
    "triton": (shrink_da_triton, _swiglu_backward_triton),
}


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
        masks = []
        if backend == "triton":
            act_aug = gate_up.new_empty(gate_up.shape[0], columns.total)
            _swiglu_triton(gate_up, act_aug, columns, shrink)
        else:
            act_aug = augmented(gate_up, columns, gate_up.dtype)
            act, s = act_aug[:, : columns.features], act_aug[:, columns.ranks]
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
        if ctx.backend in FUSED:
            shrink_da, swiglu_backward = FUSED[ctx.backend]
            da = shrink_da(ds, act, shrink)
            dgate_up = swiglu_backward(dact, gate_up, ds, shrink)
        else:
            da = shrink_backward_ref(act, ds, lora_a, masks, shrink.scale, dact)
            dgate_up = _swiglu_backward_ref(dact, gate_up)
        return dgate_up, da, None, None, None


class _Swiglu(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, gate_up: Tensor, columns: AugColumns, backend: Backend) -> Tensor:
        ctx.save_for_backward(gate_up)
        ctx.features, ctx.backend = columns.features, backend
        if backend == "triton":
            out = gate_up.new_empty(gate_up.shape[0], columns.total)
            _swiglu_triton(gate_up, out, columns, None)
            return out
        out = augmented(gate_up, columns, gate_up.dtype)
        act = out[:, : columns.features]
        if backend == "native":
            _swiglu_native(gate_up, act, None, None)
        else:
            act.copy_(swiglu_ref(gate_up))
        return out

    @staticmethod
    def backward(ctx: Any, dact: Tensor) -> tuple[Tensor | None, ...]:
        (gate_up,) = ctx.saved_tensors
        dact = dact[:, : ctx.features]
        if ctx.backend == "reference":
            return _swiglu_backward_ref(dact, gate_up), None, None
        return FUSED[ctx.backend][1](dact.contiguous(), gate_up, None, None), None, None


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
        act: Tensor = _Swiglu.apply(gate_up, columns.alone, backend)  # type: ignore[no-untyped-call]
        return act
    out: Tensor = _SwigluShrink.apply(gate_up, shrink.lora_a, columns, shrink, backend)  # type: ignore[no-untyped-call]
    return out
