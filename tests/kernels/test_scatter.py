"""Copies of parts of the flat buffer into blocks of matrices."""

import pytest
import torch
from kernels.marks import DTYPES

from cqa.kernels.scatter import ScatterTable, Segment, scatter


@DTYPES
def test_segments_go_scaled_to_their_blocks_and_nowhere_else(dtype):
    shapes = {
        "block": (7, 5),
        "tall": (3000, 2),
        "wide": (3, 2100),
        "whole": (4, 4),
        "none": (0, 3),
    }
    flat = (
        torch.randint(-128, 128, (20_000,)) / 64
    ).float()  # exact in bf16, scaled by powers of 2
    weights, segments, offset = {}, [], 11
    for i, (name, (rows, columns)) in enumerate(shapes.items()):
        weights[name] = torch.full((rows + 2, columns + 6), torch.nan, dtype=dtype)
        target = weights[name][1 : rows + 1, 3 : columns + 3]
        segments.append(Segment(offset, target, 2.0**-i))
        offset += rows * columns + 3
    scatter(flat, ScatterTable(segments))
    for segment, weight in zip(segments, weights.values(), strict=True):
        part = flat[segment.offset :][: segment.target.numel()]
        assert torch.equal(segment.target.float(), part.view(segment.target.shape) * segment.scale)
        assert weight.isnan().sum() == weight.numel() - segment.target.numel()


def test_table_without_segments_scatters_nothing():
    flat, table = torch.arange(3.0), ScatterTable([])
    scatter(flat, table)
    assert flat.tolist() == [0, 1, 2]
    assert (len(table.tiles), len(table.places), len(table.scales)) == (0, 0, 0)


@pytest.mark.parametrize("odd", [torch.zeros(2, 2).half(), torch.zeros(2, 4)[:, ::2]])
def test_targets_that_one_launch_cannot_reach_are_refused(odd):
    with pytest.raises(ValueError, match="expected matrices of one dtype on one device"):
        ScatterTable([Segment(0, torch.zeros(2, 2), 1.0), Segment(4, odd, 1.0)])
