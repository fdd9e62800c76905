"""What every launch of a Triton kernel shares."""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl

# For kernels of rows: their number differs from pass to pass, and one form does for all of them.
_FREE = ["m", "n_rows", "plane", "share", "adds"]
any_rows = triton.jit(do_not_specialize=_FREE)
TILE_ROWS = 32  # of a tile of rows and features
_MOST_RANKS = 32  # of a tile: its operands then fit the 99 KiB of the smallest GPUs at any rank
INTERPRETED: bool = triton.knobs.runtime.interpret
_TYPES = {torch.bfloat16: tl.bfloat16, torch.float16: tl.float16, torch.float32: tl.float32}


def launch(kernel: Any, grid: tuple[int, ...], **arguments: Any) -> None:
    """Run a kernel on every program of a grid, its arguments by name; an empty grid runs none.

    Multiply-adds are fused whatever Triton's default is: the accuracy tests count on it.
    """
    if 0 not in grid:
        kernel[grid](enable_fp_fusion=True, **arguments)


def dot_type(dtype: torch.dtype) -> tl.dtype:
    """Return the operand type of `tl.dot` for tensors of a dtype.

    The interpreter multiplies bf16 as if it were integers, so there the operands are widened.
    """
    return tl.float32 if INTERPRETED else _TYPES[dtype]


def accumulator(dtype: torch.dtype) -> tl.dtype:
    """Return the type in which a row of a dtype is reduced."""
    return tl.float64 if dtype == torch.float64 else tl.float32


def rank_tile(rank: int) -> int:
    """Return the width of a tile over the ranks: a power of two that the matrix units take."""
    return min(_MOST_RANKS, max(16, int(triton.next_power_of_2(rank))))


def rank_tiles(rank: int) -> int:
    """Return how many such tiles a rank is cut into."""
    return int(triton.cdiv(rank, rank_tile(rank)))


def tile_width(dtype: torch.dtype) -> int:
    """Return how many columns of a row a program takes at a time: as many as fit its registers."""
    return 64 if dtype == torch.float32 else 128
