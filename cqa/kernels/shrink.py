"""The augmented input [X | 1 | S]: LoRA's low-rank product rides inside the base GEMM.

    S_g = dropout_g(X) · A_gᵀ           one member g of the group at a time, its own mask
    Y   = [X | 1 | S] · [W | bias | scaling·B]ᵀ       (aug_linear.py)

The ops that produce X (norm, copy, SwiGLU) write all columns of one buffer. In backward they take
[dX | · | dS] from one GEMM, add the low-rank part of the input gradient, and form dA:

    dX += Σ_g mask_g · (dS_g · A_g) · scale         dA_g = dS_gᵀ · dropout_g(X)

The sum is added in place to the gradient that comes in, whose only other owner is the GEMM that
made it. The reference keeps the boolean masks between forward and backward; the native ops make
them again, while they pack an operand.
Source: LoRA, arXiv:2106.09685, eq. 3, by block multiplication.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from cqa.kernels.philox import DROPOUT, Dropout, signed64, stream_of


@dataclass(frozen=True, slots=True)
class AugColumns:
    """Where the columns of an augmented input and weight lie.

    The base part comes first, so that a base model without its adapter is a slice, whose result
    does not depend on the adapters that happen to be resident.
    """

    features: int  # K columns of X
    bias: bool
    rank_columns: int  # G * R columns of S
    multiple: int  # the row length is padded to a multiple of this, with zeros

    @property
    def base(self) -> int:
        """End of the base part: X, and the constant column padded to 16."""
        return self.features + 16 if self.bias else self.features

    @property
    def total(self) -> int:
        """Row length of the whole buffer."""
        used = self.base + self.rank_columns
        return -(-used // self.multiple) * self.multiple

    @property
    def ranks(self) -> slice:
        """The columns of S."""
        return slice(self.base, self.base + self.rank_columns)


@dataclass(frozen=True, slots=True)
class Shrink:
    """The LoRA input side of one group: A of all members, and how their inputs are dropped."""

    lora_a: Tensor  # (G * R, K)
    modules: tuple[int, ...]  # G module numbers, for the dropout streams
    dropout: Dropout | None = None

    @property
    def scale(self) -> float:
        """What a kept element is multiplied by."""
        return self.dropout.scale if self.dropout else 1.0


def shrink_forward_ref(
    x: Tensor,  # (M, K)
    lora_a: Tensor,  # (G * R, K)
    modules: tuple[int, ...],
    dropout: Dropout | None,
    out: Tensor,  # (M, G * R), written
) -> list[Tensor]:  # G masks (M, K) bool, none without dropout
    """Write S; return the masks that backward needs."""
    lora_a = lora_a.to(x.dtype)
    if dropout is None or dropout.threshold == 0:
        torch.mm(x, lora_a.T, out=out)
        return []
    masks = []
    rank = lora_a.shape[0] // len(modules)
    for g, module in enumerate(modules):
        keep = dropout.keep(module, x.shape[1]).to(x.device)
        cols = slice(g * rank, (g + 1) * rank)
        out[:, cols] = (x * keep) @ (lora_a[cols].T * dropout.scale)
        masks.append(keep)
    return masks


def shrink_backward_ref(
    x: Tensor,  # (M, K)
    ds: Tensor,  # (M, G * R)
    lora_a: Tensor,  # (G * R, K)
    masks: list[Tensor],
    scale: float,
    dx: Tensor | None,  # (M, K), added to
) -> Tensor:  # (G * R, K) dA, in the dtype of lora_a
    """Add the low-rank part of the input gradient to `dx`; return dA."""
    a = lora_a.to(x.dtype)
    if not masks:
        if dx is not None:
            dx.addmm_(ds, a)
        return (ds.T @ x).to(lora_a.dtype)
    da = torch.empty_like(lora_a)
    rank = lora_a.shape[0] // len(masks)
    for g, keep in enumerate(masks):
        cols = slice(g * rank, (g + 1) * rank)
        if dx is not None:
            dx += (ds[:, cols] @ (a[cols] * scale)).mul_(keep)
        da[cols] = (ds[:, cols].T @ (x * keep)).to(lora_a.dtype).mul_(scale)
    return da


def native_arguments(shrink: Shrink | None) -> tuple[Any, ...]:
    """Return (streams, rows, seed, step, threshold), as the native ops take a group's dropout."""
    none = torch.empty(0, dtype=torch.int64)
    if shrink is None:
        return none, none, 0, 0, 0
    streams = torch.tensor([signed64(stream_of(DROPOUT, m)) for m in shrink.modules])
    dropout = shrink.dropout
    if dropout is None:
        return streams, none, 0, 0, 0
    return streams, dropout.rows, signed64(dropout.seed), dropout.step, dropout.threshold


def shrink_da_native(
    ds: Tensor,  # (M, G * R)
    x: Tensor,  # (M, K)
    shrink: Shrink,
) -> Tensor:  # (G * R, K)
    """Return dA of all members, the masks made again."""
    da = torch.empty_like(shrink.lora_a)
    torch.ops.cqa.shrink_da(ds, x, da, *native_arguments(shrink))
    return da.mul_(shrink.scale) if shrink.scale != 1 else da


def augmented(x: Tensor, columns: AugColumns, dtype: torch.dtype) -> Tensor:
    """Allocate (M, total) beside x, with the constant column and the padding filled in."""
    out = torch.empty(x.shape[0], columns.total, dtype=dtype, device=x.device)
    if columns.bias:
        out[:, columns.features : columns.base] = 0
        out[:, columns.features] = 1
    out[:, columns.ranks.stop :] = 0
    return out
