"""Root-mean-square norm, alone and fused with dropout and the LoRA shrink of what follows.

    rms_norm(x) = x · rsqrt(mean(x²) + eps) · weight

Source: arXiv:1910.07467, eq. 4.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from cqa.kernels.aug_columns import AugColumns, store_constants
from cqa.kernels.aug_op import AugOp, augment
from cqa.kernels.backend import Backend, choose, compute_dtype
from cqa.kernels.launch import TILE_ROWS, accumulator, any_rows, dot_type, launch, tile_width
from cqa.kernels.precision import wider
from cqa.kernels.shrink import (
    GroupLaunch,
    Shrink,
    dropout_rows,
    expand_add_triton,
    member_of,
    native_arguments,
    shrink_tile,
)

_BACKWARD_ROWS = 4  # few: its programs are many, and a row's sums are short


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


@triton.jit
def _rstd(
    x,  # (M, K)
    stride,
    rows,  # (ROWS,) int64
    in_range,  # (ROWS,)
    k,
    eps,
    ROWS: tl.constexpr,
    WIDTH: tl.constexpr,
    SUM: tl.constexpr,
):
    """1 / √(mean(x²) + eps) of some rows, (ROWS,) in the type of the sum."""
    total = tl.zeros((ROWS,), SUM)
    for start in range(0, k, WIDTH):
        cols = start + tl.arange(0, WIDTH)
        mask = in_range[:, None] & (cols < k)[None, :]
        tile = tl.load(x + rows[:, None] * stride + cols[None, :], mask=mask, other=0.0).to(SUM)
        total += tl.sum(tile * tile, 1)
    square = total / k + eps
    return (
        1.0 / tl.sqrt(square) if square.dtype == tl.float64 else tl.div_rn(1.0, tl.sqrt_rn(square))
    )


@any_rows
def _norm_shrink_kernel(  # a program: a block of rows and one member; the first also writes X
    x,  # (M, K)
    norm_weight,  # (K,)
    out,  # (M, total), written
    m,
    k,
    x_stride,
    out_stride,
    eps,
    base,
    end_of_ranks,
    total,
    lora_a,  # (G * R, K)
    rank,
    dropout_scale,
    key,
    streams,
    batch_rows,
    threshold,
    LORA: tl.constexpr,
    ROWS: tl.constexpr,
    RANK: tl.constexpr,
    WIDTH: tl.constexpr,
    DROPOUT: tl.constexpr,
    SUM: tl.constexpr,
    DOT: tl.constexpr,
):
    rows = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    part, in_range = tl.program_id(1), rows < m
    member, first_rank = member_of(part, rank, RANK)
    rstd = _rstd(x, x_stride, rows, in_range, k, eps, ROWS, WIDTH, SUM)
    numbers = dropout_rows(batch_rows, rows, in_range, DROPOUT)
    s = tl.zeros((ROWS, RANK), tl.float32)
    for start in range(0, k, WIDTH):
        cols = start + tl.arange(0, WIDTH)
        mask = in_range[:, None] & (cols < k)[None, :]
        tile = tl.load(x + rows[:, None] * x_stride + cols[None, :], mask=mask, other=0.0).to(SUM)
        weight = tl.load(norm_weight + cols, mask=cols < k, other=0.0).to(SUM)
        # rounded once, as S must see what the base sees
        normed = (tile * rstd[:, None] * weight[None, :]).to(out.dtype.element_ty)
        if part == 0:
            tl.store(out + rows[:, None] * out_stride + cols[None, :], normed, mask=mask)
        if LORA:
            s = shrink_tile(
                s, normed.to(tl.float32), member, first_rank, start, numbers, k, lora_a, rank, key,
                streams, threshold, RANK, WIDTH, DROPOUT, DOT,
            )  # fmt: skip
    if LORA:
        ranks = first_rank + tl.arange(0, RANK)
        at = out + rows[:, None] * out_stride + (base + member * rank + ranks)[None, :]
        tl.store(at, s * dropout_scale, mask=in_range[:, None] & (ranks < rank)[None, :])
    if part == 0:
        store_constants(out, out_stride, rows, in_range, k, base, end_of_ranks, total)


@any_rows
def _norm_backward_kernel(  # a program: a block of rows, read twice
    dy,  # (M, K)
    x,  # (M, K)
    norm_weight,  # (K,)
    dx,  # (M, K), written
    m,
    k,
    dy_stride,
    x_stride,
    eps,
    ROWS: tl.constexpr,
    WIDTH: tl.constexpr,
    SUM: tl.constexpr,
):
    rows = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    in_range = rows < m
    rstd = _rstd(x, x_stride, rows, in_range, k, eps, ROWS, WIDTH, SUM)
    mean_gx = tl.zeros((ROWS,), SUM)  # of g · x · rstd, with g = dy · weight
    for start in range(0, k, WIDTH):
        cols = start + tl.arange(0, WIDTH)
        mask = in_range[:, None] & (cols < k)[None, :]
        d = tl.load(dy + rows[:, None] * dy_stride + cols[None, :], mask=mask, other=0.0).to(SUM)
        tile = tl.load(x + rows[:, None] * x_stride + cols[None, :], mask=mask, other=0.0).to(SUM)
        weight = tl.load(norm_weight + cols, mask=cols < k, other=0.0).to(SUM)
        mean_gx += tl.sum(d * weight[None, :] * tile * rstd[:, None], 1)
    mean_gx = mean_gx / k
    for start in range(0, k, WIDTH):
        cols = start + tl.arange(0, WIDTH)
        mask = in_range[:, None] & (cols < k)[None, :]
        d = tl.load(dy + rows[:, None] * dy_stride + cols[None, :], mask=mask, other=0.0).to(SUM)
        tile = tl.load(x + rows[:, None] * x_stride + cols[None, :], mask=mask, other=0.0).to(SUM)
        weight = tl.load(norm_weight + cols, mask=cols < k, other=0.0).to(SUM)
        normed = tile * rstd[:, None]
        value = rstd[:, None] * (d * weight[None, :] - normed * mean_gx[:, None])
        tl.store(dx + rows[:, None] * k + cols[None, :], value, mask=mask)


def _norm_triton(
    x: Tensor, x_aug: Tensor, columns: AugColumns, shrink: Shrink | None, weight: Tensor, eps: float
) -> None:
    m, k = x.shape
    group = GroupLaunch.of(shrink)
    launch(
        _norm_shrink_kernel,
        (triton.cdiv(m, TILE_ROWS), group.parts),
        x=x,
        norm_weight=weight,
        out=x_aug,
        m=m,
        k=k,
        x_stride=x.stride(0),
        out_stride=x_aug.stride(0),
        eps=eps,
        **columns.bounds,
        LORA=group.members > 0,
        ROWS=TILE_ROWS,
        WIDTH=tile_width(x_aug.dtype),
        SUM=accumulator(x.dtype),
        DOT=dot_type(x_aug.dtype),
        **group.arguments,
        num_warps=4,
        num_stages=2,  # a third spills at 16 ranks on sm_90
    )


def _norm_backward_triton(
    dy: Tensor, x: Tensor, ds: Tensor | None, shrink: Shrink | None, weight: Tensor, eps: float
) -> Tensor:
    if ds is not None and shrink is not None:
        expand_add_triton(dy, ds, shrink)
    dx = torch.empty_like(x, memory_format=torch.contiguous_format)
    m, k = x.shape
    launch(
        _norm_backward_kernel,
        (triton.cdiv(m, _BACKWARD_ROWS),),
        dy=dy,
        x=x,
        norm_weight=weight,
        dx=dx,
        m=m,
        k=k,
        dy_stride=dy.stride(0),
        x_stride=x.stride(0),
        eps=eps,
        ROWS=_BACKWARD_ROWS,
        WIDTH=tile_width(dy.dtype),
        SUM=accumulator(x.dtype),
        num_warps=4,
    )
    return dx


def _norm_native(
    x: Tensor, out: Tensor, s: Tensor | None, shrink: Shrink | None, weight: Tensor, eps: float
) -> None:
    lora_a = shrink.lora_a if shrink else None
    torch.ops.cqa.norm_shrink(x, weight, eps, out, s, lora_a, *native_arguments(shrink))


def _norm_backward_native(
    dy: Tensor, x: Tensor, ds: Tensor | None, shrink: Shrink | None, weight: Tensor, eps: float
) -> Tensor:
    dx = torch.empty_like(x)
    lora_a = shrink.lora_a if shrink else None
    torch.ops.cqa.norm_shrink_backward(
        dy, ds, lora_a, x, weight, eps, dx, *native_arguments(shrink)
    )
    return dx


_NORM = AugOp(
    reference=rms_norm_ref,
    reference_backward=_rms_norm_backward_ref,
    native=_norm_native,
    native_backward=_norm_backward_native,
    triton=_norm_triton,
    triton_backward=_norm_backward_triton,
    reads_x=True,
)


def norm_shrink(
    x: Tensor,  # (M, K)
    weight: Tensor,  # (K,)
    eps: float,
    columns: AugColumns,
    shrink: Shrink | None,
    *,
    dtype: torch.dtype | None = None,
    backend: Backend | None = None,
) -> Tensor:  # (M, columns.total)
    """Normalise, and append the constant and low-rank columns of the projections that follow.

    Args:
        x: Hidden states, shape (M, K), of the weight's dtype or wider.
        weight: Scale of the norm, shape (K,); frozen. Its dtype is the result's, but for the native
            op, whose result is fp32.
        eps: Added to the mean square.
        columns: Layout of the result.
        shrink: LoRA's A and dropout; None gives the base part [X | 1] alone.
        dtype: That of the result, where the weight is kept in a wider one.
        backend: See cqa.kernels.backend.

    Returns:
        [X | 1 | S], shape (M, columns.total), or (M, columns.base) without `shrink`.
    """
    backend = choose(backend, weight.device, dtype or weight.dtype)
    dtype = compute_dtype(backend, dtype or weight.dtype)
    return augment(_NORM, x, columns, shrink, weight, eps, dtype=dtype, backend=backend)


def rms_norm(
    x: Tensor,  # (..., K)
    weight: Tensor,  # (K,)
    eps: float,
    *,
    dtype: torch.dtype | None = None,
    backend: Backend | None = None,
) -> Tensor:  # (..., K)
    """Normalise the last dimension; arguments as for `norm_shrink`."""
    columns = AugColumns(weight.shape[0], False, 0, 1)
    rows = x.reshape(-1, x.shape[-1])
    out = norm_shrink(rows, weight, eps, columns, None, dtype=dtype, backend=backend)
    return out.view(x.shape)
