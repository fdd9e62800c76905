"""Copies of parts of one flat buffer, scaled, into blocks of many matrices, in one launch.

    target_s[i, j] = flat[offset_s + i · columns_s + j] · scale_s        for every segment s

After a step the weights that the products read follow the fp32 masters so: scaling·B goes into its
block of the augmented weight, in the dtype of that weight.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from cqa.kernels.backend import Backend, choose
from cqa.kernels.launch import launch

_TILE = 4096  # elements a program copies


@dataclass(frozen=True, slots=True)
class Segment:
    """One part of the flat buffer and the matrix it goes to."""

    offset: int  # of its first element in the flat buffer
    target: Tensor  # (rows, columns), elements of a row side by side
    scale: float


class ScatterTable:
    """Segments, and what the kernel needs to know of them; keeps the targets alive."""

    def __init__(self, segments: Sequence[Segment]) -> None:
        """Note the segments' addresses. All targets share one dtype and device.

        Raises:
            ValueError: They do not, or a row of a target is not contiguous.
        """
        self.segments = tuple(segments)
        kinds = {(s.target.dtype, s.target.device) for s in self.segments}
        if len(kinds) > 1 or any(s.target.stride(1) != 1 for s in self.segments):
            raise ValueError("expected matrices of one dtype on one device, rows contiguous")
        tiles = [
            (s, tile)
            for s, segment in enumerate(self.segments)
            for tile in range(triton.cdiv(segment.target.numel(), _TILE))
        ]
        places = [
            (s.offset, s.target.data_ptr(), *s.target.shape, s.target.stride(0))
            for s in self.segments
        ]
        scales = [segment.scale for segment in self.segments]
        device = self.segments[0].target.device if self.segments else None
        self.tiles = torch.tensor(tiles, dtype=torch.int32, device=device).view(-1, 2)
        self.places = torch.tensor(places, dtype=torch.int64, device=device).view(-1, 5)
        self.scales = torch.tensor(scales, dtype=torch.float32, device=device)


def scatter_ref(flat: Tensor, table: ScatterTable) -> None:
    """The definition."""
    for segment in table.segments:
        part = flat[segment.offset : segment.offset + segment.target.numel()]
        segment.target.copy_(part.view(segment.target.shape) * segment.scale)


@triton.jit
def _scatter(  # a program: one tile of a segment
    flat,  # (P,)
    tiles,  # (tiles, 2): segment, and number of the tile within it
    places,  # (segments, 5): offset, address, rows, columns, row stride
    scales,  # (segments,)
    some_target,  # only its type counts
    TILE: tl.constexpr,
):
    segment = tl.load(tiles + 2 * tl.program_id(0))
    tile = tl.load(tiles + 2 * tl.program_id(0) + 1)
    place = places + 5 * segment
    part = flat + tl.load(place)
    target = tl.load(place + 1).to(some_target.dtype)
    columns = tl.load(place + 3).to(tl.int32)
    count = tl.load(place + 2).to(tl.int32) * columns
    i = tile * TILE + tl.arange(0, TILE)
    value = tl.load(part + i, mask=i < count, other=0) * tl.load(scales + segment)
    row = i // columns
    to = target + row * tl.load(place + 4) + (i - row * columns)
    tl.store(to, value.to(some_target.dtype.element_ty), mask=i < count)


def _scatter_triton(flat: Tensor, table: ScatterTable) -> None:
    if table.segments:
        launch(
            _scatter,
            (table.tiles.shape[0],),
            flat=flat,
            tiles=table.tiles,
            places=table.places,
            scales=table.scales,
            some_target=table.segments[0].target,
            TILE=_TILE,
            num_warps=8,
        )


@torch.no_grad()
def scatter(flat: Tensor, table: ScatterTable, *, backend: Backend | None = None) -> None:
    """Write every segment of a flat fp32 buffer, scaled and rounded, to its target.

    Args:
        flat: The buffer, shape (P,), fp32.
        table: Where its parts go; built once.
        backend: See cqa.kernels.backend.
    """
    triton_runs = choose(backend, flat.device, flat.dtype) == "triton"
    (_scatter_triton if triton_runs else scatter_ref)(flat, table)
