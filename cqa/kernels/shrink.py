"""The augmented input [X | 1 | S]: LoRA's low-rank product rides inside the base GEMM.

    S_g = dropout_g(X) · A_gᵀ           one member g of the group at a time, its own mask
    Y   = [X | 1 | S] · [W | bias | scaling·B]ᵀ       (aug_linear.py)

The ops that produce X (norm, copy, SwiGLU) write all columns of one buffer. In backward they take
[dX | · | dS] from one GEMM, add the low-rank part of the input gradient, and form dA:

    dX += Σ_g mask_g · (dS_g · A_g) · scale         dA_g = dS_gᵀ · dropout_g(X)

The sum is added in place to the gradient that comes in, whose only other owner is the GEMM that
made it. From forward to backward the reference keeps the boolean masks and Triton's kernels keep
them as bits; the native ops draw them again.
Source: LoRA, arXiv:2106.09685, eq. 3, by block multiplication.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from cqa.kernels.dropout_tile import drop_tile, kept_tile
from cqa.kernels.gradient import Gradient
from cqa.kernels.launch import (
    TILE_ROWS,
    any_rows,
    dot_type,
    launch,
    rank_tile,
    rank_tiles,
    tile_width,
)
from cqa.kernels.outer_sums import OuterSum, outer_sums
from cqa.kernels.philox import (
    NO_DROPOUT,
    Dropout,
    GroupDropout,
    dropout_streams,
    kept_bytes,
    signed64,
)


@dataclass(frozen=True, slots=True)
class Shrink:
    """The LoRA input side of one group: A of all members, and how their inputs are dropped."""

    lora_a: Tensor  # (G * R, K)
    modules: tuple[int, ...]  # G module numbers, for the dropout streams
    dropout: Dropout | None = None
    gradient: Gradient | None = None  # (G * R, K), where dA goes; by default autograd has it
    kept: Tensor | None = None  # (G, M, bytes) uint8, what dropout keeps: see `with_kept`

    @property
    def scale(self) -> float:
        """What a kept element is multiplied by."""
        return self.dropout.scale if self.dropout else 1.0

    @property
    def rank(self) -> int:
        """R, the rows of A that one member has."""
        return self.lora_a.shape[0] // len(self.modules)

    def with_kept(self, x: Tensor) -> Shrink:
        """Return it with room to note what dropout keeps of X, where there is dropout.

        Args:
            x: Of M rows, on the device.
        """
        if self.dropout is None or self.dropout.threshold == 0:
            return self
        shape = (len(self.modules), x.shape[0], kept_bytes(self.lora_a.shape[1]))
        return replace(self, kept=torch.empty(shape, dtype=torch.uint8, device=x.device))


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
    da: Tensor,  # (G * R, K), written
) -> None:
    """Add the low-rank part of the input gradient to `dx`; form dA."""
    a = lora_a.to(x.dtype)
    if not masks:
        if dx is not None:
            dx.addmm_(ds, a)
        da.copy_(ds.T @ x)
        return
    rank = lora_a.shape[0] // len(masks)
    for g, keep in enumerate(masks):
        cols = slice(g * rank, (g + 1) * rank)
        if dx is not None:
            dx += (ds[:, cols] @ (a[cols] * scale)).mul_(keep)
        da[cols] = (ds[:, cols].T @ (x * keep)).to(da.dtype).mul_(scale)


@triton.jit
def dropout_rows(batch_rows, rows, in_range, DROPOUT: tl.constexpr):
    """The numbers of some rows within the global batch, which dropout counts by."""
    numbers = rows
    if DROPOUT:
        numbers = tl.load(batch_rows + rows, mask=in_range, other=0)
    return numbers


@triton.jit
def member_of(part, rank, RANK: tl.constexpr):
    """The member that a program works for, and the first of at most RANK of its ranks."""
    parts = tl.cdiv(rank, RANK)
    return part // parts, part % parts * RANK


@triton.jit
def shrink_tile(  # one member's share of S from columns [start, start + WIDTH) of X
    s,  # (ROWS, RANK) fp32, the sum so far
    x,  # (ROWS, WIDTH)
    kept,  # (G, M, kept_stride) uint8, written
    kept_stride,
    member,
    first_rank,
    start,
    rows,  # (ROWS,) int64
    in_range,  # (ROWS,)
    numbers,  # (ROWS,) of the rows within the global batch
    m,
    k,
    lora_a,  # (G * R, K)
    rank,
    key,
    streams,
    threshold,
    RANK: tl.constexpr,
    WIDTH: tl.constexpr,
    DROPOUT: tl.constexpr,
    DOT: tl.constexpr,
):
    if DROPOUT:
        x = drop_tile(
            x, kept, kept_stride, member, first_rank, start, rows, in_range, numbers, m, k, key,
            streams, threshold, WIDTH,
        )  # fmt: skip
    ranks, cols = first_rank + tl.arange(0, RANK), start + tl.arange(0, WIDTH)
    mask = (ranks < rank)[None, :] & (cols < k)[:, None]
    at = lora_a + (member * rank + ranks)[None, :] * k + cols[:, None]
    a = tl.load(at, mask=mask, other=0.0)
    return tl.dot(x.to(DOT), a.to(DOT), s, input_precision="ieee")


@triton.jit
def expand_tile(  # Σ_g mask_g · (dS_g · A_g) for columns [start, start + WIDTH), without the scale
    ds,  # (M, G * R)
    ds_stride,
    start,
    rows,  # (ROWS,) int64
    in_range,  # (ROWS,)
    m,
    k,
    lora_a,  # (G * R, K)
    rank,
    kept,  # (G, M, kept_stride) uint8
    kept_stride,
    MEMBERS: tl.constexpr,
    RANK: tl.constexpr,
    RANK_TILES: tl.constexpr,
    WIDTH: tl.constexpr,
    DROPOUT: tl.constexpr,
    DOT: tl.constexpr,
):
    total = tl.zeros((rows.shape[0], WIDTH), tl.float32)
    cols = start + tl.arange(0, WIDTH)
    for g in tl.static_range(MEMBERS):
        part = tl.zeros((rows.shape[0], WIDTH), tl.float32)
        for tile in tl.range(0, RANK_TILES, num_stages=1):
            ranks = tile * RANK + tl.arange(0, RANK)
            mask = in_range[:, None] & (ranks < rank)[None, :]
            s_at = ds + rows[:, None] * ds_stride + (g * rank + ranks)[None, :]
            s = tl.load(s_at, mask=mask, other=0.0)
            mask = (ranks < rank)[:, None] & (cols < k)[None, :]
            a_at = lora_a + (g * rank + ranks)[:, None] * k + cols[None, :]
            a = tl.load(a_at, mask=mask, other=0.0)
            part = tl.dot(s.to(DOT), a.to(DOT), part, input_precision="ieee")
        if DROPOUT:
            keep = kept_tile(kept, kept_stride, g, rows, in_range, m, start, WIDTH)
            part = tl.where(keep, part, 0.0)
        total += part
    return total


@dataclass(frozen=True, slots=True)
class GroupLaunch:
    """A group's low-rank side as Triton kernels take it; without an adapter it has no members."""

    lora_a: Tensor | None = None
    members: int = 0
    rank: int = 1
    dropout_scale: float = 1.0
    dropout: GroupDropout = NO_DROPOUT

    @classmethod
    def of(cls, shrink: Shrink | None) -> GroupLaunch:
        """Return what a launch needs of a group."""
        if shrink is None:
            return cls()
        dropout = GroupDropout.of(shrink.dropout, shrink.modules, shrink.kept)
        return cls(shrink.lora_a, len(shrink.modules), shrink.rank, shrink.scale, dropout)

    @property
    def parts(self) -> int:
        """How many programs share the members' ranks in the forward kernels."""
        return max(1, self.members * rank_tiles(self.rank))

    @property
    def arguments(self) -> dict[str, Any]:
        """Arguments that every forward kernel with a low-rank side takes by these names."""
        return {**self.backward_arguments, **self.dropout.drawing}

    @property
    def backward_arguments(self) -> dict[str, Any]:
        """The same of a backward kernel, which reads what forward has noted."""
        return {
            "lora_a": self.lora_a,
            "rank": self.rank,
            "dropout_scale": self.dropout_scale,
            "RANK": rank_tile(self.rank),
            **self.dropout.noted,
        }


@any_rows
def _expand_kernel(  # out = dX + Σ_g mask_g · (dS_g · A_g) · dropout_scale; a program: a tile
    dx,  # (M, K)
    ds,  # (M, G * R)
    out,  # (M, K) contiguous, written; None is dx
    m,
    k,
    dx_stride,
    ds_stride,
    lora_a,  # (G * R, K)
    rank,
    dropout_scale,
    kept,  # (G, M, kept_stride) uint8
    kept_stride,
    MEMBERS: tl.constexpr,
    ROWS: tl.constexpr,
    RANK: tl.constexpr,
    RANK_TILES: tl.constexpr,
    WIDTH: tl.constexpr,
    DROPOUT: tl.constexpr,
    DOT: tl.constexpr,
):
    rows = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    start, in_range = tl.program_id(1) * WIDTH, rows < m
    low = expand_tile(
        ds, ds_stride, start, rows, in_range, m, k, lora_a, rank, kept, kept_stride, MEMBERS, RANK,
        RANK_TILES, WIDTH, DROPOUT, DOT,
    )  # fmt: skip
    cols = start + tl.arange(0, WIDTH)
    mask = in_range[:, None] & (cols < k)[None, :]
    at = dx + rows[:, None] * dx_stride + cols[None, :]
    d = tl.load(at, mask=mask, other=0.0).to(tl.float32)
    if out is not None:
        at = out + rows[:, None] * k + cols[None, :]
    tl.store(at, d + low * dropout_scale, mask=mask)


def expand_triton(
    dx: Tensor,  # (M, K)
    ds: Tensor,  # (M, G * R)
    shrink: Shrink,
    out: Tensor | None = None,  # (M, K) contiguous, written
) -> None:
    """Write the input gradient with its low-rank part added to `out`, or in place."""
    m, k = dx.shape
    group = GroupLaunch.of(shrink)
    width = tile_width(dx.dtype)
    if dx.dtype == torch.float32:
        width //= 2  # three members, dropped: more would not fit the registers of sm_100
    launch(
        _expand_kernel,
        (triton.cdiv(m, TILE_ROWS), triton.cdiv(k, width)),
        dx=dx,
        ds=ds,
        out=out,
        m=m,
        k=k,
        dx_stride=dx.stride(0),
        ds_stride=ds.stride(0),
        MEMBERS=group.members,
        RANK_TILES=rank_tiles(group.rank),
        ROWS=TILE_ROWS,
        WIDTH=width,
        DOT=dot_type(dx.dtype),
        **group.backward_arguments,
        num_warps=8,  # half the registers a thread: twice as many blocks fit
    )


def shrink_da_triton(
    ds: Tensor,  # (M, G * R)
    x: Tensor,  # (M, K)
    shrink: Shrink,
    da: Tensor,  # (G * R, K)
    add: bool,
) -> None:
    """Write or add dA of all members."""
    k, rank = x.shape[1], shrink.rank
    sums = tuple(OuterSum((0, k), g * rank, g * rank * k) for g in range(len(shrink.modules)))
    dropout = GroupDropout.of(shrink.dropout, shrink.modules, shrink.kept)
    outer_sums(x, ds, da, sums, (1, k), rank, scale=shrink.scale, dropout=dropout, add=add)


_NONE = torch.empty(0, dtype=torch.int64, device="cpu")


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
    da: Tensor,  # (G * R, K), written
) -> None:
    """Form dA of all members, the masks drawn again."""
    torch.ops.cqa.shrink_da(ds, x, da, *native_arguments(shrink))
