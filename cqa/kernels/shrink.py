"""The augmented input [X | 1 | S]: LoRA's low-rank product rides inside the base GEMM.

    S_g = dropout_g(X) · A_gᵀ           one member g of the group at a time, its own mask
    Y   = [X | 1 | S] · [W | bias | scaling·B]ᵀ       (aug_linear.py)

The ops that produce X (norm, copy, SwiGLU) write all columns of one buffer. In backward they take
[dX | · | dS] from one GEMM, add the low-rank part of the input gradient, and form dA:

    dX += Σ_g mask_g · (dS_g · A_g) · scale         dA_g = dS_gᵀ · dropout_g(X)

The sum is added in place to the gradient that comes in, whose only other owner is the GEMM that
made it. The reference keeps the boolean masks between forward and backward; the native ops and the
Triton kernels make them again.
Source: LoRA, arXiv:2106.09685, eq. 3, by block multiplication.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from cqa.kernels.launch import any_rows, launch, rank_tile
from cqa.kernels.outer_sums import OuterSum, outer_sums
from cqa.kernels.philox import (
    NO_DROPOUT,
    Dropout,
    GroupDropout,
    dropout_keep,
    dropout_streams,
    signed64,
)


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

    @property
    def rank(self) -> int:
        """R, the rows of A that one member has."""
        return self.lora_a.shape[0] // len(self.modules)


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


@triton.jit
def numbers_of(window_rows, rows, in_range, DROPOUT: tl.constexpr):
    """The numbers of some rows within the window, which dropout counts by."""
    numbers = rows
    if DROPOUT:
        numbers = tl.load(window_rows + rows, mask=in_range, other=0)
    return numbers


@triton.jit
def shrink_tile(  # one member's share of S from columns [start, start + WIDTH) of X
    s,  # (M, RANK) fp32, the sum so far
    x,  # (M, WIDTH)
    lora_a,
    member,
    rank,
    k,
    start,
    key,
    streams,
    threshold,
    window_rows,
    RANK: tl.constexpr,
    WIDTH: tl.constexpr,
    DROPOUT: tl.constexpr,
    DOT: tl.constexpr,
):
    if DROPOUT:
        stream = tl.load(streams + member)
        keep = dropout_keep(key, stream, threshold, window_rows, start, k, WIDTH)
        x = tl.where(keep, x, 0.0)
    ranks, cols = tl.arange(0, RANK), start + tl.arange(0, WIDTH)
    mask = (ranks < rank)[None, :] & (cols < k)[:, None]
    at = lora_a + (member * rank + ranks)[None, :] * k + cols[:, None]
    a = tl.load(at, mask=mask, other=0.0)
    return tl.dot(x.to(DOT), a.to(DOT), s, input_precision="ieee")


@triton.jit
def expand_tile(  # Σ_g mask_g · (dS_g · A_g) for columns [start, start + WIDTH), without the scale
    ds,
    ds_stride,
    lora_a,
    rank,
    k,
    start,
    key,
    streams,
    threshold,
    window_rows,
    rows,  # (M,) int64
    in_range,  # (M,)
    MEMBERS: tl.constexpr,
    ROWS: tl.constexpr,
    RANK: tl.constexpr,
    WIDTH: tl.constexpr,
    DROPOUT: tl.constexpr,
    DOT: tl.constexpr,
):
    total = tl.zeros((ROWS, WIDTH), tl.float32)
    ranks, cols = tl.arange(0, RANK), start + tl.arange(0, WIDTH)
    for g in tl.static_range(MEMBERS):
        mask = in_range[:, None] & (ranks < rank)[None, :]
        s_at = ds + rows[:, None] * ds_stride + (g * rank + ranks)[None, :]
        s = tl.load(s_at, mask=mask, other=0.0)
        mask = (ranks < rank)[:, None] & (cols < k)[None, :]
        a_at = lora_a + (g * rank + ranks)[:, None] * k + cols[None, :]
        a = tl.load(a_at, mask=mask, other=0.0)
        part = tl.dot(s.to(DOT), a.to(DOT), input_precision="ieee")
        if DROPOUT:
            stream = tl.load(streams + g)
            keep = dropout_keep(key, stream, threshold, window_rows, start, k, WIDTH)
            part = tl.where(keep, part, 0.0)
        total += part
    return total


@triton.jit
def store_constants(  # the constant column and the zeros of the padding
    x_aug, stride, rows, in_range, features, base, end_of_ranks, total,
):  # fmt: skip
    cols = tl.arange(0, 64)[None, :]
    at = x_aug + rows[:, None] * stride
    one = tl.where(cols == 0, 1.0, 0.0).to(x_aug.dtype.element_ty)
    tl.store(at + features + cols, one, mask=in_range[:, None] & (features + cols < base))
    padding = in_range[:, None] & (end_of_ranks + cols < total)
    tl.store(at + end_of_ranks + cols, one * 0, mask=padding)


@triton.jit
def store_split(  # one member's sum over one share of the columns, for `sum_splits`
    partial, s, split, member, m, n_members, rows, in_range, rank, RANK: tl.constexpr
):
    ranks = tl.arange(0, RANK)
    row_of_partial = (split * m + rows)[:, None] * (n_members * rank)
    at = partial + row_of_partial + (member * rank + ranks)[None, :]
    tl.store(at, s, mask=in_range[:, None] & (ranks < rank)[None, :])


@any_rows
def _sum_splits_kernel(partial, out, out_stride, m, columns, n_splits, WIDTH: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    cols = tl.arange(0, WIDTH)
    total = tl.zeros((WIDTH,), tl.float32)
    for split in range(n_splits):
        at = partial + (split * m + row) * columns + cols
        total += tl.load(at, mask=cols < columns, other=0.0)
    tl.store(out + row * out_stride + cols, total, mask=cols < columns)


def sum_splits(partial: Tensor, out: Tensor) -> None:
    """Sum (splits, M, G * R) over the splits, in order, into (M, G * R)."""
    n_splits, m, columns = partial.shape
    width = triton.next_power_of_2(columns)
    launch(_sum_splits_kernel, (m,), partial, out, out.stride(0), m, columns, n_splits, WIDTH=width)


def shrink_da_triton(
    ds: Tensor,  # (M, G * R)
    x: Tensor,  # (M, K)
    shrink: Shrink,
) -> Tensor:  # (G * R, K)
    """Return dA of all members, the masks made again."""
    da = torch.empty_like(shrink.lora_a)
    k, rank = x.shape[1], shrink.rank
    sums = tuple(OuterSum((0, k), g * rank, g * rank * k) for g in range(len(shrink.modules)))
    dropout = GroupDropout.of(shrink.dropout, shrink.modules)
    outer_sums(x, ds, da, sums, (1, k), rank, scale=shrink.scale, dropout=dropout)
    return da


@dataclass(frozen=True, slots=True)
class GroupLaunch:
    """A group's low-rank side as Triton kernels take it; without an adapter it has no members."""

    lora_a: Tensor | None = None
    members: int = 0
    rank: int = 1
    scale: float = 1.0
    dropout: GroupDropout = NO_DROPOUT

    @classmethod
    def of(cls, shrink: Shrink | None) -> GroupLaunch:
        """Return what a launch needs of a group."""
        if shrink is None:
            return cls()
        dropout = GroupDropout.of(shrink.dropout, shrink.modules)
        return cls(shrink.lora_a, len(shrink.modules), shrink.rank, shrink.scale, dropout)

    @property
    def constants(self) -> dict[str, Any]:
        """What a kernel is compiled for."""
        return {"RANK": rank_tile(self.rank), "DROPOUT": self.dropout.threshold > 0}


_NONE = torch.empty(0, dtype=torch.int64)


def native_arguments(shrink: Shrink | None) -> tuple[Any, ...]:
    """Return (streams, rows, seed, step, threshold, scale): a group's dropout for native ops."""
    if shrink is None:
        return _NONE, _NONE, 0, 0, 0, 1.0
    dropout = shrink.dropout
    streams = dropout_streams(shrink.modules, torch.device("cpu"))
    if dropout is None:
        return streams, _NONE, 0, 0, 0, 1.0
    seed = signed64(dropout.seed)
    return streams, dropout.rows, seed, dropout.step, dropout.threshold, dropout.scale


def shrink_da_native(
    ds: Tensor,  # (M, G * R)
    x: Tensor,  # (M, K)
    shrink: Shrink,
) -> Tensor:  # (G * R, K)
    """Return dA of all members, the masks made again."""
    da = torch.empty_like(shrink.lora_a)
    torch.ops.cqa.shrink_da(ds, x, da, *native_arguments(shrink))
    return da


@cache
def _one_hot(n: int, dtype: torch.dtype) -> Tensor:
    return torch.eye(1, n, dtype=dtype)


def augmented(x: Tensor, columns: AugColumns, dtype: torch.dtype) -> Tensor:
    """Allocate (M, total) beside x, with the constant column and the padding filled in."""
    out = torch.empty(x.shape[0], columns.total, dtype=dtype, device=x.device)
    if columns.bias:
        out[:, columns.features : columns.base] = _one_hot(columns.base - columns.features, dtype)
    if columns.total > columns.ranks.stop:
        out[:, columns.ranks.stop :] = 0
    return out
