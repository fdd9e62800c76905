"""Rotary position embedding of queries and keys, in the half-split layout of Hugging Face.

    (x1, x2) → (x1 · cos - x2 · sin,  x2 · cos + x1 · sin)        x1, x2 the halves of a head

Backward is the rotation by the opposite angle.
Source: RoFormer, arXiv:2104.09864, eq. 34.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from cqa.kernels.backend import Backend, choose
from cqa.kernels.launch import launch
from cqa.kernels.precision import wider


def rope_ref(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """The definition: x (M, H, D); cos, sin (M, D / 2) fp32."""
    wide = x.to(wider(x.dtype))
    x1, x2 = wide.chunk(2, dim=-1)
    cos, sin = cos[:, None].to(wide.dtype), sin[:, None].to(wide.dtype)
    return torch.cat((x1 * cos - x2 * sin, x2 * cos + x1 * sin), dim=-1).to(x.dtype)


@triton.jit
def _rope_rows(  # a program: some heads of one row
    x,  # (M, H, D)
    cos,  # (M, D / 2)
    sin,  # (M, D / 2)
    out,  # (M, H, D) contiguous, written
    row_stride,
    head_stride,
    n_heads,
    half,
    sign,
    HEADS: tl.constexpr,
    HALF: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    head = tl.program_id(1) * HEADS + tl.arange(0, HEADS)[:, None]
    column = tl.arange(0, HALF)[None, :]
    inside = (head < n_heads) & (column < half)
    c = tl.load(cos + row * half + column, mask=column < half, other=0)
    s = tl.load(sin + row * half + column, mask=column < half, other=0) * sign
    place = row * row_stride + head.to(tl.int64) * head_stride + column
    x1 = tl.load(x + place, mask=inside, other=0).to(tl.float32)
    x2 = tl.load(x + place + half, mask=inside, other=0).to(tl.float32)
    place = (row * n_heads + head) * (2 * half) + column
    tl.store(out + place, (x1 * c - x2 * s).to(out.dtype.element_ty), mask=inside)
    tl.store(out + place + half, (x2 * c + x1 * s).to(out.dtype.element_ty), mask=inside)


def _rope_triton(x: Tensor, cos: Tensor, sin: Tensor, sign: float) -> Tensor:
    x = x if x.stride(2) == 1 else x.contiguous()
    n_rows, n_heads, head_dim = x.shape
    out = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    half = triton.next_power_of_2(head_dim // 2)
    heads = min(triton.next_power_of_2(n_heads), max(1, 2048 // half))
    launch(
        _rope_rows,
        (n_rows, triton.cdiv(n_heads, heads)),
        x=x,
        cos=cos.contiguous(),
        sin=sin.contiguous(),
        out=out,
        row_stride=x.stride(0),
        head_stride=x.stride(1),
        n_heads=n_heads,
        half=head_dim // 2,
        sign=sign,
        HEADS=heads,
        HALF=half,
        num_warps=4,
    )
    return out


def _rope_native(x: Tensor, cos: Tensor, sin: Tensor, sign: float) -> Tensor:
    out = x.new_empty(x.shape)
    torch.ops.cqa.rope(x if x[:1].is_contiguous() else x.contiguous(), cos, sin, out, sign)
    return out


def _rotated(x: Tensor, cos: Tensor, sin: Tensor, sign: float, backend: Backend) -> Tensor:
    """Rotate by the angles times `sign`, 1 or -1."""
    if backend == "triton":
        return _rope_triton(x, cos, sin, sign)
    if backend == "native":
        return _rope_native(x, cos, sin, sign)
    return rope_ref(x, cos, sin * sign)


class _Rope(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, cos: Tensor, sin: Tensor, backend: Backend) -> Tensor:
        ctx.save_for_backward(cos, sin)
        ctx.backend = backend
        return _rotated(x, cos, sin, 1.0, backend)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        cos, sin = ctx.saved_tensors
        return _rotated(dy, cos, sin, -1.0, ctx.backend), None, None, None


def rope(
    x: Tensor,  # (M, H, D)
    cos: Tensor,  # (M, D / 2) fp32
    sin: Tensor,  # (M, D / 2) fp32
    *,
    backend: Backend | None = None,
) -> Tensor:  # (M, H, D)
    """Rotate every head of every row by the angles of its position.

    Args:
        x: Queries or keys, shape (M, H, D); may be a slice of the heads of a fused projection.
        cos: Cosines of each row's angles, shape (M, D / 2), fp32.
        sin: Sines, likewise.
        backend: See cqa.kernels.backend.

    Returns:
        Shape (M, H, D), contiguous.
    """
    backend = choose(backend, x.device, x.dtype)
    out: Tensor = _Rope.apply(x, cos, sin, backend)  # type: ignore[no-untyped-call]
    return out
