"""The gate, alone; the down projection behind it is tested in test_aug_op."""

import numpy as np
import pytest
import torch
from kernels.marks import DTYPES

from cqa.kernels.aug_columns import AugColumns
from cqa.kernels.shrink import Shrink
from cqa.kernels.swiglu_shrink import swiglu_ref, swiglu_shrink

pytestmark = pytest.mark.usefixtures("memory_full_of_nan")


@DTYPES
def test_swiglu_of_saturated_gates_stays_finite(dtype):
    gates = torch.tensor([-1e4, -200.0, -88.0, 0.0, 80.0, 1e4], dtype=dtype)
    gate_up = torch.cat((gates, torch.full((6,), 3.0, dtype=dtype)))[None].requires_grad_()
    columns = AugColumns(6, False, 2, 16)
    a = torch.randn(2, 6)
    with np.errstate(over="ignore"):  # exp of 1e4 is infinite in 16 bits, and its inverse 0
        out = swiglu_shrink(gate_up, columns, Shrink(a, (0,)))
        torch.testing.assert_close(out[0, :6], 3 * torch.nn.functional.silu(gates))
        torch.testing.assert_close(swiglu_ref(gate_up)[0], out[0, :6])
        (grad,) = torch.autograd.grad(out[:, :6].sum(), gate_up)
    truth = torch.autograd.functional.jacobian(
        lambda x: (torch.nn.functional.silu(x[:6]) * x[6:]).sum(), gate_up[0].detach().double()
    )
    torch.testing.assert_close(grad[0].double(), truth, rtol=2e-2, atol=1e-5)


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
