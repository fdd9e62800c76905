"""The Triton routes from hidden states to token statistics, against float64."""

import math
from dataclasses import astuple

import pytest
import torch
from helpers import assert_as_accurate
from kernels.conftest import ON_GPU, TRITON
from kernels.logits import at, far_apart, statistics
from kernels.marks import DTYPES
from torch import Tensor

from cqa.kernels import fused_linear_logprob, token_logprobs
from cqa.kernels.token_logprobs import ROUTES, token_stats

pytestmark = pytest.mark.usefixtures("memory_full_of_nan")


@pytest.fixture(params=[TRITON])
def backend(request):
    """The reference and the native op are tested with the products, in test_token_logprobs.py."""
    return request.param


@pytest.fixture(autouse=True)
def _short_chunks(monkeypatch):
    """Padding costs a program a row."""
    monkeypatch.setattr(token_logprobs, "_TALLEST_CHUNK", 16)


def head_of(m: int, v: int, d: int, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    hidden = torch.randn(m, d) * 0.6
    head = torch.randn(v, d)
    return hidden.to(dtype), head.to(dtype), torch.randint(v, (m,))


@DTYPES
@pytest.mark.parametrize("route", ROUTES)
@pytest.mark.parametrize(("m", "v", "d"), [(60, 1100, 40), (70, 513, 64), (1, 1, 7)])
def test_both_routes_are_as_accurate_as_log_softmax(route, m, v, d, dtype):
    hidden, head, target = head_of(m, v, d, dtype)
    stats = token_stats(hidden, head, target, backend="triton", route=route)
    naive = statistics(hidden.float() @ head.float().T, target)
    truth = statistics(hidden.double() @ head.double().T, target)
    for name in truth:
        assert_as_accurate(name, getattr(stats, name), naive[name], truth[name])


@pytest.mark.parametrize("route", ROUTES)
def test_both_routes_count_ties_alike(route):
    hidden, head = torch.randint(-2, 3, (20, 8)).float(), torch.randint(-2, 3, (700, 8)).float()
    target = torch.randint(700, (20,))
    z = hidden @ head.T
    stats = token_stats(hidden, head, target, backend="triton", route=route)
    assert stats.rank.tolist() == (z > at(z, target)[:, None]).sum(1).tolist()


@pytest.mark.usefixtures("sums_in_order")
@pytest.mark.parametrize("d", [64, 200])
def test_a_copy_of_the_targets_row_is_not_above_it(d):
    hidden, head, target = head_of(30, 600, d, torch.float32)
    head[target[::2] // 2 + 300] = head[target[::2]]  # equal logits at other places of a tile
    head[599] = head[target[1]]
    stats = token_stats(hidden, head, target, backend="triton")
    truth = hidden.double() @ head.double().T
    clear = (truth - at(truth, target)[:, None]).abs() > 1e-5
    equal = (head == head[target][:, None]).all(2)
    assert (clear | equal).all()
    above = (truth > at(truth, target)[:, None]) & ~equal
    assert stats.rank.tolist() == above.sum(1).tolist()


def test_every_block_of_rows_meets_every_split_of_the_vocabulary(monkeypatch):
    monkeypatch.setattr(fused_linear_logprob, "_GROUP", 2)
    hidden, head, target = head_of(300, 1030, 16, torch.float32)  # five blocks, three splits
    stats = token_stats(hidden, head, target, backend="triton")
    truth = statistics(hidden.double() @ head.double().T, target)
    naive = statistics(hidden @ head.T, target)
    for name in truth:
        assert_as_accurate(name, getattr(stats, name), naive[name], truth[name])


def test_rows_in_several_launches_give_the_same_bits(monkeypatch):
    hidden, head, target = head_of(150, 300, 16, torch.float32)
    whole = token_stats(hidden, head, target, backend="triton", varentropy=True)
    monkeypatch.setattr(fused_linear_logprob, "_ROWS", 128)
    parts = token_stats(hidden, head, target, backend="triton", varentropy=True)
    for a, b in zip(astuple(whole), astuple(parts), strict=True):
        assert torch.equal(a, b)


@pytest.mark.filterwarnings("ignore:All-NaN slice")  # the interpreter's own remark
@pytest.mark.parametrize("route", ROUTES)
def test_a_hidden_state_that_is_not_a_number_spoils_its_own_row_alone(route):
    hidden, head, target = head_of(6, 600, 16, torch.float32)
    hidden[2, 3] = math.nan
    stats = token_stats(hidden, head, target, backend="triton", route=route)
    for field in (stats.logp, stats.entropy, stats.lse):
        assert field.isnan().tolist() == [i == 2 for i in range(6)]


@pytest.mark.skipif(ON_GPU, reason="a device has no memory to spare on empty space")
def test_offsets_of_rows_have_64_bits():
    hidden, head = torch.randn(3, 24).bfloat16(), torch.randn(3, 24).bfloat16()
    target = torch.tensor([0, 2, 1])
    expected = token_stats(hidden, head, target, backend="triton", varentropy=True)
    far_head = token_stats(hidden, far_apart(head), target, backend="triton", varentropy=True)
    for a, b in zip(astuple(far_head), astuple(expected), strict=True):
        assert torch.equal(a, b)


def test_logits_of_a_large_vocabulary_stay_within_their_memory():
    for v in (32_000, 151_936, 152_064, 262_144):
        rows = token_logprobs.chunk_rows(v)
        assert rows % token_logprobs.CHUNK_ROWS == 0
        assert rows == token_logprobs.CHUNK_ROWS or 4 * v * rows <= 0.3 * 2**30
    assert token_logprobs.chunk_rows(152_064) == 512
