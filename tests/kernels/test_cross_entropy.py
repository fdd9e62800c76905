"""Loss and gradient rows by the Triton kernel, against autograd in float64."""

import math

import pytest
import torch
from helpers import assert_as_accurate
from kernels.conftest import ON_GPU, TRITON
from kernels.logits import KINDS, SIZES, far_apart, rows_of, statistics
from kernels.marks import DTYPES
from torch import Tensor

from cqa.kernels.cross_entropy import cross_entropy

pytestmark = pytest.mark.usefixtures("memory_full_of_nan")


@pytest.fixture(params=[TRITON])
def backend(request):
    """The reference and the native op are tested with the products, in test_token_logprobs.py."""
    return request.param


def autograd_rows(z: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    leaf = z.detach().requires_grad_()
    logp = statistics(leaf, target)["logp"]
    return logp.detach(), torch.autograd.grad(-logp.sum(), leaf)[0]


@KINDS
@SIZES
def test_losses_and_gradients_are_as_accurate_as_autograd(kind, v):
    z, target = rows_of(kind, v)
    naive, truth = autograd_rows(z, target), autograd_rows(z.double(), target)
    logp, gradient = cross_entropy(z, target, torch.float32, backend="triton")
    assert gradient.data_ptr() == z.data_ptr()
    assert_as_accurate("logp", logp, naive[0], truth[0])
    assert_as_accurate("gradient", gradient, naive[1], truth[1])


@KINDS
@DTYPES
def test_gradient_rows_of_16_bits_are_rounded_once(kind, dtype):
    z, target = rows_of(kind, 4099)
    z = z.to(dtype)
    naive, truth = autograd_rows(z.float(), target), autograd_rows(z.double(), target)
    _, gradient = cross_entropy(z, target, torch.bfloat16, backend="triton")
    assert gradient.dtype == torch.bfloat16
    assert_as_accurate("gradient", gradient, naive[1].bfloat16(), truth[1])


@pytest.mark.parametrize("margin", [5.0, 14.0, 30.0])
def test_gradient_of_a_nearly_certain_target_keeps_its_digits(margin):
    z, target = torch.zeros(1, 300), torch.tensor([7])
    z[0, 7] = margin
    logp, gradient = cross_entropy(z, target, torch.float32, backend="triton")
    rest = 299 * math.exp(-margin)
    assert -logp.item() == pytest.approx(math.log1p(rest), rel=1e-6)
    assert -gradient[0, 7].item() == pytest.approx(rest / (1 + rest), rel=1e-5)


def test_loss_row_does_not_depend_on_the_others_and_keeps_its_nan_to_itself():
    z, target = rows_of("normal", 1003, 6)
    z[2, 500] = math.nan
    together = cross_entropy(z.clone(), target, torch.float32, backend="triton")
    assert together[0].isnan().tolist() == [i == 2 for i in range(6)]
    for i in (0, 1, 5):
        alone = cross_entropy(z[[i]].clone(), target[[i]], torch.float32, backend="triton")
        for whole, part in zip(together, alone, strict=True):
            assert torch.equal(whole[[i]], part)


@pytest.mark.skipif(ON_GPU, reason="a device has no memory to spare on empty space")
def test_offsets_of_rows_have_64_bits():
    z, target = rows_of("normal", 40, 3)
    far = far_apart(z.bfloat16())
    near = far.clone()
    expected = cross_entropy(near, target, torch.bfloat16, backend="triton")
    for a, b in zip(
        cross_entropy(far, target, torch.bfloat16, backend="triton"), expected, strict=True
    ):
        assert torch.equal(a, b)
