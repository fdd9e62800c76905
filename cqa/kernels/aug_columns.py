"""Where the columns of an augmented row [X | 1 | S] lie, and those of them that never change."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import torch
import triton
import triton.language as tl
from torch import Tensor


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

    @property
    def alone(self) -> AugColumns:
        """The layout of the base part alone, [X | 1]."""
        return AugColumns(self.features, self.bias, 0, 1)

    @property
    def bounds(self) -> dict[str, int]:
        """What `store_constants` needs of the layout, as kernels take it."""
        return {"base": self.base, "end_of_ranks": self.ranks.stop, "total": self.total}


@cache
def _one_hot(n: int, dtype: torch.dtype) -> Tensor:
    return torch.eye(1, n, dtype=dtype, device="cpu")


def augmented(x: Tensor, columns: AugColumns, dtype: torch.dtype) -> Tensor:
    """Allocate (M, total) beside x, with the constant column and the padding filled in."""
    out = torch.empty(x.shape[0], columns.total, dtype=dtype, device=x.device)
    if columns.bias:
        out[:, columns.features : columns.base] = _one_hot(columns.base - columns.features, dtype)
    if columns.total > columns.ranks.stop:
        out[:, columns.ranks.stop :] = 0
    return out


@triton.jit
def store_constants(  # the constant column and the zeros of the padding
    x_aug,  # (M, total), written
    stride,
    rows,  # (ROWS,) int64
    in_range,  # (ROWS,)
    features,
    base,
    end_of_ranks,
    total,
):
    cols = tl.arange(0, 64)[None, :]
    at = x_aug + rows[:, None] * stride
    one = tl.where(cols == 0, 1.0, 0.0).to(x_aug.dtype.element_ty)
    tl.store(at + features + cols, one, mask=in_range[:, None] & (features + cols < base))
    padding = in_range[:, None] & (end_of_ranks + cols < total)
    tl.store(at + end_of_ranks + cols, one * 0, mask=padding)
