"""SwiGLU fused with dropout and the LoRA shrink of the down projection.

    act = silu(gate) · up,    silu(z) = z · sigmoid(z)

Source: arXiv:2002.05202, eq. 5 (without its biases).
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from cqa.kernels.aug_columns import AugColumns, store_constants
from cqa.kernels.aug_op import AugOp, augment
from cqa.kernels.backend import Backend, choose
from cqa.kernels.launch import TILE_ROWS, any_rows, dot_type, launch, rank_tiles
from cqa.kernels.precision import wider
from cqa.kernels.shrink import (
    GroupLaunch,
    Shrink,
    dropout_rows,
    expand_tile,
    member_of,
    native_arguments,
    shrink_tile,
)
from cqa.kernels.split_shrink import launch_splits, store_split

SPLITS = 9  # of the columns, so that 1,400 rows fill a GPU: three programs a multiprocessor
_WIDTH = 64  # columns at a time: few, so that registers leave room for four or more programs


def swiglu_ref(gate_up: Tensor) -> Tensor:
    """The definition: gate_up (M, 2I) to (M, I).

    The sigmoid is written with exp: torch's silu rounds differently at the end of a vector, which
    would make a row's result depend on its place.
    """
    wide = gate_up.to(wider(gate_up.dtype))
    gate, up = wide.chunk(2, dim=1)
    return (gate / (torch.exp(-gate) + 1) * up).to(gate_up.dtype)


def _swiglu_backward_ref(dact: Tensor, gate_up: Tensor) -> Tensor:
    """Return d(gate_up); silu'(z) = s + z · s · (1 - s) with s = sigmoid(z)."""
    wide = gate_up.to(wider(gate_up.dtype))
    gate, up = wide.chunk(2, dim=1)
    dwide = dact.to(wide.dtype)
    s = torch.sigmoid(gate)
    silu = gate * s
    out = torch.empty_like(gate_up)
    dgate, dup = out.chunk(2, dim=1)
    dgate.copy_(dwide * up * (s + silu * (1 - s)))
    dup.copy_(dwide * silu)
    return out


@triton.jit
def _sigmoid(z, EXACT: tl.constexpr):
    if EXACT:
        small = tl.exp(-tl.abs(z))  # never overflows
        return tl.div_rn(tl.where(z < 0, small, 1.0), 1.0 + small)
    # far closer than 16 bits, and 0 below -88; five instructions, where exp and a division take 12
    root = tl.rsqrt(1.0 + tl.exp2(z * -1.4426950408889634))
    return root * root


@any_rows
def _swiglu_shrink_kernel(  # a program: a block of rows, a share of the columns, one member
    x,  # (M, 2 K)
    out,  # (M, total), X and the constants written
    partial,  # (splits, M, G * R) fp32, written
    arrivals,
    m,
    k,
    x_stride,
    out_stride,
    base,
    end_of_ranks,
    total,
    rank_columns,
    lora_a,  # (G * R, K)
    rank,
    dropout_scale,
    key,
    streams,
    batch_rows,
    threshold,
    kept,  # (G, M, kept_stride) uint8, written
    kept_stride,
    LORA: tl.constexpr,
    ROWS: tl.constexpr,
    RANK: tl.constexpr,
    WIDTH: tl.constexpr,
    DROPOUT: tl.constexpr,
    DOT: tl.constexpr,
):
    rows = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    split, part, in_range = tl.program_id(1), tl.program_id(2), rows < m
    member, first_rank = member_of(part, rank, RANK)
    numbers = dropout_rows(batch_rows, rows, in_range, DROPOUT)
    s = tl.zeros((ROWS, RANK), tl.float32)
    for start in range(split * WIDTH, k, tl.num_programs(1) * WIDTH):
        cols = start + tl.arange(0, WIDTH)
        mask = in_range[:, None] & (cols < k)[None, :]
        at = x + rows[:, None] * x_stride + cols[None, :]
        gate = tl.load(at, mask=mask, other=0.0).to(tl.float32)
        up = tl.load(at + k, mask=mask, other=0.0).to(tl.float32)
        act = gate * _sigmoid(gate, out.dtype.element_ty == tl.float32) * up
        act = act.to(out.dtype.element_ty)  # rounded once, as S must see what the base sees
        if part == 0:
            tl.store(out + rows[:, None] * out_stride + cols[None, :], act, mask=mask)
        if LORA:
            s = shrink_tile(
                s, act.to(tl.float32), kept, kept_stride, member, first_rank, start, rows, in_range,
                numbers, m, k, lora_a, rank, key, streams, threshold, RANK, WIDTH, DROPOUT, DOT,
            )  # fmt: skip
    if LORA:
        store_split(
            s * dropout_scale, partial, arrivals, out, out_stride, base, rows, in_range, m, rank,
            rank_columns, RANK,
        )  # fmt: skip
    if (split == 0) & (part == 0):
        store_constants(out, out_stride, rows, in_range, k, base, end_of_ranks, total)


@any_rows
def _swiglu_backward_kernel(  # a tile a program
    dact,  # (M, K)
    ds,  # (M, G * R)
    gate_up,  # (M, 2 K)
    out,  # (M, 2 K), written
    m,
    k,
    dact_stride,
    ds_stride,
    in_stride,
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
    cols = start + tl.arange(0, WIDTH)
    mask = in_range[:, None] & (cols < k)[None, :]
    d = tl.load(dact + rows[:, None] * dact_stride + cols[None, :], mask=mask, other=0.0)
    d = d.to(tl.float32)
    if MEMBERS > 0:
        d += dropout_scale * expand_tile(
            ds, ds_stride, start, rows, in_range, m, k, lora_a, rank, kept, kept_stride, MEMBERS,
            RANK, RANK_TILES, WIDTH, DROPOUT, DOT,
        )  # fmt: skip
    at = gate_up + rows[:, None] * in_stride + cols[None, :]
    gate = tl.load(at, mask=mask, other=0.0).to(tl.float32)
    up = tl.load(at + k, mask=mask, other=0.0).to(tl.float32)
    sigmoid = _sigmoid(gate, out.dtype.element_ty == tl.float32)
    silu = gate * sigmoid
    at = out + rows[:, None] * (2 * k) + cols[None, :]
    tl.store(at, d * up * (sigmoid + silu * (1 - sigmoid)), mask=mask)
    tl.store(at + k, d * silu, mask=mask)


def _swiglu_triton(
    gate_up: Tensor, act_aug: Tensor, columns: AugColumns, shrink: Shrink | None
) -> None:
    lora = shrink is not None
    launch_splits(
        _swiglu_shrink_kernel, SPLITS, gate_up, act_aug, columns, shrink, width=_WIDTH, LORA=lora,
        num_stages=2,
    )  # fmt: skip


def _swiglu_backward_triton(
    dact: Tensor, gate_up: Tensor, ds: Tensor | None, shrink: Shrink | None
) -> Tensor:
    """Return d(gate_up); here the low-rank part is added in registers, not in place."""
    out = torch.empty_like(gate_up, memory_format=torch.contiguous_format)
    m, k = dact.shape
    group = GroupLaunch.of(shrink)
    launch(
        _swiglu_backward_kernel,
        (triton.cdiv(m, TILE_ROWS), triton.cdiv(k, _WIDTH)),
        dact=dact,
        ds=ds,
        gate_up=gate_up,
        out=out,
        m=m,
        k=k,
        dact_stride=dact.stride(0),
        ds_stride=0 if ds is None else ds.stride(0),
        in_stride=gate_up.stride(0),
        MEMBERS=group.members,
        RANK_TILES=rank_tiles(group.rank),
        ROWS=TILE_ROWS,
        WIDTH=_WIDTH,
        DOT=dot_type(dact.dtype),
        **group.backward_arguments,
        num_warps=8 if dact.dtype == torch.float32 else 4,  # at most 128 registers a thread
    )
    return out


def _swiglu_native(gate_up: Tensor, out: Tensor, s: Tensor | None, shrink: Shrink | None) -> None:
    lora_a = shrink.lora_a if shrink else None
    torch.ops.cqa.swiglu_shrink(gate_up, out, s, lora_a, *native_arguments(shrink))


def _swiglu_backward_native(
    dact: Tensor, gate_up: Tensor, ds: Tensor | None, shrink: Shrink | None
) -> Tensor:
    out = torch.empty_like(gate_up)
    lora_a = shrink.lora_a if shrink else None
    torch.ops.cqa.swiglu_shrink_backward(dact, ds, lora_a, gate_up, out, *native_arguments(shrink))
    return out


_SWIGLU = AugOp(
    reference=swiglu_ref,
    reference_backward=_swiglu_backward_ref,
    native=_swiglu_native,
    native_backward=_swiglu_backward_native,
    triton=_swiglu_triton,
    triton_backward=_swiglu_backward_triton,
    reads_x=True,
)


def swiglu_shrink(
    gate_up: Tensor,  # (M, 2I): gate, then up
    columns: AugColumns,  # of the down projection, features = I
    shrink: Shrink | None,
    *,
    backend: Backend | None = None,
) -> Tensor:  # (M, columns.total)
    """Gate, and append the low-rank columns of down; see `norm_shrink` for the layout."""
    backend = choose(backend, gate_up.device, gate_up.dtype)
    return augment(_SWIGLU, gate_up, columns, shrink, dtype=gate_up.dtype, backend=backend)
