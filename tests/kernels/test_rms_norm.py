"""The norm, alone; the projections behind it are tested in test_aug_op."""

import pytest
import torch
from kernels.lora_problem import EPS, Problem, before
from kernels.marks import ADAPTER

from cqa.kernels.rms_norm import norm_shrink, rms_norm_ref
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
