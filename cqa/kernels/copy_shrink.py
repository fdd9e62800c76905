"""Dropout and LoRA shrink of an input that nothing precedes: the attention output before o."""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from cqa.kernels.backend import Backend, choose
from cqa.kernels.launch import any_rows, dot_type, launch, tile_width
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

SPLITS = 4  # of the columns, so that a few hundred rows fill a GPU


@any_rows
def _copy_shrink_kernel(  # a program: a block of rows, a share of the columns, one member
    x, lora_a, out, partial, key, streams, window_rows, m, k, x_stride, out_stride, base, rank,
    end_of_ranks, total, threshold, scale,
    ROWS: tl.constexpr, RANK: tl.constexpr, WIDTH: tl.constexpr, DROPOUT: tl.constexpr,
    DOT: tl.constexpr,
):  # fmt: skip
    rows = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    split, member, in_range = tl.program_id(1), tl.program_id(2), rows < m
    numbers = numbers_of(window_rows, rows, in_range, DROPOUT)
    s = tl.zeros((ROWS, RANK), tl.float32)
    for start in range(split * WIDTH, k, tl.num_programs(1) * WIDTH):
        cols = start + tl.arange(0, WIDTH)
        mask = in_range[:, None] & (cols < k)[None, :]
        tile = tl.load(x + rows[:, None] * x_stride + cols[None, :], mask=mask, other=0.0)
        if member == 0:
            tl.store(out + rows[:, None] * out_stride + cols[None, :], tile, mask=mask)
        s = shrink_tile(
            s, tile.to(tl.float32), lora_a, member, rank, k, start, key, streams, threshold,
            numbers, RANK, WIDTH, DROPOUT, DOT,
        )  # fmt: skip
    store_split(
        partial, s * scale, split, member, m, tl.num_programs(2), rows, in_range, rank, RANK
    )
    if (split == 0) & (member == 0):
        store_constants(out, out_stride, rows, in_range, k, base, end_of_ranks, total)


@any_rows
def _copy_backward_kernel(  # dx += mask · (dS · A) · scale, a tile a program
    dx, ds, lora_a, key, streams, window_rows, m, k, dx_stride, ds_stride, rank, threshold, scale,
    MEMBERS: tl.constexpr, ROWS: tl.constexpr, RANK: tl.constexpr, WIDTH: tl.constexpr,
    DROPOUT: tl.constexpr, DOT: tl.constexpr,
):  # fmt: skip
    rows = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    start, in_range = tl.program_id(1) * WIDTH, rows < m
    numbers = numbers_of(window_rows, rows, in_range, DROPOUT)
    low = expand_tile(
        ds, ds_stride, lora_a, rank, k, start, key, streams, threshold, numbers, rows, in_range,
        MEMBERS, ROWS, RANK, WIDTH, DROPOUT, DOT,
    )  # fmt: skip
    cols = start + tl.arange(0, WIDTH)
    mask = in_range[:, None] & (cols < k)[None, :]
    at = dx + rows[:, None] * dx_stride + cols[None, :]
    tl.store(at, tl.load(at, mask=mask, other=0.0).to(tl.float32) + low * scale, mask=mask)


def _copy_triton(x: Tensor, out: Tensor, columns: AugColumns, shrink: Shrink) -> None:
    """Write all columns of [X | 1 | S]."""
    m, k = x.shape
    group = GroupLaunch.of(shrink)
    dropout = group.dropout
    partial = x.new_empty(SPLITS, m, columns.rank_columns, dtype=torch.float32)
    launch(
        _copy_shrink_kernel, (triton.cdiv(m, 32), SPLITS, group.members),
        x, group.lora_a, out, partial, dropout.key, dropout.streams, dropout.rows, m, k,
        x.stride(0), out.stride(0), columns.base, group.rank, columns.ranks.stop, columns.total,
        dropout.threshold, group.scale,
        ROWS=32, WIDTH=tile_width(x.dtype), DOT=dot_type(x.dtype), **group.constants, num_warps=4,
    )  # fmt: skip
    sum_splits(partial, out[:, columns.ranks])


def _copy_backward_triton(dx: Tensor, ds: Tensor, shrink: Shrink) -> None:
    """Add the low-rank part to dx, in place."""
    m, k = dx.shape
    group, width = GroupLaunch.of(shrink), tile_width(dx.dtype)
    dropout = group.dropout
    launch(
        _copy_backward_kernel, (triton.cdiv(m, 32), triton.cdiv(k, width)),
        dx, ds, group.lora_a, dropout.key, dropout.streams, dropout.rows, m, k, dx.stride(0),
        ds.stride(0), group.rank, dropout.threshold, group.scale,
        MEMBERS=group.members, ROWS=32, WIDTH=width, DOT=dot_type(dx.dtype), **group.constants,
        num_warps=4,
    )  # fmt: skip


class _CopyShrink(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, lora_a: Tensor, columns: AugColumns, shrink: Shrink, backend: Backend
    ) -> Tensor:
        masks = []
        if backend == "triton":
            x_aug = x.new_empty(x.shape[0], columns.total)
            _copy_triton(x, x_aug, columns, shrink)
        else:
            x_aug = augmented(x, columns, x.dtype)
            copied, s = x_aug[:, : columns.features], x_aug[:, columns.ranks]
            if backend == "native":
                torch.ops.cqa.copy_shrink(x, copied, s, lora_a, *native_arguments(shrink))
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
        if ctx.backend == "triton":
            da = shrink_da_triton(ds, x, shrink)
            _copy_backward_triton(dx, ds, shrink)
        elif ctx.backend == "native":
            da = shrink_da_native(ds, x, shrink)
            torch.ops.cqa.copy_shrink_backward(dx, ds, lora_a, *native_arguments(shrink))
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
        return _with_constant(x, columns)
    backend = choose(backend, x.device, x.dtype)
    out: Tensor = _CopyShrink.apply(x, shrink.lora_a, columns, shrink, backend)  # type: ignore[no-untyped-call]
    return out


def _with_constant(x: Tensor, columns: AugColumns) -> Tensor:
    """Append the constant column where there is a bias: the base part [X | 1]."""
    if not columns.bias:
        return x
    constant = x.new_zeros(x.shape[0], columns.base - columns.features)
    constant[:, 0] = 1
    return torch.cat((x, constant), dim=1)
