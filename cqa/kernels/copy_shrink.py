"""Dropout and LoRA shrink of an input that nothing precedes: the attention output before o."""

from __future__ import annotations

import torch
import triton.language as tl
from torch import Tensor

from cqa.kernels.aug_columns import AugColumns, store_constants
from cqa.kernels.aug_op import AugOp, augment
from cqa.kernels.backend import Backend, choose
from cqa.kernels.launch import any_rows
from cqa.kernels.shrink import (
    Shrink,
    dropout_rows,
    expand_add_triton,
    member_of,
    native_arguments,
    shrink_tile,
)
from cqa.kernels.split_shrink import launch_splits, store_split

SPLITS = 4  # of the columns, so that a few hundred rows fill a GPU


def _copy_ref(x: Tensor) -> Tensor:
    return x


def _copy_backward_ref(dx: Tensor, _x: None) -> Tensor:
    return dx


@any_rows
def _copy_shrink_kernel(  # a program: a block of rows, a share of the columns, one member
    x,  # (M, K)
    out,  # (M, total), X and the constants written
    partial,  # (splits, M, G * R) fp32, written
    m,
    k,
    x_stride,
    out_stride,
    base,
    end_of_ranks,
    total,
    rank_columns,
    lora_a,  # (G * R, K)
    rank,
    dropout_scale,
    key,
    streams,
    batch_rows,
    threshold,
    ROWS: tl.constexpr,
    RANK: tl.constexpr,
    WIDTH: tl.constexpr,
    DROPOUT: tl.constexpr,
    DOT: tl.constexpr,
):
    rows = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    split, part, in_range = tl.program_id(1), tl.program_id(2), rows < m
    member, first_rank = member_of(part, rank, RANK)
    numbers = dropout_rows(batch_rows, rows, in_range, DROPOUT)
    s = tl.zeros((ROWS, RANK), tl.float32)
    for start in range(split * WIDTH, k, tl.num_programs(1) * WIDTH):
        cols = start + tl.arange(0, WIDTH)
        mask = in_range[:, None] & (cols < k)[None, :]
        tile = tl.load(x + rows[:, None] * x_stride + cols[None, :], mask=mask, other=0.0)
        if part == 0:
            tl.store(out + rows[:, None] * out_stride + cols[None, :], tile, mask=mask)
        s = shrink_tile(
            s, tile.to(tl.float32), member, first_rank, start, numbers, k, lora_a, rank, key,
            streams, threshold, RANK, WIDTH, DROPOUT, DOT,
        )  # fmt: skip
    store_split(
        partial, s * dropout_scale, split, member, first_rank, rows, in_range, m, rank,
        rank_columns, RANK,
    )  # fmt: skip
    if (split == 0) & (part == 0):
        store_constants(out, out_stride, rows, in_range, k, base, end_of_ranks, total)


def _copy_triton(x: Tensor, x_aug: Tensor, columns: AugColumns, shrink: Shrink) -> None:
    launch_splits(_copy_shrink_kernel, SPLITS, x, x_aug, columns, shrink)


def _copy_backward_triton(dx: Tensor, _x: None, ds: Tensor, shrink: Shrink) -> Tensor:
    expand_add_triton(dx, ds, shrink)
    return dx


def _copy_native(x: Tensor, out: Tensor, s: Tensor, shrink: Shrink) -> None:
    torch.ops.cqa.copy_shrink(x, out, s, shrink.lora_a, *native_arguments(shrink))


def _copy_backward_native(dx: Tensor, _x: None, ds: Tensor, shrink: Shrink) -> Tensor:
    torch.ops.cqa.copy_shrink_backward(dx, ds, shrink.lora_a, *native_arguments(shrink))
    return dx


_COPY = AugOp(
    reference=_copy_ref,
    reference_backward=_copy_backward_ref,
    native=_copy_native,
    native_backward=_copy_backward_native,
    triton=_copy_triton,
    triton_backward=_copy_backward_triton,
    reads_x=False,
)


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
    return augment(_COPY, x, columns, shrink, dtype=x.dtype, backend=backend)


def _with_constant(x: Tensor, columns: AugColumns) -> Tensor:
    """Append the constant column where there is a bias: the base part [X | 1]."""
    if not columns.bias:
        return x
    constant = x.new_zeros(x.shape[0], columns.base - columns.features)
    constant[:, 0] = 1
    return torch.cat((x, constant), dim=1)
