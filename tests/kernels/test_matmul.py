"""The product with a fixed order of summation: accuracy, layouts, and bits."""

import os
import subprocess
import sys

import pytest
import torch
from helpers import ROOT, assert_as_accurate

from cqa.kernels.matmul import keep_sums_whole, mm

SHAPES = [
    (1, 1, 1), (1, 300, 33), (7, 64, 5), (12, 128, 32), (13, 129, 31), (48, 200, 512),
    (100, 1, 70), (61, 1024, 513), (300, 17, 40), (25, 2500, 66),
]  # fmt: skip


def factors(m: int, k: int, n: int, dtype: torch.dtype = torch.float64) -> list[torch.Tensor]:
    return [torch.randn(*shape).to(dtype) for shape in ((m, k), (k, n), (m, n))]


@pytest.mark.parametrize(("m", "k", "n"), SHAPES, ids=str)
@pytest.mark.parametrize("with_start", [False, True], ids=["product", "start"])
def test_product_is_as_accurate_as_plain_torch(m, k, n, with_start):
    a, b, start = (t.float() for t in factors(m, k, n))
    start = start if with_start else None
    truth = a.double() @ b.double() + (0 if start is None else start.double())
    naive = a @ b if start is None else torch.addmm(start, a, b)
    assert_as_accurate("product", mm(a, b, start), naive, truth)


def transposed(t: torch.Tensor) -> torch.Tensor:
    return t.T.contiguous().T


def padded(t: torch.Tensor) -> torch.Tensor:
    wide = t.new_full((t.shape[0], t.shape[1] + 3), torch.nan)
    wide[:, : t.shape[1]] = t
    return wide[:, : t.shape[1]]


def every_other(t: torch.Tensor) -> torch.Tensor:
    return t.repeat_interleave(2, 0).repeat_interleave(2, 1)[::2, ::2]


LAYOUTS = [torch.Tensor.contiguous, transposed, padded, every_other]


@pytest.mark.parametrize("left", LAYOUTS)
@pytest.mark.parametrize("right", LAYOUTS)
@pytest.mark.parametrize(("m", "k", "n"), [(1, 1, 1), (1, 9, 40), (30, 1, 40), (37, 150, 70)])
def test_layout_of_the_factors_does_not_change_the_product(left, right, m, k, n):
    a, b, _ = (t.float() for t in factors(m, k, n))
    torch.testing.assert_close(mm(left(a), right(b)), mm(a, b), rtol=1e-6, atol=1e-6)


def test_bits_of_a_row_depend_on_nothing_but_the_row(backend):
    if backend != "native":
        pytest.skip("a library's order of summation follows the shape of the whole product")
    a, b, start = (t.float() for t in factors(150, 777, 100))
    whole = mm(a, b, start)
    for rows in ([0], [149], list(range(7, 43)), torch.randperm(150).tolist()):
        assert torch.equal(mm(a[rows], b, start[rows]), whole[rows])
    for columns in (slice(0, 1), slice(37, 71), slice(99, 100)):
        assert torch.equal(mm(a, b[:, columns], start[:, columns].contiguous()), whole[:, columns])
    before = torch.get_num_threads()
    try:
        for n_threads in (1, 2, 3, 7):
            torch.set_num_threads(n_threads)
            assert torch.equal(mm(a, b, start), whole)
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_what_is_not_finite_stays_in_its_row_and_column(bad):
    a, b, _ = (t.float() for t in factors(40, 130, 70))
    a[17, 3], b[100, 66] = bad, bad
    spoiled = ~mm(a, b).isfinite()
    expected = torch.zeros(40, 70, dtype=torch.bool)
    expected[17], expected[:, 66] = True, True
    assert torch.equal(spoiled, expected)


def test_cublas_is_left_no_room_to_split_a_sum_unless_the_user_says_so(monkeypatch):
    monkeypatch.setattr(os, "environ", {"CUBLASLT_WORKSPACE_SIZE": "8"})
    keep_sums_whole()
    expected = {"CUBLASLT_WORKSPACE_SIZE": "8", "CUBLAS_WORKSPACE_CONFIG": ":16:8"}
    assert os.environ == expected


def test_empty_products():
    assert mm(torch.empty(0, 5), torch.empty(5, 3)).shape == (0, 3)
    assert torch.equal(mm(torch.empty(4, 0), torch.empty(0, 3)), torch.zeros(4, 3))


@pytest.mark.parametrize("tile", ["avx2", "plain"])
def test_every_tile_gives_the_same_product(tile, backend):
    if backend != "native":
        pytest.skip("tiles belong to the native product")
    code = """
import torch
from cqa.kernels.matmul import mm
torch.manual_seed(0)
a, b = torch.randn(61, 300), torch.randn(300, 70)
print((mm(a, b, backend="native").double() - a.double() @ b.double()).abs().max().item())
"""
    run = subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, "CQA_TILE": tile}, cwd=ROOT,
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert float(run.stdout) < 3e-5
