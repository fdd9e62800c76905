"""The Triton routes from hidden states to token statistics, against float64."""

import math
from dataclasses import astuple
from types import SimpleNamespace

import pytest
import torch
from helpers import assert_as_accurate
from kernels.conftest import ON_GPU, TRITON
from kernels.logits import at, far_apart, statistics
from kernels.marks import DTYPES
from torch import Tensor

from cqa.kernels import fused_linear_logprob, token_logprobs
from cqa.kernels.token_logprobs import ROUTES, default_route, token_stats

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


def test_training_on_a_gpu_has_the_logits_of_all_labels_at_once_where_memory_allows(monkeypatch):
    """By what memory there is, not by what is free: a resumed run rounds as the one before."""
    bytes_on = token_logprobs.training_chunk_bytes
    assert bytes_on(torch.device("cpu")) == token_logprobs.CHUNK_BYTES
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    for memory_gib, expected_mib in ((141, 2048), (80, 2048), (24, 768), (8, 300)):
        card = SimpleNamespace(total_memory=memory_gib << 30)
        monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _, card=card: card)
        assert bytes_on(torch.device("cuda")) == expected_mib << 20
    assert token_logprobs.chunk_rows(152_064, 2 << 30) > 1376  # of two of the paper's samples


def test_the_route_follows_from_the_width_of_the_head_and_can_be_named(monkeypatch):
    assert [default_route(width) for width in (896, 2047, 2048, 3584)] == [
        "fused", "fused", "chunked", "chunked",
    ]  # fmt: skip
    hidden, head, target = head_of(20, 600, 24, torch.float32)
    named = {r: token_stats(hidden, head, target, backend="triton", route=r) for r in ROUTES}
    assert not torch.equal(named["fused"].lse, named["chunked"].lse)
    for wide, expected in ((25, "fused"), (24, "chunked")):
        monkeypatch.setattr(token_logprobs, "_WIDE", wide)
        stats = token_stats(hidden, head, target, backend="triton")
        for field in ("logp", "entropy", "rank", "lse"):
            assert torch.equal(getattr(stats, field), getattr(named[expected], field))


@pytest.mark.gpu
def test_rows_of_a_wide_head_have_the_same_bits_wherever_they_stand(monkeypatch):
    monkeypatch.setattr(token_logprobs, "_TALLEST_CHUNK", 512)
    hidden, head, target = head_of(1300, 152_064, 3584, torch.bfloat16)
    whole = token_stats(hidden, head, target)
    order = torch.randperm(hidden.shape[0])
    for chosen in (order, order[:513], order[:1]):
        part = token_stats(hidden[chosen], head, target[chosen])
        for a, b in zip(astuple(whole), astuple(part), strict=True):
            assert a is b is None or torch.equal(a[chosen], b)
