"""Rotary position embedding of queries and keys, in the half-split layout of Hugging Face.

    (x1, x2) → (x1 · cos - x2 · sin,  x2 · cos + x1 · sin)        x1, x2 the halves of a head

Backward is the rotation by the opposite angle. Queries and keys of one projection are rotated where
they lie by the Triton backend, and backward writes the projection's gradient in one piece.
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
def _rotated_pair(x1, x2, cos, sin, row, column, half, sign):
    """Both halves of some heads of a row, rotated, fp32."""
    c = tl.load(cos + row * half + column, mask=column < half, other=0)
    s = tl.load(sin + row * half + column, mask=column < half, other=0) * sign
    x1, x2 = x1.to(tl.float32), x2.to(tl.float32)
    return x1 * c - x2 * s, x2 * c + x1 * s


@triton.jit
def _rope_rows(  # a program: some heads of one row
    x,  # (M, H, D)
    cos,  # (M, D / 2)
    sin,  # (M, D / 2)
    out,  # (M, H, D), written; may be x
    row_stride,
    head_stride,
    out_row_stride,
    out_head_stride,
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
    at = x + row * row_stride + head.to(tl.int64) * head_stride + column
    x1 = tl.load(at, mask=inside, other=0)
    x2 = tl.load(at + half, mask=inside, other=0)
    x1, x2 = _rotated_pair(x1, x2, cos, sin, row, column, half, sign)
    at = out + row * out_row_stride + head.to(tl.int64) * out_head_stride + column
    tl.store(at, x1, mask=inside)
    tl.store(at + half, x2, mask=inside)


@triton.jit
def _heads_of(x, row, head, column, row_stride, head_stride, n_heads, half):
    """Both halves of those of some heads that are within a tensor, else 0."""
    inside = (head >= 0) & (head < n_heads) & (column < half)
    at = x + row * row_stride + head.to(tl.int64) * head_stride + column
    return tl.load(at, mask=inside, other=0), tl.load(at + half, mask=inside, other=0)


@triton.jit
def _rope_back(  # a program: some heads of one row of the projection's gradient
    dq,  # (M, H, D)
    dk,  # (M, H_kv, D)
    dv,  # (M, H_kv, D)
    cos,  # (M, D / 2)
    sin,  # (M, D / 2)
    out,  # (M, (H + 2 H_kv) D) contiguous, written
    q_row,
    q_head,
    k_row,
    k_head,
    v_row,
    v_head,
    n_heads,
    n_kv_heads,
    half,
    HEADS: tl.constexpr,
    HALF: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    head = tl.program_id(1) * HEADS + tl.arange(0, HEADS)[:, None]
    column = tl.arange(0, HALF)[None, :]
    values = n_heads + n_kv_heads  # the first of them
    q1, q2 = _heads_of(dq, row, head, column, q_row, q_head, n_heads, half)
    k1, k2 = _heads_of(dk, row, head - n_heads, column, k_row, k_head, n_kv_heads, half)
    v1, v2 = _heads_of(dv, row, head - values, column, v_row, v_head, n_kv_heads, half)
    x1, x2 = tl.where(head < n_heads, q1, k1), tl.where(head < n_heads, q2, k2)
    x1, x2 = _rotated_pair(x1, x2, cos, sin, row, column, half, -1.0)
    inside = (head < values + n_kv_heads) & (column < half)
    at = out + (row * (values + n_kv_heads) + head) * (2 * half) + column
    tl.store(at, tl.where(head < values, x1, v1.to(tl.float32)), mask=inside)
    tl.store(at + half, tl.where(head < values, x2, v2.to(tl.float32)), mask=inside)


def _tile(n_rows: int, n_heads: int, head_dim: int) -> tuple[tuple[int, int], dict[str, int]]:
    """Return the grid of a kernel of rows and heads, and its tile."""
    half = int(triton.next_power_of_2(head_dim // 2))
    heads = int(min(triton.next_power_of_2(n_heads), max(1, 2048 // half)))
    return (n_rows, int(triton.cdiv(n_heads, heads))), {"HEADS": heads, "HALF": half}


def _unit(x: Tensor) -> Tensor:
    return x if x.stride(2) == 1 else x.contiguous()


def _rope_triton(x: Tensor, cos: Tensor, sin: Tensor, sign: float, out: Tensor) -> None:
    """Write the rotated heads (M, H, D) to `out`, which may be x."""
    n_rows, n_heads, head_dim = x.shape
    grid, tile = _tile(n_rows, n_heads, head_dim)
    launch(
        _rope_rows,
        grid,
        x=x,
        cos=cos.contiguous(),
        sin=sin.contiguous(),
        out=out,
        row_stride=x.stride(0),
        head_stride=x.stride(1),
        out_row_stride=out.stride(0),
        out_head_stride=out.stride(1),
        n_heads=n_heads,
        half=head_dim // 2,
        sign=sign,
        **tile,
        num_warps=4,
    )


def _rope_back_triton(dq: Tensor, dk: Tensor, dv: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Return the gradient of the projection (M, (H + 2 H_kv) D) of those of q, k and v."""
    n_rows, n_heads, head_dim = dq.shape
    n_kv_heads = dk.shape[1]
    dq, dk, dv = _unit(dq), _unit(dk), _unit(dv)
    every = n_heads + 2 * n_kv_heads
    out = dq.new_empty(n_rows, every * head_dim)
    grid, tile = _tile(n_rows, every, head_dim)
    launch(
        _rope_back,
        grid,
        dq=dq,
        dk=dk,
        dv=dv,
        cos=cos.contiguous(),
        sin=sin.contiguous(),
        out=out,
        q_row=dq.stride(0),
        q_head=dq.stride(1),
        k_row=dk.stride(0),
        k_head=dk.stride(1),
        v_row=dv.stride(0),
        v_head=dv.stride(1),
        n_heads=n_heads,
        n_kv_heads=n_kv_heads,
        half=head_dim // 2,
        **tile,
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
        out = torch.empty(x.shape, dtype=x.dtype, device=x.device)
        _rope_triton(_unit(x), cos, sin, sign, out)
        return out
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


class _RopeInPlace(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, projected: Tensor, cos: Tensor, sin: Tensor, n_heads: int, n_kv_heads: int
    ) -> tuple[Tensor, ...]:
        ctx.save_for_backward(cos, sin)
        heads = projected.detach().view(projected.shape[0], n_heads + 2 * n_kv_heads, -1)
        turned = heads[:, : n_heads + n_kv_heads]
        _rope_triton(turned, cos, sin, 1.0, turned)
        q, k, v = heads.split((n_heads, n_kv_heads, n_kv_heads), dim=1)
        return q, k, v

    @staticmethod
    def backward(ctx: Any, dq: Tensor, dk: Tensor, dv: Tensor) -> tuple[Tensor | None, ...]:
        return _rope_back_triton(dq, dk, dv, *ctx.saved_tensors), None, None, None, None


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


def rope_projection(
    projected: Tensor,  # (M, (H + 2 H_kv) D)
    cos: Tensor,  # (M, D / 2) fp32
    sin: Tensor,  # (M, D / 2) fp32
    n_heads: int,
    n_kv_heads: int,
    *,
    backend: Backend | None = None,
) -> tuple[Tensor, Tensor, Tensor]:  # (M, H, D), twice (M, H_kv, D)
    """Cut a projection into queries, keys and values, queries and keys rotated.

    Args:
        projected: Heads of queries, keys and values side by side, contiguous. The Triton backend
            rotates them where they lie: nothing else may need it afterwards.
        cos: Cosines of each row's angles, shape (M, D / 2), fp32.
        sin: Sines, likewise.
        n_heads: H, of the queries.
        n_kv_heads: H_kv, of keys and of values.
        backend: See cqa.kernels.backend.
    """
    backend = choose(backend, projected.device, projected.dtype)
    if backend == "triton":
        q, k, v = _RopeInPlace.apply(projected, cos, sin, n_heads, n_kv_heads)  # type: ignore[no-untyped-call]
        return q, k, v
    heads = projected.view(projected.shape[0], n_heads + 2 * n_kv_heads, -1)
    q, k, v = heads.split((n_heads, n_kv_heads, n_kv_heads), dim=1)
    return rope(q, cos, sin, backend=backend), rope(k, cos, sin, backend=backend), v
