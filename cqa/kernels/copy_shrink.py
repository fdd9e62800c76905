"""Dropout and LoRA shrink of an input that nothing precedes: the attention output before o."""

from __future__ import annotations

import torch
from torch import Tensor

from cqa.kernels.aug_columns import AugColumns
from cqa.kernels.aug_op import AugOp, augment
from cqa.kernels.backend import Backend, choose
from cqa.kernels.shrink import Shrink, expand_triton, native_arguments
from cqa.kernels.split_shrink import shrink_copied


def _copy_ref(x: Tensor) -> Tensor:
    return x


def _copy_backward_ref(dx: Tensor, _x: None) -> Tensor:
    return dx


def _copy_triton(x: Tensor, x_aug: Tensor, columns: AugColumns, shrink: Shrink) -> None:
    shrink_copied(x, x_aug, columns, shrink)


def _copy_backward_triton(dx: Tensor, _x: None, ds: Tensor, shrink: Shrink) -> Tensor:
    out = dx.new_empty(dx.shape)  # without gaps between rows, which attention's backward copies
    expand_triton(dx, ds, shrink, out)
    return out


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
