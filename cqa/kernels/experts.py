"""A mixture of experts in place of an MLP: each row goes through the few that its router picks.

    p = softmax(x · Rᵀ)      y = Σ_{e in top k of p} w_e · down_e(silu(gate_e x) · up_e x)

w_e is p_e, or p_e over the sum of the k. Without gradient: experts are scored, not trained. A row's
bits do not depend on the rows beside it: where a product is a library's, an expert's rows are taken
in blocks of one height, the last one padded. Experts are added in the order of their numbers.
Source: Qwen3's report, arXiv:2505.09388, section 2; arXiv:1701.06538, section 2.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from cqa.kernels.aug_columns import AugColumns
from cqa.kernels.backend import Backend
from cqa.kernels.matmul import mm
from cqa.kernels.precision import wider
from cqa.kernels.swiglu_shrink import swiglu_shrink

HEIGHT = 64  # of a block of one expert's rows, where a library multiplies


@dataclass(slots=True)
class Experts:
    """Weights of the E experts of one layer."""

    router: Tensor  # (E, D)
    gate_up: Tensor  # (E, 2 I, D)
    down: Tensor  # (E, D, I)
    top_k: int
    normalised: bool  # weights of the chosen sum to 1


@torch.no_grad()
def mixed_experts(x: Tensor, experts: Experts, *, backend: Backend) -> Tensor:
    """Run each row through its experts.

    Args:
        x: Normalised rows, shape (M, D).
        experts: The layer's weights.
        backend: See cqa.kernels.backend; the products are its, all else is PyTorch's.

    Returns:
        Shape (M, D), one precision wider than x.
    """
    logits = mm(x, experts.router.T, backend=backend)
    weights, chosen = logits.float().softmax(-1).topk(experts.top_k, dim=-1)
    if experts.normalised:
        weights = weights / weights.sum(-1, keepdim=True)
    weights = weights.to(x.dtype)
    out = torch.zeros_like(x, dtype=wider(x.dtype))
    for expert in chosen.unique().tolist():
        rows, place = torch.where(chosen == expert)
        made = _expert(x[rows], experts.gate_up[expert], experts.down[expert], backend)
        out.index_add_(0, rows, made.to(out.dtype) * weights[rows, place, None].to(out.dtype))
    return out


def _expert(x: Tensor, gate_up: Tensor, down: Tensor, backend: Backend) -> Tensor:
    if backend == "native":
        return _mlp(x, gate_up, down, backend)
    padded = F.pad(x, (0, 0, 0, -x.shape[0] % HEIGHT))
    blocks = [_mlp(block, gate_up, down, backend) for block in padded.split(HEIGHT)]
    return torch.cat(blocks)[: x.shape[0]]


def _mlp(x: Tensor, gate_up: Tensor, down: Tensor, backend: Backend) -> Tensor:
    columns = AugColumns(down.shape[1], False, 0, 1)
    act = swiglu_shrink(mm(x, gate_up.T, backend=backend), columns, None, backend=backend)
    return mm(act, down.T, backend=backend)
