"""Log-probability, entropy, rank and log-sum-exp of target tokens, against float64 log_softmax."""

import math
from dataclasses import astuple

import pytest
import torch
from helpers import assert_as_accurate
from kernels.marks import DTYPES
from torch import Tensor

from cqa.kernels.token_logprobs import CHUNK_ROWS, token_logprobs, token_stats

D, V = 40, 211


def inputs(
    kind: str, dtype: torch.dtype = torch.float32, m: int = 300
) -> tuple[Tensor, Tensor, Tensor]:
    """Hidden states, a head, and targets of which some are the arg-max or the last id."""
    scale = {"normal": 0.3, "peaked": 5.0, "flat": 0.0, "offset": 0.3}[kind]
    hidden, head = torch.randn(m, D) * scale, torch.randn(V, D)
    if kind == "offset":
        hidden[:, -1] = 1
        head[:, -1] = 1e4
    target = torch.randint(V, (m,))
    target[::7] = V - 1
    target[::3] = (hidden @ head.T)[::3].argmax(1)
    return hidden.to(dtype), head.to(dtype), target


def reference(hidden: Tensor, head: Tensor, target: Tensor) -> dict[str, Tensor]:
    """The same in plain PyTorch, with all logits at once."""
    z = hidden @ head.T
    z = z.to(torch.promote_types(z.dtype, torch.float32))
    logp = z.log_softmax(1)
    return {
        "logp": logp.gather(1, target[:, None]).squeeze(1),
        "entropy": -(logp.exp() * logp).sum(1),
        "lse": z.logsumexp(1),
    }


def wide(*tensors: Tensor) -> tuple[Tensor, ...]:
    """As fp32: the logits of 16-bit inputs are accumulated in fp32."""
    return tuple(t.float() if t.is_floating_point() else t for t in tensors)


def double(*tensors: Tensor) -> tuple[Tensor, ...]:
    return tuple(t.double() if t.is_floating_point() else t for t in tensors)


KINDS = pytest.mark.parametrize("kind", ["normal", "peaked", "flat", "offset"])
PARTS = pytest.mark.parametrize("m", [0, 1, 127, 128, 129], ids=lambda m: f"{m}-and-{300 - m}-rows")


@KINDS
@PARTS
@DTYPES
def test_statistics_are_as_accurate_as_log_softmax(kind, m, dtype):
    hidden, head, target = given = inputs(kind, dtype)
    parts = [token_stats(hidden[rows], head, target[rows]) for rows in (slice(m), slice(m, 300))]
    naive, truth = reference(*wide(*given)), reference(*double(*given))
    for name in truth:
        actual = torch.cat([getattr(part, name) for part in parts])
        assert_as_accurate(name, actual, naive[name], truth[name])


def plain_logp(hidden: Tensor, head: Tensor, target: Tensor) -> Tensor:
    return reference(hidden, head, target)["logp"]


def logp_and_gradient(
    logp_of, hidden: Tensor, head: Tensor, target: Tensor, weights: Tensor, first: int = 0
) -> tuple[Tensor, ...]:
    """Both of them, with the first rows in a call of their own."""
    leaf = hidden.detach().requires_grad_()
    parts = [slice(first), slice(first, len(target))]
    logp = torch.cat([logp_of(leaf[part], head, target[part]) for part in parts])
    return logp.detach(), torch.autograd.grad(logp, leaf, weights.to(logp.dtype))[0]


@KINDS
@pytest.mark.parametrize("first", [0, 1, 13])
@DTYPES
def test_log_probability_and_gradient_in_training_are_as_accurate_as_autograd(kind, first, dtype):
    hidden, head, target = inputs(kind, dtype, 24)
    weights = torch.randn(24)
    actual = logp_and_gradient(token_logprobs, hidden, head, target, weights, first)
    naive = logp_and_gradient(plain_logp, hidden, head, target, weights)
    truth = logp_and_gradient(plain_logp, hidden.double(), head.double(), target, weights)
    assert actual[1].dtype == dtype
    for name, *values in zip(("logp", "dhidden"), actual, naive, truth, strict=True):
        assert_as_accurate(name, *values)


@DTYPES
def test_chunks_of_training_join_without_a_seam(monkeypatch, dtype):
    monkeypatch.setattr("cqa.kernels.token_logprobs.CHUNK_BYTES", 0)  # the least: CHUNK_ROWS
    hidden, head, target = inputs("normal", dtype, CHUNK_ROWS + 5)
    weights = torch.ones(CHUNK_ROWS + 5)
    actual = logp_and_gradient(token_logprobs, hidden, head, target, weights)
    naive = logp_and_gradient(plain_logp, hidden, head, target, weights)
    truth = logp_and_gradient(plain_logp, hidden.double(), head.double(), target, weights)
    for name, *values in zip(("logp", "dhidden"), actual, naive, truth, strict=True):
        assert_as_accurate(name, *values)


def test_without_gradient_the_log_probability_is_that_of_scoring():
    hidden, head, target = inputs("normal")
    expected = token_stats(hidden, head, target).logp.float()
    assert torch.equal(token_logprobs(hidden, head, target), expected)
    with torch.no_grad():
        assert torch.equal(token_logprobs(hidden.requires_grad_(), head, target), expected)


@KINDS
@DTYPES
def test_no_probability_exceeds_one_and_no_entropy_is_negative(kind, dtype):
    hidden, head, _ = inputs(kind, dtype)
    target = (hidden.double() @ head.double().T).argmax(1)
    stats = token_stats(hidden, head, target)
    assert stats.logp.max() <= 0
    assert stats.entropy.min() >= 0


@pytest.mark.parametrize("v", [1, 2, 7, 128, 1003])
def test_rank_counts_the_strictly_more_probable_tokens(v):
    hidden = torch.randint(-2, 3, (150, 8)).float()  # whole numbers: exact logits, many ties
    head = torch.randint(-2, 3, (v, 8)).float()
    z = hidden @ head.T
    target = torch.randint(v, (150,))
    target[:20] = v - 1
    target[20:40] = z[20:40].argmax(1)
    rank = token_stats(hidden, head, target).rank
    expected = [
        sum(other > row[t] for other in row)
        for row, t in zip(z.tolist(), target.tolist(), strict=True)
    ]
    assert rank.tolist() == expected
    assert rank[20:40].eq(0).all()


@pytest.mark.parametrize("v", [1, 129, 2049])
def test_a_target_alone_in_the_last_tile_of_the_vocabulary_is_as_any_other(v, backend):
    if backend == "triton" and v > 1000:
        pytest.skip("interpreted: its tiles are of other widths")
    given = torch.randn(4, 16), torch.randn(v, 16) / 4, torch.full((4,), v - 1)
    stats = token_stats(*given)
    for name, truth in reference(*double(*given)).items():
        torch.testing.assert_close(getattr(stats, name), truth, rtol=1e-6, atol=1e-6)


def test_equal_logits_give_the_uniform_distribution():
    stats = token_stats(torch.zeros(3, D), torch.randn(V, D), torch.tensor([0, 100, V - 1]))
    for field in (-stats.logp, stats.entropy, stats.lse):
        torch.testing.assert_close(field, torch.full((3,), math.log(V)).double(), rtol=1e-7, atol=0)
    assert stats.rank.tolist() == [0, 0, 0]


def test_certainty_has_no_surprise_no_entropy_and_no_gradient():
    head = torch.eye(5) * 1000
    hidden = head[[3]].clone().requires_grad_()
    stats = token_stats(hidden.detach(), head, torch.tensor([3]))
    assert (stats.logp.item(), stats.entropy.item(), stats.rank.item()) == (0, 0, 0)
    logp = token_logprobs(hidden, head, torch.tensor([3]))
    assert torch.equal(torch.autograd.grad(logp.sum(), hidden)[0], torch.zeros(1, 5))


def test_near_certainty_keeps_its_digits():
    head = torch.eye(5) * 5
    stats = token_stats(head[[3]], head, torch.tensor([3]))
    surprise = math.log1p(4 * math.exp(-25))
    assert -stats.logp.item() == pytest.approx(surprise, rel=1e-5)
    entropy = surprise + 25 * 4 * math.exp(-25 - surprise)
    assert stats.entropy.item() == pytest.approx(entropy, rel=1e-5)


def test_impossible_targets_stay_finite():
    head = torch.eye(5) * 1000
    stats = token_stats(head[[3]], head, torch.tensor([1]))
    assert stats.logp.item() == -1e6
    assert stats.rank.item() == 1


@pytest.mark.parametrize("v", [2, 70, 300])
@pytest.mark.parametrize("scale", [0.0, 0.3, 5.0])
def test_probabilities_of_all_targets_sum_to_one(v, scale):
    hidden, head = torch.randn(1, D) * scale, torch.randn(v, D)
    stats = token_stats(hidden.expand(v, D), head, torch.arange(v))
    assert stats.logp.double().exp().sum().item() == pytest.approx(1, abs=2e-6)
    surprise = -(stats.logp.double().exp() * stats.logp.double()).sum()
    assert stats.entropy[0].item() == pytest.approx(surprise.item(), abs=1e-5)
    assert sorted(stats.rank.tolist()) == list(range(v)) or scale == 0


# As arithmetic makes it, and as a damaged file holds it: the bits of both kinds differ.
NANS = [torch.tensor(bits, dtype=torch.int32).view(torch.float32) for bits in (0x7FC00000, -1)]


@pytest.mark.filterwarnings("ignore:All-NaN slice")  # the interpreter's own remark
@pytest.mark.parametrize("nan", NANS, ids=["plain", "all-bits"])
def test_what_is_not_a_number_spoils_every_statistic_of_its_row_and_no_other(nan):
    hidden, head, target = inputs("normal", m=5)
    expected = token_stats(hidden, head, target)
    hidden[2, 7] = nan
    stats = token_stats(hidden, head, target)
    for field in ("logp", "entropy", "lse"):
        assert getattr(stats, field).isnan().tolist() == [False, False, True, False, False], field
        others = [0, 1, 3, 4]
        assert torch.equal(getattr(stats, field)[others], getattr(expected, field)[others])


@pytest.mark.parametrize("nan", NANS, ids=["plain", "all-bits"])
@pytest.mark.parametrize("column", [0, 30, V - 1])
def test_a_logit_that_is_not_a_number_is_seen_by_every_row(nan, column):
    hidden, head, target = inputs("normal", m=5)
    target[:] = torch.tensor([0, 1, 30, 100, V - 1])
    head[column] = nan
    stats = token_stats(hidden, head, target)
    for field in (stats.logp, stats.entropy, stats.lse):
        assert field.isnan().all()
    weights = torch.ones(5)
    logp, gradient = logp_and_gradient(token_logprobs, hidden, head, target, weights)
    assert logp.isnan().all()
    assert gradient.isnan().all()


def test_no_rows_give_no_statistics():
    hidden, head, target = torch.empty(0, D), torch.randn(V, D), torch.empty(0, dtype=torch.int64)
    stats = token_stats(hidden, head, target, varentropy=True)
    assert all(field.shape == (0,) for field in astuple(stats))
    assert stats.rank.dtype == torch.int64
    hidden.requires_grad_()
    logp = token_logprobs(hidden, head, target)
    assert torch.autograd.grad(logp.sum(), hidden)[0].shape == (0, D)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
def test_statistics_are_fp64_and_training_is_fp32_or_wider(dtype):
    hidden, head, target = inputs("normal", dtype)
    stats = token_stats(hidden, head, target)
    assert {stats.logp.dtype, stats.entropy.dtype, stats.lse.dtype} == {torch.float64}
    expected = torch.float64 if dtype == torch.float64 else torch.float32
    assert token_logprobs(hidden, head, target).dtype == expected
    assert token_logprobs(hidden.requires_grad_(), head, target).dtype == expected


@pytest.mark.usefixtures("sums_in_order")
@pytest.mark.parametrize(("v", "d"), [(211, 48), (1003, 64), (4096, 192)])
def test_bits_of_a_row_do_not_depend_on_the_other_rows(v, d, backend):
    m, v = (150, min(v, 1100)) if backend == "triton" else (300, v)  # interpreted
    hidden, head, target = torch.randn(m, d), torch.randn(v, d) / 4, torch.randint(v, (m,))
    together = astuple(token_stats(hidden, head, target, varentropy=True))
    groups = {
        "reversed": torch.arange(m - 1, -1, -1),
        "shuffled": torch.randperm(m),
        "half": torch.randperm(m)[: m // 2],
        "one chunk": torch.arange(CHUNK_ROWS),
        "one chunk and one": torch.arange(CHUNK_ROWS + 1),
        "repeated": torch.tensor([17, 17, m - 45, 17]),
        **{f"row {i} alone": torch.tensor([i]) for i in (0, 17, 127, 128, m - 45, m - 1)},
    }
    for name, rows in groups.items():
        apart = astuple(token_stats(hidden[rows], head, target[rows], varentropy=True))
        for whole, part in zip(together, apart, strict=True):
            assert torch.equal(whole[rows], part), name


def test_bits_of_a_row_do_not_depend_on_its_memory_layout():
    hidden, head, target = torch.randn(150, 64), torch.randn(1003, 64), torch.randint(1003, (150,))
    strided = torch.randn(150, 80)[:, :64].copy_(hidden)
    expected = token_stats(hidden, head, target, varentropy=True)
    actual = token_stats(strided, head, target, varentropy=True)
    for whole, other in zip(astuple(expected), astuple(actual), strict=True):
        assert torch.equal(whole, other)
