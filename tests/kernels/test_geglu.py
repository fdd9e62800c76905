"""GeGLU equals torch's tanh form of GELU in fp64, forward and backward."""

import pytest
import torch
import torch.nn.functional as F
from helpers import assert_as_accurate

from cqa.kernels.geglu import geglu


def theirs(x: torch.Tensor) -> torch.Tensor:
    gate, up = x.chunk(2, dim=1)
    return F.gelu(gate, approximate="tanh") * up


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("scale", [0.1, 1.0, 30.0, 1e4])
def test_values_and_gradients_are_those_of_torch(dtype, scale):
    generator = torch.Generator().manual_seed(1)
    x = (torch.randn(9, 2 * 37, generator=generator) * scale).to(dtype)
    dy = torch.randn(9, 37, generator=generator).to(dtype)
    found = {}
    for name, function, given in (
        ("ours", geglu, x),
        ("naive", theirs, x),
        ("truth", theirs, x.double()),
    ):
        leaf = given.clone().requires_grad_()
        out = function(leaf)
        out.backward(dy.to(out.dtype))
        found[name] = (out.detach(), leaf.grad)
    for name, ours, naive, truth in zip(("act", "grad"), *found.values(), strict=True):
        assert ours.dtype == dtype
        assert_as_accurate(name, ours, naive, truth)
