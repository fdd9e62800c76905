"""Row statistics of logits by the Triton kernel, against float64."""

from dataclasses import astuple

import pytest
import torch
from helpers import assert_as_accurate
from kernels.conftest import ON_GPU, TRITON
from kernels.logits import KINDS, SIZES, at, far_apart, rows_of, statistics

from cqa.kernels.logit_stats import logit_stats_triton

pytestmark = pytest.mark.usefixtures("memory_full_of_nan")


@pytest.fixture(params=[TRITON])
def backend(request):
    """The reference and the native op are tested with the products, in test_token_logprobs.py."""
    return request.param


@KINDS
@SIZES
def test_row_statistics_are_as_accurate_as_log_softmax(kind, v):
    z, target = rows_of(kind, v)
    before = z.clone()
    stats = logit_stats_triton(z, target, at(z, target).double())
    naive, truth = statistics(z, target), statistics(z.double(), target)
    for name in truth:
        assert_as_accurate(name, getattr(stats, name), naive[name], truth[name])
    assert stats.rank.tolist() == (z > at(z, target)[:, None]).sum(1).tolist()
    assert torch.equal(z, before)


def test_more_digits_of_the_targets_logit_are_used():
    z, target = rows_of("normal", 300)
    exact = at(z, target).double() + 1e-3 * torch.randn(5)
    stats = logit_stats_triton(z, target, exact)
    known = z.double().scatter(1, target[:, None], exact[:, None])
    for name, truth in statistics(known, target).items():
        torch.testing.assert_close(getattr(stats, name), truth, rtol=1e-6, atol=1e-6)


@pytest.mark.skipif(ON_GPU, reason="a device has no memory to spare on empty space")
def test_offsets_of_rows_have_64_bits():
    z, target = rows_of("normal", 40, 3)
    exact = at(z, target).double()
    far = far_apart(z.bfloat16())
    near = far.clone()
    for a, b in zip(
        astuple(logit_stats_triton(far, target, exact, varentropy=True)),
        astuple(logit_stats_triton(near, target, exact, varentropy=True)),
        strict=True,
    ):
        assert torch.equal(a, b)
