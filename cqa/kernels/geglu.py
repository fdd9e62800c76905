"""GeGLU with the tanh form of GELU: the gate of Gemma's MLP.

    act = gelu(gate) · up,    gelu(z) = z · sigmoid(2u),    u = √(2/π) · (z + 0.044715 z³)

which is z/2 · (1 + tanh u). There is the reference alone, for every backend: one pass over rows
that two products surround; `copy_shrink` then appends the low-rank columns.
Sources: arXiv:2002.05202, eq. 6; arXiv:1606.08415, section 2.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from cqa.kernels.precision import wider

SLOPE, CUBIC = 2 * math.sqrt(2 / math.pi), 0.044715


def geglu_ref(gate_up: Tensor) -> Tensor:
    """The definition: gate_up (M, 2I) to (M, I); see `swiglu_ref` for the form of the sigmoid."""
    gate, up = gate_up.to(wider(gate_up.dtype)).chunk(2, dim=1)
    twice_u = SLOPE * (gate + CUBIC * gate * gate * gate)
    return (gate / (torch.exp(-twice_u) + 1) * up).to(gate_up.dtype)


def _geglu_backward_ref(dact: Tensor, gate_up: Tensor) -> Tensor:
    """Return d(gate_up); gelu'(z) = s + z · s · (1 - s) · 2u' with s = sigmoid(2u)."""
    gate, up = gate_up.to(wider(gate_up.dtype)).chunk(2, dim=1)
    dwide = dact.to(gate.dtype)
    square = gate * gate
    s = torch.sigmoid(SLOPE * (gate + CUBIC * square * gate))
    gelu = gate * s
    slope = s + gelu * (1 - s) * SLOPE * (1 + 3 * CUBIC * square)
    return torch.cat((dwide * up * slope, dwide * gelu), dim=1).to(gate_up.dtype)


class _Geglu(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, gate_up: Tensor) -> Tensor:
        ctx.save_for_backward(gate_up)
        return geglu_ref(gate_up)

    @staticmethod
    def backward(ctx: Any, dact: Tensor) -> Tensor:
        (gate_up,) = ctx.saved_tensors
        return _geglu_backward_ref(dact, gate_up)


def geglu(gate_up: Tensor) -> Tensor:
    """Gate an MLP's rows.

    Args:
        gate_up: Gate, then up, shape (M, 2I).

    Returns:
        Shape (M, I), in the same dtype.
    """
    out: Tensor = _Geglu.apply(gate_up)  # type: ignore[no-untyped-call]
    return out
