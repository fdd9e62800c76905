"""Rotary position embedding of queries and keys, in the half-split layout of Hugging Face.

    (x1, x2) → (x1 · cos - x2 · sin,  x2 · cos + x1 · sin)        x1, x2 the halves of a head

Source: RoFormer, arXiv:2104.09864, eq. 34.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from cqa.kernels.backend import Backend, choose
from cqa.kernels.precision import wider


def rope_ref(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """The definition: x (M, H, D); cos, sin (M, D / 2) fp32."""
    wide = x.to(wider(x.dtype))
    x1, x2 = wide.chunk(2, dim=-1)
    cos, sin = cos[:, None].to(wide.dtype), sin[:, None].to(wide.dtype)
    return torch.cat((x1 * cos - x2 * sin, x2 * cos + x1 * sin), dim=-1).to(x.dtype)


def _rope_native(x: Tensor, cos: Tensor, sin: Tensor, sign: float) -> Tensor:
    out = x.new_empty(x.shape)
    torch.ops.cqa.rope(x if x[0].is_contiguous() else x.contiguous(), cos, sin, out, sign)
    return out


class _Rope(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, cos: Tensor, sin: Tensor, backend: Backend) -> Tensor:
        ctx.save_for_backward(cos, sin)
        ctx.backend = backend
        return _rope_native(x, cos, sin, 1) if backend == "native" else rope_ref(x, cos, sin)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        cos, sin = ctx.saved_tensors
        native = ctx.backend == "native"
        dx = _rope_native(dy, cos, sin, -1) if native else rope_ref(dy, cos, -sin)
        return dx, None, None, None


def rope(
    x: Tensor,  # (M, H, D)
    cos: Tensor,  # (M, D / 2) fp32
    sin: Tensor,  # (M, D / 2) fp32
    *,
    backend: Backend | None = None,
) -> Tensor:  # (M, H, D)
    """Rotate every head of every row by the angles of its position."""
    backend = choose(backend, x.device, x.dtype)
    out: Tensor = _Rope.apply(x, cos, sin, backend)  # type: ignore[no-untyped-call]
    return out
