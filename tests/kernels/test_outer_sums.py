"""Tall products, many in one launch: where each reads and writes, and how accurately."""

from itertools import accumulate

import pytest
import torch
from helpers import assert_as_accurate
from kernels.marks import DTYPES

from cqa.kernels.arrivals import arrivals
from cqa.kernels.outer_sums import _ROWS, OuterSum, outer_sums, outer_sums_native, shares_of
from cqa.kernels.philox import NO_DROPOUT, Dropout, GroupDropout

HEIGHTS, GAP = (70, 1, 9), 3  # columns of x that each product takes; others lie between them
SCALE = 1.75


@pytest.mark.usefixtures("memory_full_of_nan")
@DTYPES
@pytest.mark.parametrize("rank", [1, 5, 64, 100, 256])
@pytest.mark.parametrize("m", [1, 64, 131])
def test_products_of_a_group_are_as_accurate_as_plain_torch(m, rank, dtype, backend):
    if backend == "reference" or (backend == "native" and dtype != torch.float32):
        pytest.skip("the reference has no such op, and the native one is for fp32")
    starts = [0, *accumulate(height + GAP for height in HEIGHTS)]
    x = torch.randn(m, starts[-1]).to(dtype)
    s = torch.randn(m, len(HEIGHTS) * rank + 2).to(dtype)
    out = torch.empty(sum(HEIGHTS), rank)
    firsts = [0, *accumulate(HEIGHTS)]
    sums = tuple(
        OuterSum((starts[g], starts[g] + height), 2 + g * rank, firsts[g] * rank)
        for g, height in enumerate(HEIGHTS)
    )
    if backend == "native":
        outer_sums_native(x, s, out, sums=sums, scale=SCALE)
    else:
        outer_sums(x, s, out, sums, (rank, 1), rank, scale=SCALE, dropout=NO_DROPOUT)
    for g, part in enumerate(sums):
        left, right = x[:, slice(*part.columns)], s[:, part.s_column : part.s_column + rank]
        ours = out[firsts[g] : firsts[g + 1]]
        truth = left.double().T @ right.double() * SCALE
        assert_as_accurate(f"product {g}", ours, left.float().T @ right.float() * SCALE, truth)


@pytest.mark.parametrize("rank", [4, 72])
def test_each_product_takes_x_as_its_own_member_dropped_it(rank, backend):
    if backend != "triton":
        pytest.skip("the native op does without dropout, shrink_da has it")
    m, k, modules = 40, 100, (7, 12)
    dropout = Dropout(0.3, 3, 11, torch.arange(m) + 100)
    x, s = torch.randn(m, k), torch.randn(m, len(modules) * rank)
    out = torch.empty(len(modules) * rank, k)
    sums = tuple(OuterSum((0, k), g * rank, g * rank * k) for g in range(len(modules)))
    group = GroupDropout.of(dropout, modules, dropout.kept(modules, k))
    outer_sums(x, s, out, sums, (1, k), rank, scale=dropout.scale, dropout=group)
    for g, module in enumerate(modules):
        ranks = slice(g * rank, (g + 1) * rank)
        dropped = x.double() * dropout.keep(module, k).to(x.device) * dropout.scale
        torch.testing.assert_close(
            out[ranks].double(), s[:, ranks].double().T @ dropped, rtol=1e-5, atol=1e-5
        )


@pytest.mark.parametrize("m", [0, 1, 64, 65, 500, 1400, 20_000])
@pytest.mark.parametrize("tiles", [1, 56, 168, 296, 592, 4000])
def test_shares_cover_all_rows_and_none_is_empty(m, tiles):
    shares, share = shares_of(m, tiles)
    assert share % _ROWS == 0
    assert shares * share >= m
    assert (shares - 1) * share < max(m, 1)
    assert 1 <= shares <= 8


@pytest.mark.parametrize("strides", ["rank-inside", "columns-inside"])
@pytest.mark.parametrize("m", [9, 200])  # one share, several
def test_a_product_is_added_to_what_is_there_with_the_same_bits_every_time(m, strides, backend):
    if backend != "triton":
        pytest.skip("the native op writes; what it wrote is added by torch")
    k, rank = 80, 8
    x, s, before = torch.randn(m, k), torch.randn(m, rank), torch.randn(k * rank + 2)
    of_out = (rank, 1) if strides == "rank-inside" else (1, k)
    sums = (OuterSum((0, k), 0, 1),)

    def formed(out, *, add):
        outer_sums(x, s, out, sums, of_out, rank, scale=SCALE, dropout=NO_DROPOUT, add=add)
        return out

    written, added = (formed(before.clone(), add=add) for add in (False, True))
    product = x.double().T @ s.double() * SCALE
    truth = before.double()
    truth[1:-1] += (product.T if of_out == (1, k) else product).reshape(-1)
    torch.testing.assert_close(added.double(), truth, rtol=0, atol=1e-4)
    assert torch.equal(added[1:-1], before[1:-1] + written[1:-1])
    assert torch.equal(added[[0, -1]], before[[0, -1]])
    assert torch.equal(formed(before.clone(), add=True), added)
    assert not arrivals(1, added.device).any()  # the counters are as they were
