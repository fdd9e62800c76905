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

from cqa.kernels.aug_columns import AugColumns, store_constants
from cqa.kernels.aug_op import AugOp, augment, augment_beside
from cqa.kernels.backend import Backend, choose, compute_dtype
from cqa.kernels.launch import accumulator, any_rows, launch
from cqa.kernels.precision import wider
from cqa.kernels.shrink import Shrink, expand_triton, native_arguments
from cqa.kernels.split_shrink import shrink_made

_TILE = 4096  # numbers that a program takes at least, of several rows where these are short
WIDEST = 8192  # columns that a program holds in registers


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
def _inverse_root(square):
    """1 / √square, rounded as IEEE has it."""
    return (
        1.0 / tl.sqrt(square) if square.dtype == tl.float64 else tl.div_rn(1.0, tl.sqrt_rn(square))
    )


@triton.jit
def _part(x, stride, rows, in_range, cols, k):
    """Some columns of some rows of a matrix, as they are stored."""
    mask = in_range[:, None] & (cols < k)[None, :]
    return tl.load(x + rows[:, None] * stride + cols[None, :], mask=mask, other=0.0)


@triton.jit
def _store_normed(  # and what is passed on
    tile,  # (ROWS, WIDTH), as loaded
    rstd,  # (ROWS,)
    norm_weight,
    out,
    out_stride,
    passed,
    rows,
    in_range,
    cols,
    k,
    PASSED: tl.constexpr,
    SUM: tl.constexpr,
):
    mask = in_range[:, None] & (cols < k)[None, :]
    weight = tl.load(norm_weight + cols, mask=cols < k, other=0.0).to(SUM)
    normed = tile.to(SUM) * rstd[:, None] * weight[None, :]
    tl.store(out + rows[:, None] * out_stride + cols[None, :], normed, mask=mask)
    if PASSED:
        tl.store(passed + rows[:, None] * k + cols[None, :], tile, mask=mask)


@any_rows
def _norm_kernel(  # a program: some rows, whole in its registers unless they are too wide for that
    x,  # (M, K)
    norm_weight,  # (K,)
    out,  # (M, total); X and the constants written
    passed,  # (M, K), x written; None without
    m,
    k,
    x_stride,
    out_stride,
    eps,
    base,
    end_of_ranks,
    total,
    PASSED: tl.constexpr,
    ROWS: tl.constexpr,
    WIDTH: tl.constexpr,
    WHOLE: tl.constexpr,
    SUM: tl.constexpr,
):
    rows = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    in_range = rows < m
    if WHOLE:
        cols = tl.arange(0, WIDTH)
        tile = _part(x, x_stride, rows, in_range, cols, k)
        wide = tile.to(SUM)
        rstd = _inverse_root(tl.sum(wide * wide, 1) / k + eps)
        _store_normed(
            tile, rstd, norm_weight, out, out_stride, passed, rows, in_range, cols, k, PASSED, SUM
        )
    else:
        square = tl.zeros((ROWS,), SUM)
        for start in range(0, k, WIDTH):
            wide = _part(x, x_stride, rows, in_range, start + tl.arange(0, WIDTH), k).to(SUM)
            square += tl.sum(wide * wide, 1)
        rstd = _inverse_root(square / k + eps)
        for start in range(0, k, WIDTH):
            cols = start + tl.arange(0, WIDTH)
            tile = _part(x, x_stride, rows, in_range, cols, k)
            _store_normed(
                tile, rstd, norm_weight, out, out_stride, passed, rows, in_range, cols, k, PASSED,
                SUM,
            )  # fmt: skip
    store_constants(out, out_stride, rows, in_range, k, base, end_of_ranks, total)


@triton.jit
def _store_dx(  # with the gradient of what was passed on
    g,  # (ROWS, WIDTH), dX · weight
    normed,  # (ROWS, WIDTH)
    rstd,  # (ROWS,)
    mean_gn,  # (ROWS,)
    dx,
    dpassed,
    dpassed_stride,
    rows,
    in_range,
    cols,
    k,
    PASSED: tl.constexpr,
    SUM: tl.constexpr,
):
    mask = in_range[:, None] & (cols < k)[None, :]
    value = rstd[:, None] * (g - normed * mean_gn[:, None])
    if PASSED:
        value += _part(dpassed, dpassed_stride, rows, in_range, cols, k).to(SUM)
    tl.store(dx + rows[:, None] * k + cols[None, :], value, mask=mask)


@any_rows
def _norm_backward_kernel(  # a program: some rows, as in the forward kernel
    dy,  # (M, K)
    x,  # (M, K)
    norm_weight,  # (K,)
    dpassed,  # (M, K), added; None without
    dx,  # (M, K), written
    m,
    k,
    dy_stride,
    x_stride,
    dpassed_stride,
    eps,
    PASSED: tl.constexpr,
    ROWS: tl.constexpr,
    WIDTH: tl.constexpr,
    WHOLE: tl.constexpr,
    SUM: tl.constexpr,
):
    rows = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    in_range = rows < m
    if WHOLE:
        cols = tl.arange(0, WIDTH)
        wide = _part(x, x_stride, rows, in_range, cols, k).to(SUM)
        g = _part(dy, dy_stride, rows, in_range, cols, k).to(SUM)
        g *= tl.load(norm_weight + cols, mask=cols < k, other=0.0).to(SUM)[None, :]
        rstd = _inverse_root(tl.sum(wide * wide, 1) / k + eps)
        normed = wide * rstd[:, None]
        mean_gn = tl.sum(g * wide, 1) * rstd / k
        _store_dx(
            g, normed, rstd, mean_gn, dx, dpassed, dpassed_stride, rows, in_range, cols, k, PASSED,
            SUM,
        )  # fmt: skip
    else:
        square, g_x = tl.zeros((ROWS,), SUM), tl.zeros((ROWS,), SUM)
        for start in range(0, k, WIDTH):
            cols = start + tl.arange(0, WIDTH)
            wide = _part(x, x_stride, rows, in_range, cols, k).to(SUM)
            g = _part(dy, dy_stride, rows, in_range, cols, k).to(SUM)
            g *= tl.load(norm_weight + cols, mask=cols < k, other=0.0).to(SUM)[None, :]
            square += tl.sum(wide * wide, 1)
            g_x += tl.sum(g * wide, 1)
        rstd = _inverse_root(square / k + eps)
        mean_gn = g_x * rstd / k
        for start in range(0, k, WIDTH):
            cols = start + tl.arange(0, WIDTH)
            wide = _part(x, x_stride, rows, in_range, cols, k).to(SUM)
            g = _part(dy, dy_stride, rows, in_range, cols, k).to(SUM)
            g *= tl.load(norm_weight + cols, mask=cols < k, other=0.0).to(SUM)[None, :]
            _store_dx(
                g, wide * rstd[:, None], rstd, mean_gn, dx, dpassed, dpassed_stride, rows, in_range,
                cols, k, PASSED, SUM,
            )  # fmt: skip


def _rows_of(k: int, elements_a_thread: int) -> dict[str, Any]:
    """Return how many rows of K numbers a program takes, how wide a tile is, and its warps."""
    whole = int(triton.next_power_of_2(k))
    width = min(whole, WIDEST)
    rows = max(1, _TILE // width)
    warps = max(1, min(16, rows * width // (32 * elements_a_thread)))
    return {"ROWS": rows, "WIDTH": width, "WHOLE": whole == width, "num_warps": warps}


def _norm_triton(
    x: Tensor,
    x_aug: Tensor,
    columns: AugColumns,
    shrink: Shrink | None,
    weight: Tensor,
    eps: float,
    *,
    passed: Tensor | None = None,
) -> None:
    """Normalise by rows; S is then made of what lies there, rounded, as the base sees it."""
    m, k = x.shape
    rows = _rows_of(k, 32)
    launch(
        _norm_kernel,
        (triton.cdiv(m, rows["ROWS"]),),
        x=x,
        norm_weight=weight,
        out=x_aug,
        passed=passed,
        m=m,
        k=k,
        x_stride=x.stride(0),
        out_stride=x_aug.stride(0),
        eps=eps,
        **columns.bounds,
        PASSED=passed is not None,
        SUM=accumulator(x.dtype),
        **rows,
    )
    if shrink is not None:
        shrink_made(x_aug, columns, shrink)


def _norm_backward_triton(
    dy: Tensor,
    x: Tensor,
    ds: Tensor | None,
    shrink: Shrink | None,
    weight: Tensor,
    eps: float,
    *,
    dpassed: Tensor | None = None,
) -> Tensor:
    if ds is not None and shrink is not None:
        expand_triton(dy, ds, shrink)
    if dpassed is not None and dpassed.stride(1) != 1:
        dpassed = dpassed.contiguous()
    dx = torch.empty_like(x, memory_format=torch.contiguous_format)
    m, k = x.shape
    rows = _rows_of(k, 16)  # three or four matrices are in registers
    launch(
        _norm_backward_kernel,
        (triton.cdiv(m, rows["ROWS"]),),
        dy=dy,
        x=x,
        norm_weight=weight,
        dpassed=dpassed,
        dx=dx,
        m=m,
        k=k,
        dy_stride=dy.stride(0),
        x_stride=x.stride(0),
        dpassed_stride=0 if dpassed is None else dpassed.stride(0),
        eps=eps,
        PASSED=dpassed is not None,
        SUM=accumulator(x.dtype),
        **rows,
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


def norm_shrink_beside(
    x: Tensor,  # (M, K)
    weight: Tensor,  # (K,)
    eps: float,
    columns: AugColumns,
    shrink: Shrink | None,
    *,
    dtype: torch.dtype | None = None,
    backend: Backend | None = None,
) -> tuple[Tensor, Tensor]:  # (M, columns.total), (M, K)
    """As `norm_shrink`, and x once more, for the residual path beside the norm.

    The gradients of both uses of x are then added where that of the norm is made.

    Returns:
        [X | 1 | S] as `norm_shrink` does; and x, by the Triton backend a copy that nothing else
        holds, so that a product may be added to it in place (`aug_linear`).
    """
    backend = choose(backend, weight.device, dtype or weight.dtype)
    dtype = compute_dtype(backend, dtype or weight.dtype)
    return augment_beside(_NORM, x, columns, shrink, weight, eps, dtype=dtype, backend=backend)


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
