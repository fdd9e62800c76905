"""The norm, alone; the projections behind it are tested in test_aug_op."""

import pytest
import torch
from kernels.lora_problem import (
    EPS,
    Problem,
    assert_all_as_accurate,
    before,
    fused,
    plain,
)
from kernels.marks import ADAPTER, DTYPES
from torch import Tensor

from cqa.kernels import rms_norm as op
from cqa.kernels.aug_columns import AugColumns
from cqa.kernels.rms_norm import norm_shrink, norm_shrink_beside, rms_norm_ref
from cqa.kernels.shrink import Shrink

pytestmark = pytest.mark.usefixtures("memory_full_of_nan")


@pytest.mark.parametrize("scale", [1e-4, 1.0, 1e4], ids=["small", "unit", "large"])
def test_norm_of_16_bit_inputs_is_rounded_once(scale):
    x = (torch.randn(33, 50) * scale).to(torch.bfloat16)
    weight = (1 + torch.randn(50) / 4).to(torch.bfloat16)
    truth = before("norm", x.double(), weight.double())
    error = (rms_norm_ref(x, weight, EPS).double() - truth).abs()
    assert (error <= truth.abs() * (2**-8 * 1.001)).all()  # half a unit in the last place of bf16


@ADAPTER
def test_norm_of_a_wider_input_is_rounded_once_to_the_dtype_of_the_weight(with_adapter):
    problem = Problem("norm", 9, 40)
    t = problem.tensors(torch.float32)
    x = torch.randn(9, 40, dtype=torch.float64)
    shrink = Shrink(t["a"], problem.modules) if with_adapter else None
    x_aug = norm_shrink(x, t["norm"], EPS, problem.columns, shrink)
    truth = before("norm", x, t["norm"].double())
    assert x_aug.dtype == torch.float32
    assert torch.equal(x_aug[:, :40], truth.float())


def two_uses(x: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """The norm and what goes on beside it, by the op."""
    columns = AugColumns(x.shape[1], False, 0, 1)
    return norm_shrink_beside(x, weight, EPS, columns, None)


def two_plain_uses(x: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    return before("norm", x, weight), x * 1


def assert_both_gradients_are_added(k: int, dtype: torch.dtype) -> None:
    x, dy, dpassed = (torch.randn(9, k).to(dtype) * scale for scale in (3, 1, 2))
    weight = torch.randn(k).to(dtype)

    def run(uses, dtype: torch.dtype) -> dict[str, Tensor]:
        leaf = x.to(dtype).requires_grad_()
        normed, passed = uses(leaf, weight.to(dtype))
        assert torch.equal(passed, leaf)
        (dx,) = torch.autograd.grad((normed, passed), leaf, (dy.to(dtype), dpassed.to(dtype)))
        return {"normed": normed.detach(), "dx": dx}

    truth, naive = run(two_plain_uses, torch.float64), run(two_plain_uses, dtype)
    assert_all_as_accurate(run(two_uses, dtype), naive, truth)


@DTYPES
@pytest.mark.parametrize("k", [40, 300])
def test_input_is_passed_on_and_both_its_gradients_are_added(k, dtype):
    assert_both_gradients_are_added(k, dtype)


def test_input_passed_on_alone_has_its_gradient():
    x = torch.randn(9, 40, requires_grad=True)
    _, passed = two_uses(x, torch.randn(40))
    assert torch.equal(torch.autograd.grad(passed, x, x.detach())[0], x)


def test_rows_too_wide_for_the_registers_are_as_accurate(backend, monkeypatch):
    if backend != "triton":
        pytest.skip("the others hold no tiles")
    monkeypatch.setattr(op, "WIDEST", 16)
    problem = Problem("norm", 7, 40)
    truth, naive = plain(problem, torch.float64), plain(problem, torch.float32)
    assert_all_as_accurate(fused(problem, torch.float32), naive, truth)
    assert_both_gradients_are_added(40, torch.float32)


@pytest.mark.usefixtures("sums_in_order")
def test_bits_of_a_row_depend_neither_on_its_place_nor_on_the_number_of_rows(backend):
    if backend == "reference":
        pytest.skip("its low-rank products are a library's")
    problem = Problem("norm", 37, 300)
    t = problem.tensors(torch.float32)
    dy = torch.randn(37, problem.columns.total)

    def run(rows: Tensor) -> list[Tensor]:
        assert problem.dropout is not None
        dropout = problem.dropout.select(rows)
        x = t["x"][rows].requires_grad_()
        shrink = Shrink(t["a"], problem.modules, dropout)
        x_aug, passed = norm_shrink_beside(x, t["norm"], EPS, problem.columns, shrink)
        dx = torch.autograd.grad((x_aug, passed), x, (dy[rows], t["x"][rows]))[0]
        return [x_aug.detach(), dx]

    everything = run(torch.arange(37))
    for rows in (torch.arange(36, 1, -1), torch.tensor([5])):
        for part, whole in zip(run(rows), everything, strict=True):
            assert torch.equal(part, whole[rows])
