"""The norm, alone and before LoRA projections, against float64."""

import pytest
import torch
from kernels.lora_problem import (
    ADAPTER,
    BIAS,
    DTYPES,
    EPS,
    RANKS,
    SETTINGS,
    SIZES,
    Problem,
    before,
    check_base,
    check_constants,
    check_no_rows,
    check_projections,
)

from cqa.kernels.rms_norm import norm_shrink, rms_norm_ref
from cqa.kernels.shrink import Shrink

pytestmark = pytest.mark.usefixtures("memory_full_of_nan")


@SIZES
@SETTINGS
@DTYPES
def test_projections_and_gradients_are_as_accurate_as_plain_torch(m, k, settings, dtype, backend):
    check_projections(Problem("norm", m, k, **settings), dtype, backend)


@RANKS
def test_ranks_of_several_tiles_are_as_accurate_as_plain_torch(rank, backend):
    check_projections(Problem("norm", 7, 40, rank=rank), torch.float32, backend)


@BIAS
@pytest.mark.parametrize("k", [13, 48])
def test_without_an_adapter_the_base_alone_is_projected(bias, k):
    check_base(Problem("norm", 7, k, bias=bias))


@BIAS
@ADAPTER
def test_constant_and_padding_columns_are_exactly_one_and_zero(bias, with_adapter):
    check_constants(Problem("norm", 5, 13, bias=bias, multiple=64), with_adapter=with_adapter)


@pytest.mark.parametrize("p", [0.0, 0.3])
def test_no_rows_give_no_gradient(p):
    check_no_rows("norm", p)


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
