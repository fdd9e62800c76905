"""The Triton kernels of the head one by one: loss rows, row statistics, and the fused route."""

import math
from dataclasses import astuple

import pytest
import torch
from cqa.kernels.loss_rows import loss_rows
from cqa.kernels.row_stats import row_stats_triton
from helpers import assert_as_accurate
from torch import Tensor

from cqa.kernels import linear_logprob, token_logprobs
from cqa.kernels.token_logprobs import ROUTES, token_stats

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
KINDS = pytest.mark.parametrize("kind", ["normal", "peaked", "flat", "offset"])
SIZES = pytest.mark.parametrize("v", [1, 2, 4096, 5003])
DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])


@pytest.fixture(autouse=True, params=["triton"])
def backend(request):
    """These tests name what they call."""
    return request.param


@pytest.fixture(autouse=True)
def _new_tensors_hold_nan():
    """What a kernel fails to write is not a number."""
    torch.use_deterministic_algorithms(True)
    assert torch.empty(3).isnan().all()
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture(autouse=True)
def _short_chunks(monkeypatch):
    """Padding costs a program a row."""
    monkeypatch.setattr(token_logprobs, "_TALLEST_CHUNK", 16)


def rows_of(kind: str, v: int, m: int = 5) -> tuple[Tensor, Tensor]:
    """Logits, and targets of which one is the arg-max and one the last column."""
    z = torch.randn(m, v, device=DEVICE) * {"peaked": 40.0, "flat": 0.0}.get(kind, 3.0)
    if kind == "offset":
        z += 1e4
    target = torch.randint(v, (m,), device=DEVICE)
    target[0], target[m - 1] = v - 1, z[m - 1].argmax()
    return z, target


def statistics(z: Tensor, target: Tensor) -> dict[str, Tensor]:
    logp = z.log_softmax(1)
    return {
        "logp": logp.gather(1, target[:, None]).squeeze(1),
        "entropy": -(logp.exp() * logp).sum(1),
        "lse": z.logsumexp(1),
    }


def at(z: Tensor, target: Tensor) -> Tensor:
    return z.gather(1, target[:, None]).squeeze(1)


@KINDS
@SIZES
def test_row_statistics_are_as_accurate_as_log_softmax(kind, v):
    z, target = rows_of(kind, v)
    before = z.clone()
    stats = row_stats_triton(z, target, at(z, target).double())
    naive, truth = statistics(z, target), statistics(z.double(), target)
    for name in truth:
        assert_as_accurate(name, getattr(stats, name), naive[name], truth[name])
    assert stats.rank.tolist() == (z > at(z, target)[:, None]).sum(1).tolist()
    assert torch.equal(z, before)


def test_more_digits_of_the_targets_logit_are_used():
    z, target = rows_of("normal", 300)
    exact = at(z, target).double() + 1e-3 * torch.randn(5, device=DEVICE)
    stats = row_stats_triton(z, target, exact)
    known = z.double().scatter(1, target[:, None], exact[:, None])
    for name, truth in statistics(known, target).items():
        torch.testing.assert_close(getattr(stats, name), truth, rtol=1e-6, atol=1e-6)


def autograd_rows(z: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    leaf = z.detach().requires_grad_()
    logp = statistics(leaf, target)["logp"]
    return logp.detach(), torch.autograd.grad(-logp.sum(), leaf)[0]


@KINDS
@SIZES
def test_loss_rows_are_as_accurate_as_autograd(kind, v):
    z, target = rows_of(kind, v)
    naive, truth = autograd_rows(z, target), autograd_rows(z.double(), target)
    logp, gradient = loss_rows(z, target, torch.float32, backend="triton")
    assert gradient.data_ptr() == z.data_ptr()
    assert_as_accurate("logp", logp, naive[0], truth[0])
    assert_as_accurate("gradient", gradient, naive[1], truth[1])


@KINDS
@DTYPES
def test_gradient_rows_of_16_bits_are_rounded_once(kind, dtype):
    z, target = rows_of(kind, 4099)
    z = z.to(dtype)
    naive, truth = autograd_rows(z.float(), target), autograd_rows(z.double(), target)
    _, gradient = loss_rows(z, target, torch.bfloat16, backend="triton")
    assert gradient.dtype == torch.bfloat16
    assert_as_accurate("gradient", gradient, naive[1].bfloat16(), truth[1])


@pytest.mark.parametrize("margin", [5.0, 14.0, 30.0])
def test_gradient_of_a_nearly_certain_target_keeps_its_digits(margin):
    z, target = torch.zeros(1, 300, device=DEVICE), torch.tensor([7], device=DEVICE)
    z[0, 7] = margin
    logp, gradient = loss_rows(z, target, torch.float32, backend="triton")
    rest = 299 * math.exp(-margin)
    assert -logp.item() == pytest.approx(math.log1p(rest), rel=1e-6)
    assert -gradient[0, 7].item() == pytest.approx(rest / (1 + rest), rel=1e-5)


def test_loss_row_does_not_depend_on_the_others_and_keeps_its_nan_to_itself():
    z, target = rows_of("normal", 1003, 6)
    z[2, 500] = math.nan
    together = loss_rows(z.clone(), target, torch.float32, backend="triton")
    assert together[0].isnan().tolist() == [i == 2 for i in range(6)]
    for i in (0, 1, 5):
        alone = loss_rows(z[[i]].clone(), target[[i]], torch.float32, backend="triton")
        for whole, part in zip(together, alone, strict=True):
            assert torch.equal(whole[[i]], part)


def far_apart(rows: Tensor) -> Tensor:
    """The same rows in one tensor whose offsets pass 2^31 elements."""
    stride = 2**30 + 16
    room = torch.empty(0, dtype=rows.dtype).untyped_storage()
    room.resize_((stride * (len(rows) - 1) + rows.shape[1]) * rows.element_size())
    far = torch.empty(0, dtype=rows.dtype).set_(room, 0, rows.shape, (stride, 1))
    return far.copy_(rows)


@pytest.mark.skipif(DEVICE == "cuda", reason="a device has no memory to spare on empty space")
def test_offsets_of_rows_have_64_bits():
    z, target = rows_of("normal", 40, 3)
    exact = at(z, target).double()
    far = far_apart(z.bfloat16())
    near = far.clone()
    for a, b in zip(
        astuple(row_stats_triton(far, target, exact)),
        astuple(row_stats_triton(near, target, exact)),
        strict=True,
    ):
        assert torch.equal(a, b)
    expected = loss_rows(near, target, torch.bfloat16, backend="triton")
    for a, b in zip(
        loss_rows(far, target, torch.bfloat16, backend="triton"), expected, strict=True
    ):
        assert torch.equal(a, b)
    hidden, head = torch.randn(3, 24).bfloat16(), torch.randn(3, 24).bfloat16()
    expected = token_stats(hidden, head, target % 3, backend="triton")
    far_head = token_stats(hidden, far_apart(head), target % 3, backend="triton")
    for a, b in zip(astuple(far_head), astuple(expected), strict=True):
        assert torch.equal(a, b)


def head_of(m: int, v: int, d: int, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    hidden = torch.randn(m, d, device=DEVICE) * 0.6
    head = torch.randn(v, d, device=DEVICE)
    return hidden.to(dtype), head.to(dtype), torch.randint(v, (m,), device=DEVICE)


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
    stats = token_stats(
        hidden.to(DEVICE), head.to(DEVICE), target.to(DEVICE), backend="triton", route=route
    )
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
    monkeypatch.setattr(linear_logprob, "_GROUP", 2)
    hidden, head, target = head_of(300, 1030, 16, torch.float32)  # five blocks, three splits
    stats = token_stats(hidden, head, target, backend="triton")
    truth = statistics(hidden.double() @ head.double().T, target)
    naive = statistics(hidden @ head.T, target)
    for name in truth:
        assert_as_accurate(name, getattr(stats, name), naive[name], truth[name])


def test_rows_in_several_launches_give_the_same_bits(monkeypatch):
    hidden, head, target = head_of(150, 300, 16, torch.float32)
    whole = token_stats(hidden, head, target, backend="triton")
    monkeypatch.setattr(linear_logprob, "_ROWS", 128)
    for a, b in zip(
        astuple(whole), astuple(token_stats(hidden, head, target, backend="triton")), strict=True
    ):
        assert torch.equal(a, b)


@pytest.mark.filterwarnings("ignore:All-NaN slice")  # the interpreter's own remark
@pytest.mark.parametrize("route", ROUTES)
def test_a_hidden_state_that_is_not_a_number_spoils_its_own_row_alone(route):
    hidden, head, target = head_of(6, 600, 16, torch.float32)
    hidden[2, 3] = math.nan
    stats = token_stats(hidden, head, target, backend="triton", route=route)
    for field in (stats.logp, stats.entropy, stats.lse):
        assert field.isnan().tolist() == [i == 2 for i in range(6)]


def test_logits_of_a_large_vocabulary_stay_within_their_memory():
    for v in (32_000, 151_936, 152_064, 262_144):
        rows = token_logprobs.chunk_rows(v)
        assert rows % token_logprobs.CHUNK_ROWS == 0
        assert rows == token_logprobs.CHUNK_ROWS or 4 * v * rows <= 0.3 * 2**30
    assert token_logprobs.chunk_rows(152_064) == 512
