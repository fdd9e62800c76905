"""LoRA projections of an augmented input, by every op that makes one, against float64."""

import pytest
import torch
from kernels.lora_problem import (
    Problem,
    assert_all_as_accurate,
    augment,
    augmented_weight,
    before,
    differentiated,
    fused,
    plain,
)
from kernels.marks import ADAPTER, DTYPES
from torch import Tensor

from cqa.kernels.aug_linear import aug_linear
from cqa.kernels.launch import INTERPRETED
from cqa.kernels.shrink import Shrink

BIAS = pytest.mark.parametrize("bias", [False, True], ids=["no-bias", "bias"])

pytestmark = [
    pytest.mark.usefixtures("memory_full_of_nan"),
    pytest.mark.parametrize("op", ["norm", "swiglu", "copy"]),
]


@pytest.mark.parametrize(
    ("m", "k"), [(1, 16), (1, 13), (7, 40), (40, 300), (130, 64)], ids=lambda n: str(n)
)
@pytest.mark.parametrize(
    "settings",
    [
        {"p": 0.0, "bias": False},
        {"p": 0.0},
        {"bias": False},
        {},
        {"p": 0.9, "rank": 8},
        {"adapted": (1,)},
        {"adapted": (0, 2), "rank": 1},
        {"multiple": 64},
    ],
    ids=["plain", "bias", "dropout", "both", "p=0.9", "one-member", "two-members", "pad-64"],
)
@DTYPES
def test_projections_and_gradients_are_as_accurate_as_plain_torch(
    op, m, k, settings, dtype, backend
):
    sizes = ((7, 40), (40, 300)) if dtype == torch.float32 else ((7, 40),)
    if backend == "triton" and INTERPRETED and (m, k) not in sizes:
        pytest.skip("one tile and several are enough in the slow interpreter")
    problem = Problem(op, m, k, **settings)
    truth, naive = plain(problem, torch.float64), plain(problem, dtype)
    assert_all_as_accurate(fused(problem, dtype), naive, truth)


@pytest.mark.parametrize("rank", [72, 256])
def test_ranks_of_several_tiles_are_as_accurate_as_plain_torch(op, rank):
    problem = Problem(op, 7, 40, rank=rank)
    truth, naive = plain(problem, torch.float64), plain(problem, torch.float32)
    assert_all_as_accurate(fused(problem, torch.float32), naive, truth)


@BIAS
@pytest.mark.parametrize("k", [13, 48])
def test_without_an_adapter_the_base_alone_is_projected(op, bias, k):
    problem = Problem(op, 7, k, bias=bias)
    t = problem.tensors(torch.float32)
    weight, _ = augmented_weight(problem, t)
    x_aug = augment(problem, {**t, "x": t["x"].requires_grad_()}, None)
    assert x_aug.shape == (problem.m, problem.columns.base)
    actual = differentiated({"x": t["x"]}, aug_linear(x_aug, weight), t["dy"])

    def expected(dtype: torch.dtype) -> dict[str, Tensor]:
        t = problem.tensors(dtype)
        x = t["x"].requires_grad_()
        y = before(op, x, t["norm"]) @ t["weight"].T + t["bias"]
        return differentiated({"x": x}, y, t["dy"])

    assert_all_as_accurate(actual, expected(torch.float32), expected(torch.float64))


@BIAS
@ADAPTER
def test_constant_and_padding_columns_are_exactly_one_and_zero(op, bias, with_adapter):
    problem = Problem(op, 5, 13, bias=bias, multiple=64)
    t = problem.tensors(torch.float32)
    shrink = Shrink(t["a"], problem.modules, problem.dropout) if with_adapter else None
    x_aug = augment(problem, t, shrink)
    k, columns = problem.k, problem.columns
    assert x_aug.isfinite().all()
    if bias:
        assert (x_aug[:, k] == 1).all()
        assert (x_aug[:, k + 1 : columns.base] == 0).all()
    assert x_aug.shape[1] == (columns.total if with_adapter else columns.base)
    if with_adapter:
        assert columns.total % 64 == 0
        assert columns.total > columns.ranks.stop
        assert (x_aug[:, columns.ranks.stop :] == 0).all()


@pytest.mark.parametrize("p", [0.0, 0.3])
def test_no_rows_give_no_gradient(op, p):
    actual = fused(Problem(op, 0, 40, p=p), torch.float32)
    assert actual["y"].shape == (0, 18)
    for name in ("da", "db0", "db1", "db2"):
        assert torch.equal(actual[name], torch.zeros_like(actual[name])), name
