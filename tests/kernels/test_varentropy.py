"""Varentropy, the variance of -ln p under a row's distribution, against float64 and scipy."""

import math
from dataclasses import astuple

import numpy as np
import pytest
import torch
from kernels.conftest import ON_GPU
from kernels.logits import KINDS, at, rows_of
from kernels.marks import DTYPES
from scipy import stats as scipy_stats
from torch import Tensor

from cqa.kernels.logit_stats import logit_stats_ref, logit_stats_triton
from cqa.kernels.token_logprobs import ROUTES, TokenStats, token_stats

pytestmark = pytest.mark.usefixtures("memory_full_of_nan")
V = 300  # three tiles of the native op, the last of them not full


@pytest.fixture(autouse=True)
def _short_chunks(monkeypatch):
    """Padding costs an interpreted program a row."""
    monkeypatch.setattr("cqa.kernels.token_logprobs._TALLEST_CHUNK", 16)


@pytest.fixture
def stats_of(backend):
    """Every way of the backend from hidden states to statistics: Triton has two."""

    def of(hidden: Tensor, head: Tensor, target: Tensor, varentropy: bool) -> list[TokenStats]:
        routes = ROUTES if backend == "triton" else ROUTES[:1]
        return [
            token_stats(hidden, head, target, route=route, varentropy=varentropy)
            for route in routes
        ]

    return of


@pytest.fixture
def logit_stats(backend):
    """What takes logits as they are; the native op has no such thing."""
    if backend == "native":
        pytest.skip("it has its logits in tiles alone")
    return logit_stats_triton if backend == "triton" else logit_stats_ref


@pytest.fixture
def check(stats_of):
    """Compare the varentropy of rows of logits, which one-hot hidden states pick from the head."""

    def close(logits: Tensor, target: Tensor, truth: Tensor, rtol: float = 2e-6) -> None:
        hidden = torch.eye(len(logits), dtype=logits.dtype)
        for stats in stats_of(hidden, logits.T, target, True):
            torch.testing.assert_close(stats.varentropy, truth, rtol=rtol, atol=0)

    return close


def truth_of(logits: Tensor) -> Tensor:
    """The definition in float64, as a sum of squares about the mean."""
    z = logits.double()
    p = z.softmax(1)
    return (p * (z - (p * z).nansum(1, keepdim=True)) ** 2).nansum(1)


def scipy_varentropy(row: np.ndarray) -> float:
    """The variance of a discrete variable that takes -ln p_v with probability p_v."""
    p = np.exp(row - np.logaddexp.reduce(row))
    return float(scipy_stats.rv_discrete(values=(-np.log(p), p / p.sum())).var())


@pytest.mark.parametrize("scale", [0.1, 1.0, 8.0])
def test_random_rows_agree_with_float64_and_with_scipy(check, scale):
    z = torch.randn(6, V) * scale
    target = torch.tensor([0, 5, 127, 128, V - 1, 200])
    target[0] = z[0].argmax()
    check(z, target, truth_of(z))
    by_scipy = [scipy_varentropy(row) for row in z.double().cpu().numpy()]
    check(z, target, torch.tensor(by_scipy, dtype=torch.float64))


@DTYPES
def test_16_bit_logits_lose_nothing_more(check, dtype):
    z = (torch.randn(4, V) * 3).to(dtype)
    check(z, torch.tensor([3, 70, 150, 299]), truth_of(z))


@pytest.mark.parametrize("own", [True, False], ids=["of-the-target", "of-another"])
@pytest.mark.parametrize("gap", [5.0, 20.0, 60.0, 80.0])
def test_near_certainty_keeps_its_digits(check, gap, own):
    z = torch.randn(3, V) / 4
    top = torch.tensor([0, 130, V - 1])
    z[torch.arange(3), top] = gap
    rounding = gap * 2**-24  # of the exponent, as for the log-probability
    check(z, top if own else (top + 1) % V, truth_of(z), 2e-6 + rounding)


@pytest.mark.parametrize("level", [0.0, -7.3, 1e4])
def test_a_flat_vocabulary_has_none(check, level):
    check(torch.full((2, V), level), torch.tensor([0, V - 1]), torch.zeros(2).double(), 0)


@pytest.mark.parametrize("step", [2.0**-10, 1.0, 10.0])
def test_all_but_one_logit_equal_is_the_variance_of_a_coin(check, step):
    z = torch.zeros(2, V)
    z[:, 17] = step
    p = 1 / (1 + (V - 1) * math.exp(-step))
    truth = torch.full((2,), p * (1 - p) * step**2, dtype=torch.float64)
    check(z, torch.tensor([17, 18]), truth)


def test_nearly_equal_logits_keep_their_digits(check):
    z = torch.randn(3, V) * 1e-4
    check(z, torch.tensor([0, 1, V - 1]), truth_of(z))


def test_a_common_offset_changes_nothing(check):
    z = torch.randint(-400, 400, (3, V)) / 64  # exact, as is the sum
    check(z + 4096, torch.tensor([0, 1, V - 1]), truth_of(z))


@pytest.mark.parametrize("kept", [1, 2, 40])
def test_tokens_without_probability_do_not_count(check, kept):
    z = torch.full((2, V), -1e9)
    few = torch.randn(2, kept)
    z[:, 128 : 128 + kept] = few
    for target in ([128, 127 + kept], [3, 3]):
        check(z, torch.tensor(target), truth_of(few))


def test_a_vocabulary_of_one_token_has_none(check):
    check(torch.randn(3, 1), torch.zeros(3, dtype=torch.int64), torch.zeros(3).double(), 0)


def test_partial_results_make_the_whole_row(check, backend):
    v = 5003 if backend != "triton" or ON_GPU else 1100  # of 2,048 columns, or of 512
    z = torch.randn(2, v) * 3
    z[0, : v // 2] -= 200  # the first of them then weigh nothing
    z[1, v // 2 :] += 50
    check(z, torch.tensor([5, v - 1]), truth_of(z), 3e-6)


@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")  # the interpreter's own remark
def test_logits_of_minus_infinity_do_not_count(logit_stats):
    z, target = rows_of("normal", V)
    target -= (target % 3 == 0).long()
    target.clamp_(min=1)
    z[:, ::3] = -math.inf
    finite = z.double()[:, z[0].isfinite()]
    stats = logit_stats(z, target, at(z, target).double(), varentropy=True)
    torch.testing.assert_close(stats.varentropy, truth_of(finite), rtol=2e-6, atol=0)
    entropy = torch.distributions.Categorical(logits=finite).entropy()
    torch.testing.assert_close(stats.entropy, entropy, rtol=2e-6, atol=0)


@KINDS
def test_rows_wider_than_a_tile(logit_stats, kind):
    z, target = rows_of(kind, 9001)
    truth = truth_of(z)
    stats = logit_stats(z, target, at(z, target).double(), varentropy=True)
    torch.testing.assert_close(stats.varentropy, truth, rtol=5e-6, atol=0)


@pytest.mark.filterwarnings("ignore:All-NaN slice")  # the interpreter's own remark
def test_what_is_not_a_number_spoils_its_row_alone(stats_of):
    hidden, head, target = torch.randn(4, 8), torch.randn(V, 8), torch.arange(4)
    hidden[2, 3] = math.nan
    for stats in stats_of(hidden, head, target, True):
        assert stats.varentropy.isnan().tolist() == [False, False, True, False]


def test_asking_for_it_leaves_the_bits_of_the_others(stats_of):
    hidden, head, target = torch.randn(9, 40), torch.randn(1100, 40), torch.randint(1100, (9,))
    given = hidden, head, target
    for asked, not_asked in zip(stats_of(*given, True), stats_of(*given, False), strict=True):
        assert asked.varentropy.dtype == torch.float64
        assert (asked.varentropy >= 0).all()
        assert not_asked.varentropy is None
        for a, b in zip(astuple(asked)[:4], astuple(not_asked)[:4], strict=True):
            assert torch.equal(a, b)
