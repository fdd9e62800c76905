"""What is added to the projection of an augmented input; its products are in test_aug_op."""

import torch

from cqa.kernels.aug_linear import aug_linear


def test_residual_is_added_once_and_passes_its_gradient_on():
    x, weight = torch.randn(4, 16), torch.randn(3, 16)
    residual = torch.randn(4, 3, requires_grad=True)
    y = aug_linear(x, weight, residual=residual)
    torch.testing.assert_close(y, aug_linear(x, weight) + residual)
    dy = torch.randn(4, 3)
    assert torch.equal(torch.autograd.grad(y, residual, dy)[0], dy)


def test_wider_residual_is_added_in_its_own_dtype():
    x, weight = torch.randn(4, 16), torch.randn(3, 16)
    residual = torch.randn(4, 3, dtype=torch.float64)
    assert torch.equal(aug_linear(x, weight, residual=residual), residual + aug_linear(x, weight))


def test_residual_that_may_be_overwritten_is_only_where_the_library_copies_it(backend):
    x, weight = torch.randn(4, 16), torch.randn(3, 16)
    leaf, dy = torch.randn(4, 3, requires_grad=True), torch.randn(4, 3)
    expected, residual = aug_linear(x, weight, residual=leaf.detach()), leaf * 1
    y = aug_linear(x, weight, residual=residual, overwrite=True)
    assert torch.equal(y, expected)
    assert (y.data_ptr() == residual.data_ptr()) == (backend == "triton")
    assert torch.equal(torch.autograd.grad(y, leaf, dy)[0], dy)
