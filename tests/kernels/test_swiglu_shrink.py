"""The gate, alone and before LoRA's down projection, against float64."""

import pytest
import torch
from kernels.lora_problem import (
    ADAPTER,
    BIAS,
    DTYPES,
    RANKS,
    SETTINGS,
    SIZES,
    Problem,
    check_base,
    check_constants,
    check_no_rows,
    check_projections,
)

from cqa.kernels.aug_columns import AugColumns
from cqa.kernels.shrink import Shrink
from cqa.kernels.swiglu_shrink import swiglu_ref, swiglu_shrink

pytestmark = pytest.mark.usefixtures("memory_full_of_nan")


@SIZES
@SETTINGS
@DTYPES
def test_projections_and_gradients_are_as_accurate_as_plain_torch(m, k, settings, dtype, backend):
    check_projections(Problem("swiglu", m, k, **settings), dtype, backend)


@RANKS
def test_ranks_of_several_tiles_are_as_accurate_as_plain_torch(rank, backend):
    check_projections(Problem("swiglu", 7, 40, rank=rank), torch.float32, backend)


@BIAS
@pytest.mark.parametrize("k", [13, 48])
def test_without_an_adapter_the_base_alone_is_projected(bias, k):
    check_base(Problem("swiglu", 7, k, bias=bias))


@BIAS
@ADAPTER
def test_constant_and_padding_columns_are_exactly_one_and_zero(bias, with_adapter):
    check_constants(Problem("swiglu", 5, 13, bias=bias, multiple=64), with_adapter=with_adapter)


@pytest.mark.parametrize("p", [0.0, 0.3])
def test_no_rows_give_no_gradient(p):
    check_no_rows("swiglu", p)


def test_swiglu_of_saturated_gates_stays_finite():
    gates = torch.tensor([-1e4, -200.0, -80.0, 0.0, 80.0, 1e4])
    gate_up = torch.cat((gates, torch.full((6,), 3.0)))[None].requires_grad_()
    columns = AugColumns(6, False, 2, 16)
    a = torch.randn(2, 6)
    out = swiglu_shrink(gate_up, columns, Shrink(a, (0,)))
    torch.testing.assert_close(out[0, :6], 3 * torch.nn.functional.silu(gates))
    torch.testing.assert_close(swiglu_ref(gate_up)[0], out[0, :6])
    (grad,) = torch.autograd.grad(out[:, :6].sum(), gate_up)
    assert grad.isfinite().all()


@pytest.mark.parametrize("n_threads", [1, 3])  # three leave a row on the border of two threads
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["fp32", "fp64"])
def test_bits_of_a_gated_row_do_not_depend_on_its_place(n_threads, dtype):
    threads_before = torch.get_num_threads()
    torch.set_num_threads(n_threads)
    moved, expected = [], []
    for width in range(301, 341):
        gate_up = torch.randn(256, 2 * width, dtype=dtype) * 3
        order = torch.randperm(256)
        moved.append(swiglu_ref(gate_up[order]))
        expected.append(swiglu_ref(gate_up)[order])
    torch.set_num_threads(threads_before)
    assert all(torch.equal(a, b) for a, b in zip(moved, expected, strict=True))
