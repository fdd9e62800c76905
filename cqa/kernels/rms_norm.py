"""Root-mean-square norm, alone and fused with dropout and the LoRA shrink of what follows.

    rms_norm(x) = x · rsqrt(mean(x²) + eps) · weight

Source: arXiv:1910.07467, eq. 4.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from cqa.kernels.backend import Backend, choose
from cqa.kernels.launch import accumulator, any_rows, dot_type, launch, tile_width
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
)


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
    x, stride, rows, in_range, k, eps, ROWS: tl.constexpr, WIDTH: tl.constexpr, SUM: tl.constexpr
):
    """1 / √(mean(x²) + eps) of some rows, (M,) in the type of the sum."""
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
def _norm_shrink_kernel(  # a program: a block of rows and one member; member 0 also writes X
    x, weight, lora_a, out, key, streams, window_rows, m, k, x_stride, out_stride, base, rank,
    end_of_ranks, total, threshold, scale, eps, ROWS: tl.constexpr, RANK: tl.constexpr,
    WIDTH: tl.constexpr, LORA: tl.constexpr, DROPOUT: tl.constexpr, SUM: tl.constexpr,
    DOT: tl.constexpr,
):  # fmt: skip
    rows = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    member, in_range = tl.program_id(1), rows < m
    rstd = _rstd(x, x_stride, rows, in_range, k, eps, ROWS, WIDTH, SUM)
    numbers = numbers_of(window_rows, rows, in_range, DROPOUT)
    s = tl.zeros((ROWS, RANK), tl.float32)
    for start in range(0, k, WIDTH):
        cols = start + tl.arange(0, WIDTH)
        mask = in_range[:, None] & (cols < k)[None, :]
        tile = tl.load(x + rows[:, None] * x_stride + cols[None, :], mask=mask, other=0.0).to(SUM)
        scales = tl.load(weight + cols, mask=cols < k, other=0.0).to(SUM)
        # rounded once, as S must see what the base sees
        normed = (tile * rstd[:, None] * scales[None, :]).to(out.dtype.element_ty)
        if member == 0:
            tl.store(out + rows[:, None] * out_stride + cols[None, :], normed, mask=mask)
        if LORA:
            s = shrink_tile(
                s, normed.to(tl.float32), lora_a, member, rank, k, start, key, streams, threshold,
                numbers, RANK, WIDTH, DROPOUT, DOT,
            )  # fmt: skip
    if LORA:
        ranks = tl.arange(0, RANK)
        at = out + rows[:, None] * out_stride + (base + member * rank + ranks)[None, :]
        tl.store(at, s * scale, mask=in_range[:, None] & (ranks < rank)[None, :])
    if member == 0:
        store_constants(out, out_stride, rows, in_range, k, base, end_of_ranks, total)


@any_rows
def _norm_backward_kernel(  # a program: a block of rows, read twice
    dy, ds, lora_a, x, weight, dx, key, streams, window_rows, m, k, dy_stride, ds_stride, x_stride,
    rank, threshold, scale, eps, MEMBERS: tl.constexpr, ROWS: tl.constexpr, RANK: tl.constexpr,
    WIDTH: tl.constexpr, DROPOUT: tl.constexpr, SUM: tl.constexpr, DOT: tl.constexpr,
):  # fmt: skip
    rows = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    in_range = rows < m
    rstd = _rstd(x, x_stride, rows, in_range, k, eps, ROWS, WIDTH, SUM)
    numbers = numbers_of(window_rows, rows, in_range, DROPOUT)
    along = tl.zeros((ROWS,), SUM)
    for start in range(0, k, WIDTH):
        cols = start + tl.arange(0, WIDTH)
        mask = in_range[:, None] & (cols < k)[None, :]
        dy_at = dy + rows[:, None] * dy_stride + cols[None, :]
        g = tl.load(dy_at, mask=mask, other=0.0).to(tl.float32)
        if MEMBERS > 0:
            low = expand_tile(
                ds, ds_stride, lora_a, rank, k, start, key, streams, threshold, numbers, rows,
                in_range, MEMBERS, ROWS, RANK, WIDTH, DROPOUT, DOT,
            )  # fmt: skip
            g += low * scale
            tl.store(dy_at, g, mask=mask)  # for the second reading
        tile = tl.load(x + rows[:, None] * x_stride + cols[None, :], mask=mask, other=0.0).to(SUM)
        scales = tl.load(weight + cols, mask=cols < k, other=0.0).to(SUM)
        along += tl.sum(g.to(SUM) * scales[None, :] * tile * rstd[:, None], 1)
    along = along / k
    tl.debug_barrier()
    for start in range(0, k, WIDTH):
        cols = start + tl.arange(0, WIDTH)
        mask = in_range[:, None] & (cols < k)[None, :]
        g = tl.load(dy + rows[:, None] * dy_stride + cols[None, :], mask=mask, other=0.0).to(SUM)
        tile = tl.load(x + rows[:, None] * x_stride + cols[None, :], mask=mask, other=0.0).to(SUM)
        scales = tl.load(weight + cols, mask=cols < k, other=0.0).to(SUM)
        normed = tile * rstd[:, None]
        value = rstd[:, None] * (g * scales[None, :] - normed * along[:, None])
        tl.store(dx + rows[:, None] * k + cols[None, :], value, mask=mask)


def _norm_triton(
    x: Tensor, weight: Tensor, eps: float, out: Tensor, columns: AugColumns, shrink: Shrink | None
) -> None:
    """Write all columns of `out`, [X | 1 | S], or those of [X | 1] without an adapter."""
    m, k = x.shape
    group = GroupLaunch.of(shrink)
    dropout = group.dropout
    end = columns.ranks.stop if shrink else columns.base
    launch(
        _norm_shrink_kernel, (triton.cdiv(m, 32), max(1, group.members)), x, weight, group.lora_a,
        out, dropout.key, dropout.streams, dropout.rows, m, k, x.stride(0), out.stride(0),
        columns.base, group.rank, end, out.shape[1], dropout.threshold, group.scale, eps,
        ROWS=32, WIDTH=tile_width(weight.dtype), LORA=group.members > 0, SUM=accumulator(x.dtype),
        DOT=dot_type(weight.dtype), **group.constants, num_warps=4,
    )  # fmt: skip


def _norm_backward_triton(
    dy: Tensor, x: Tensor, weight: Tensor, eps: float, ds: Tensor | None, shrink: Shrink | None
) -> Tensor:
    """Add the low-rank part to dy, in place; return dx."""
    dx = torch.empty_like(x, memory_format=torch.contiguous_format)
    m, k = x.shape
    group = GroupLaunch.of(shrink)
    dropout = group.dropout
    launch(
        _norm_backward_kernel, (triton.cdiv(m, 16),), dy, ds, group.lora_a, x, weight, dx,
        dropout.key, dropout.streams, dropout.rows, m, k, dy.stride(0),
        ds.stride(0) if ds is not None else 0, x.stride(0), group.rank, dropout.threshold,
        group.scale, eps, MEMBERS=group.members, ROWS=16, WIDTH=tile_width(weight.dtype),
        SUM=accumulator(x.dtype), DOT=dot_type(weight.dtype), **group.constants, num_warps=4,
    )  # fmt: skip
    return dx


def _norm_native(
    x: Tensor, weight: Tensor, eps: float, out: Tensor, s: Tensor | None, shrink: Shrink | None
) -> None:
    """Write the norm to `out`, and S to `s` where there is an adapter."""
    lora_a = None if shrink is None else shrink.lora_a
    torch.ops.cqa.norm_shrink(x, weight, eps, out, s, lora_a, *native_arguments(shrink))


def _norm_backward_native(
    dy: Tensor, x: Tensor, weight: Tensor, eps: float, ds: Tensor | None, shrink: Shrink | None
) -> Tensor:
    """Add the low-rank part to dy, in place; return dx."""
    dx = torch.empty_like(x)
    lora_a = None if shrink is None else shrink.lora_a
    torch.ops.cqa.norm_shrink_backward(
        dy, ds, lora_a, x, weight, eps, dx, *native_arguments(shrink)
    )
    return dx


FUSED = {
    "native": (shrink_da_native, _norm_backward_native),
    "triton": (shrink_da_triton, _norm_backward_triton),
}


class _NormShrink(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        lora_a: Tensor,
        eps: float,
        columns: AugColumns,
        shrink: Shrink,
        backend: Backend,
    ) -> Tensor:
        masks = []
        if backend == "triton":
            x_aug = x.new_empty(x.shape[0], columns.total, dtype=weight.dtype)
            _norm_triton(x, weight, eps, x_aug, columns, shrink)
        else:
            x_aug = augmented(x, columns, weight.dtype)
            normed, s = x_aug[:, : columns.features], x_aug[:, columns.ranks]
            if backend == "native":
                _norm_native(x, weight, eps, normed, s, shrink)
            else:
                normed.copy_(rms_norm_ref(x, weight, eps))
                masks = shrink_forward_ref(normed, lora_a, shrink.modules, shrink.dropout, s)
        ctx.save_for_backward(x, weight, lora_a, x_aug, *masks)
        ctx.eps, ctx.columns, ctx.shrink, ctx.backend = eps, columns, shrink, backend
        return x_aug

    @staticmethod
    def backward(ctx: Any, dx_aug: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, lora_a, x_aug, *masks = ctx.saved_tensors
        columns, shrink = ctx.columns, ctx.shrink
        normed, ds = x_aug[:, : columns.features], dx_aug[:, columns.ranks]
        dnormed = dx_aug[:, : columns.features] if ctx.needs_input_grad[0] else None
        dx = None
        if ctx.backend in FUSED:
            shrink_da, norm_backward = FUSED[ctx.backend]
            da = shrink_da(ds, normed, shrink)
            if dnormed is not None:
                dx = norm_backward(dnormed, x, weight, ctx.eps, ds, shrink)
        else:
            da = shrink_backward_ref(normed, ds, lora_a, masks, shrink.scale, dnormed)
            if dnormed is not None:
                dx = _rms_norm_backward_ref(dnormed, x, weight, ctx.eps)
        return dx, None, da, None, None, None, None


def norm_shrink(
    x: Tensor,  # (M, K)
    weight: Tensor,  # (K,)
    eps: float,
    columns: AugColumns,
    shrink: Shrink | None,
    *,
    backend: Backend | None = None,
) -> Tensor:  # (M, columns.total)
    """Normalise, and append the constant and low-rank columns of the projections that follow.

    Args:
        x: Hidden states, shape (M, K), of the weight's dtype or wider.
        weight: Scale of the norm, shape (K,); frozen. Its dtype is the result's.
        eps: Added to the mean square.
        columns: Layout of the result.
        shrink: LoRA's A and dropout; None gives the base part [X | 1] alone.
        backend: See cqa.kernels.backend.

    Returns:
        [X | 1 | S], shape (M, columns.total), or (M, columns.base) without `shrink`.
    """
    backend = choose(backend, weight.device, weight.dtype)
    if shrink is None:
        return _base(x, weight, eps, columns.alone, backend)
    out: Tensor = _NormShrink.apply(x, weight, shrink.lora_a, eps, columns, shrink, backend)  # type: ignore[no-untyped-call]
    return out


class _RmsNorm(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, eps: float, columns: AugColumns, backend: Backend
    ) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.eps, ctx.features, ctx.backend = eps, columns.features, backend
        if backend == "triton":
            out = x.new_empty(x.shape[0], columns.total, dtype=weight.dtype)
            _norm_triton(x, weight, eps, out, columns, None)
            return out
        out = augmented(x, columns, weight.dtype)
        normed = out[:, : columns.features]
        if backend == "native":
            _norm_native(x, weight, eps, normed, None, None)
        else:
            normed.copy_(rms_norm_ref(x, weight, eps))
        return out

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        dy = dy[:, : ctx.features]
        if ctx.backend == "reference":
            dx = _rms_norm_backward_ref(dy, x, weight, ctx.eps)
        else:
            dx = FUSED[ctx.backend][1](dy.contiguous(), x, weight, ctx.eps, None, None)
        return dx, None, None, None, None


def _base(x: Tensor, weight: Tensor, eps: float, columns: AugColumns, backend: Backend) -> Tensor:
    out: Tensor = _RmsNorm.apply(x, weight, eps, columns, backend)  # type: ignore[no-untyped-call]
    return out


def rms_norm(
    x: Tensor,  # (..., K)
    weight: Tensor,  # (K,)
    eps: float,
    *,
    backend: Backend | None = None,
) -> Tensor:  # (..., K)
    """Normalise the last dimension; arguments as for `norm_shrink`."""
    backend = choose(backend, weight.device, weight.dtype)
    columns = AugColumns(weight.shape[0], False, 0, 1)
    return _base(x.reshape(-1, x.shape[-1]), weight, eps, columns, backend).view(x.shape)
