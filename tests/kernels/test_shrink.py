"""What the low-rank side does, whichever op it follows."""

import numpy as np
import pytest
import torch
from kernels.lora_problem import SCALING, Problem, augment, augmented_weight
from torch import Tensor

from cqa.kernels.arrivals import arrivals
from cqa.kernels.aug_linear import aug_linear
from cqa.kernels.philox import Dropout
from cqa.kernels.shrink import Shrink

pytestmark = pytest.mark.usefixtures("memory_full_of_nan")


def test_dropout_at_zero_is_no_dropout():
    dropped = Problem("norm", 9, 40)
    t = dropped.tensors(torch.float32)
    zero = Dropout(0.0, 3, 11, torch.arange(9))
    outs = [augment(dropped, t, Shrink(t["a"], dropped.modules, d)) for d in (zero, None)]
    assert torch.equal(*outs)


def test_adapter_gradients_do_not_need_the_gradient_of_the_input():
    problem = Problem("norm", 9, 40)

    def gradients(needs_input_grad: bool) -> tuple[Tensor, ...]:
        t = problem.tensors(torch.float32)
        t["x"].requires_grad_(needs_input_grad)
        trained = [t["a"], t["b0"], t["b1"], t["b2"]]
        for tensor in trained:
            tensor.requires_grad_()
        weight, members = augmented_weight(problem, t)
        x_aug = augment(problem, t, Shrink(t["a"], problem.modules, problem.dropout))
        y = aug_linear(x_aug, weight, tuple(members), scaling=SCALING)
        return torch.autograd.grad(y, trained, t["dy"])

    for with_input, without in zip(gradients(True), gradients(False), strict=True):
        assert torch.equal(with_input, without)


@pytest.mark.parametrize("op", ["norm", "swiglu", "copy"])
@pytest.mark.parametrize("rank", [3, 40])  # one tile of ranks, two
def test_what_dropout_keeps_is_noted_by_forward_to_the_bit(op, rank, backend):
    if backend != "triton":
        pytest.skip("the reference keeps masks, the native ops draw them again")
    problem = Problem(op, 37, 150, rank=rank)
    t = problem.tensors(torch.float32)
    t["a"].requires_grad_()
    x_aug = augment(problem, t, Shrink(t["a"], problem.modules, problem.dropout))
    saved = [tensor for tensor in x_aug.grad_fn.saved_tensors if tensor is not None]
    (kept,) = (tensor for tensor in saved if tensor.dtype == torch.uint8)
    assert kept.shape == (3, problem.m, 32)
    for noted in (kept, problem.dropout.kept(problem.modules, problem.k)):
        bits = np.unpackbits(noted.cpu().numpy(), axis=2, bitorder="little")[:, :, : problem.k]
        for mask, module in zip(bits, problem.modules, strict=True):
            assert np.array_equal(mask, problem.dropout.keep(module, problem.k).numpy())


def test_counters_of_shares_are_zero_again_after_every_launch():
    for m in (130, 9):  # the second launch finds what the first has left
        problem = Problem("copy", m, 300)
        t = problem.tensors(torch.float32)
        rows = augment(problem, t, Shrink(t["a"], problem.modules, problem.dropout))
        assert rows.isfinite().all()
        assert not arrivals(1, rows.device).any()
