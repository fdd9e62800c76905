"""The ops around the augmented GEMM: values and gradients of LoRA projections, against float64."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

import pytest
import torch
from helpers import assert_as_accurate
from torch import Tensor

from cqa.kernels.aug_linear import LoraRows, aug_linear
from cqa.kernels.copy_shrink import copy_shrink
from cqa.kernels.launch import INTERPRETED
from cqa.kernels.philox import Dropout
from cqa.kernels.rms_norm import norm_shrink, rms_norm_ref
from cqa.kernels.shrink import AugColumns, Shrink
from cqa.kernels.swiglu_shrink import swiglu_ref, swiglu_shrink

EPS, SCALING, MODULES = 1e-5, 1.75, (7, 12, 13)


@pytest.fixture(autouse=True)
def _memory_full_of_nan() -> Iterator[None]:
    """Fill every new buffer with NaN, so that a column nobody writes shows."""
    torch.manual_seed(0)
    torch.use_deterministic_algorithms(True)
    assert torch.empty(3).isnan().all()
    yield
    torch.use_deterministic_algorithms(False)


@dataclass(frozen=True)
class Problem:
    """A group of three stacked projections behind one op, some of them adapted."""

    op: str
    m: int
    k: int
    adapted: tuple[int, ...] = (0, 1, 2)
    rank: int = 3
    bias: bool = True
    p: float = 0.3
    multiple: int = 16

    widths = (5, 9, 4)

    @property
    def columns(self) -> AugColumns:
        return AugColumns(self.k, self.bias, len(self.adapted) * self.rank, self.multiple)

    @property
    def rows(self) -> list[slice]:
        stops = [0, 5, 14, 18]
        return [slice(*pair) for pair in pairwise(stops)]

    @property
    def modules(self) -> tuple[int, ...]:
        return tuple(MODULES[i] for i in self.adapted)

    @property
    def dropout(self) -> Dropout | None:
        return Dropout(self.p, 3, 11, torch.arange(self.m) + 100) if self.p else None

    def tensors(self, dtype: torch.dtype) -> dict[str, Tensor]:
        """Random tensors, the same bf16 numbers in every dtype."""
        generator = torch.Generator().manual_seed(self.m * 1000 + self.k)

        def normal(*shape: int) -> Tensor:
            return torch.randn(*shape, generator=generator).bfloat16().to(dtype)

        n = sum(self.widths)
        return {
            "x": normal(self.m, 2 * self.k if self.op == "swiglu" else self.k) * 2,
            "a": normal(len(self.adapted) * self.rank, self.k),
            "residual": normal(self.m, n),
            "norm": normal(self.k),
            "weight": normal(n, self.k),
            "bias": normal(n) * self.bias,
            "dy": normal(self.m, n),
            **{f"b{i}": normal(self.widths[i], self.rank) for i in self.adapted},
        }


def before(op: str, x: Tensor, norm: Tensor) -> Tensor:
    """The op itself, from plain PyTorch."""
    if op == "norm":
        return torch.nn.functional.rms_norm(x, (x.shape[1],), norm, EPS)
    if op == "swiglu":
        gate, up = x.chunk(2, dim=1)
        return torch.nn.functional.silu(gate) * up
    return x


def differentiated(leaves: dict[str, Tensor], y: Tensor, dy: Tensor) -> dict[str, Tensor]:
    grads = torch.autograd.grad(y, list(leaves.values()), dy)
    return {"y": y.detach()} | {f"d{n}": g for n, g in zip(leaves, grads, strict=True)}


def leaves_of(problem: Problem, t: dict[str, Tensor]) -> dict[str, Tensor]:
    names = ["x", "a", "residual", *(f"b{i}" for i in problem.adapted)]
    return {name: t[name].requires_grad_() for name in names}


def plain(problem: Problem, dtype: torch.dtype) -> dict[str, Tensor]:
    """The definition of LoRA, each projection by itself: W x + b + s · B A dropout(x)."""
    t = problem.tensors(dtype)
    leaves = leaves_of(problem, t)
    x = before(problem.op, t["x"], t["norm"])
    parts = []
    for i, rows in enumerate(problem.rows):
        part = x @ t["weight"][rows].T + t["bias"][rows]
        if i in problem.adapted:
            g = problem.adapted.index(i)
            dropped = x
            if problem.dropout:
                keep = problem.dropout.keep(MODULES[i], problem.k)
                dropped = x * keep.to(dtype) * problem.dropout.scale
            a = t["a"][g * problem.rank : (g + 1) * problem.rank]
            part = part + (dropped @ a.T) @ t[f"b{i}"].T * SCALING
        parts.append(part)
    return differentiated(leaves, torch.cat(parts, dim=1) + t["residual"], t["dy"])


def augmented_weight(problem: Problem, t: dict[str, Tensor]) -> tuple[Tensor, list[LoraRows]]:
    """[W | bias | scaling·B | room for a larger adapter], written out by hand."""
    k, columns = problem.k, problem.columns
    weight = t["weight"].new_zeros(sum(problem.widths), columns.total + 16)
    weight[:, columns.total :] = torch.nan
    weight[:, :k] = t["weight"]
    if problem.bias:
        weight[:, k] = t["bias"]
    members = []
    for g, i in enumerate(problem.adapted):
        first = columns.base + g * problem.rank
        members.append(LoraRows(problem.rows[i], slice(first, first + problem.rank), t[f"b{i}"]))
        weight[problem.rows[i], first : first + problem.rank] = t[f"b{i}"].detach() * SCALING
    return weight, members


def augment(problem: Problem, t: dict[str, Tensor], shrink: Shrink | None) -> Tensor:
    if problem.op == "norm":
        return norm_shrink(t["x"], t["norm"], EPS, problem.columns, shrink)
    op = {"swiglu": swiglu_shrink, "copy": copy_shrink}[problem.op]
    return op(t["x"], problem.columns, shrink)


def fused(problem: Problem, dtype: torch.dtype) -> dict[str, Tensor]:
    t = problem.tensors(dtype)
    leaves = leaves_of(problem, t)
    weight, members = augmented_weight(problem, t)
    x_aug = augment(problem, t, Shrink(t["a"], problem.modules, problem.dropout))
    y = aug_linear(x_aug, weight, tuple(members), scaling=SCALING, residual=t["residual"])
    return differentiated(leaves, y, t["dy"])


def assert_all_as_accurate(
    actual: dict[str, Tensor], naive: dict[str, Tensor], truth: dict[str, Tensor]
) -> None:
    for name, value in actual.items():
        assert_as_accurate(name, value, naive[name], truth[name])


OPS = pytest.mark.parametrize("op", ["norm", "swiglu", "copy"])


@OPS
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
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
def test_projections_and_gradients_are_as_accurate_as_plain_torch(
    op, m, k, settings, dtype, backend
):
    sizes = ((7, 40), (40, 300)) if dtype == torch.float32 else ((7, 40),)
    if backend == "triton" and INTERPRETED and (m, k) not in sizes:
        pytest.skip("one tile and several are enough in the slow interpreter")
    problem = Problem(op, m, k, **settings)
    truth, naive = plain(problem, torch.float64), plain(problem, dtype)
    assert_all_as_accurate(fused(problem, dtype), naive, truth)


@OPS
@pytest.mark.parametrize("bias", [False, True], ids=["no-bias", "bias"])
@pytest.mark.parametrize("k", [13, 48])
def test_without_an_adapter_the_base_alone_is_projected(op, bias, k):
    problem = Problem(op, 7, k, bias=bias)
    t = problem.tensors(torch.float32)
    weight, _ = augmented_weight(problem, t)
    x_aug = augment(problem, {**t, "x": t["x"].requires_grad_()}, None)
    assert x_aug.shape == (7, problem.columns.base)
    y = aug_linear(x_aug, weight)
    actual = differentiated({"x": t["x"]}, y, t["dy"])

    def expected(dtype: torch.dtype) -> dict[str, Tensor]:
        t = problem.tensors(dtype)
        x = t["x"].requires_grad_()
        y = before(op, x, t["norm"]) @ t["weight"].T + t["bias"]
        return differentiated({"x": x}, y, t["dy"])

    assert_all_as_accurate(actual, expected(torch.float32), expected(torch.float64))


@OPS
@pytest.mark.parametrize("bias", [False, True], ids=["no-bias", "bias"])
@pytest.mark.parametrize("with_adapter", [False, True], ids=["base", "adapter"])
def test_constant_and_padding_columns_are_exactly_one_and_zero(op, bias, with_adapter):
    problem = Problem(op, 5, 13, bias=bias, multiple=64)
    t = problem.tensors(torch.float32)
    shrink = Shrink(t["a"], problem.modules, problem.dropout) if with_adapter else None
    x_aug = augment(problem, t, shrink)
    columns = problem.columns
    assert x_aug.isfinite().all()
    if bias:
        assert (x_aug[:, 13] == 1).all()
        assert (x_aug[:, 14 : columns.base] == 0).all()
    assert x_aug.shape[1] == (columns.total if with_adapter else columns.base)
    if with_adapter:
        assert columns.total % 64 == 0
        assert columns.total > columns.ranks.stop
        assert (x_aug[:, columns.ranks.stop :] == 0).all()


@OPS
@pytest.mark.parametrize("p", [0.0, 0.3])
def test_no_rows_give_no_gradient(op, p):
    actual = fused(Problem(op, 0, 40, p=p), torch.float32)
    assert actual["y"].shape == (0, 18)
    for name in ("da", "db0", "db1", "db2"):
        assert torch.equal(actual[name], torch.zeros_like(actual[name])), name


def test_dropout_at_zero_is_no_dropout():
    dropped = Problem("norm", 9, 40)
    t = dropped.tensors(torch.float32)
    zero = Dropout(0.0, 3, 11, torch.arange(9))
    outs = [augment(dropped, t, Shrink(t["a"], dropped.modules, d)) for d in (zero, None)]
    assert torch.equal(*outs)


def test_adapter_gradients_do_not_need_the_gradient_of_the_input():
    problem = Problem("norm", 9, 40)

    def gradients(needs_input_grad: bool) -> tuple[Tensor, ...]:
        t = problem.tensors(torch.float32)
        t["x"].requires_grad_(needs_input_grad)
        trained = [t["a"], t["b0"], t["b1"], t["b2"]]
        for tensor in trained:
            tensor.requires_grad_()
        weight, members = augmented_weight(problem, t)
        x_aug = augment(problem, t, Shrink(t["a"], problem.modules, problem.dropout))
        y = aug_linear(x_aug, weight, tuple(members), scaling=SCALING)
        return torch.autograd.grad(y, trained, t["dy"])

    for with_input, without in zip(gradients(True), gradients(False), strict=True):
        assert torch.equal(with_input, without)


def test_residual_is_added_once_and_passes_its_gradient_on():
    x, weight = torch.randn(4, 16), torch.randn(3, 16)
    residual = torch.randn(4, 3, requires_grad=True)
    y = aug_linear(x, weight, residual=residual)
    torch.testing.assert_close(y, aug_linear(x, weight) + residual)
    dy = torch.randn(4, 3)
    assert torch.equal(torch.autograd.grad(y, residual, dy)[0], dy)


@pytest.mark.parametrize("scale", [1e-4, 1.0, 1e4], ids=["small", "unit", "large"])
def test_norm_of_16_bit_inputs_is_rounded_once(scale):
    x = (torch.randn(33, 50) * scale).to(torch.bfloat16)
    weight = (1 + torch.randn(50) / 4).to(torch.bfloat16)
    truth = before("norm", x.double(), weight.double())
    error = (rms_norm_ref(x, weight, EPS).double() - truth).abs()
    assert (error <= truth.abs() * (2**-8 * 1.001)).all()  # half a unit in the last place of bf16


def test_swiglu_of_saturated_gates_stays_finite():
    gates = torch.tensor([-1e4, -200.0, -80.0, 0.0, 80.0, 1e4])
    gate_up = torch.cat((gates, torch.full((6,), 3.0)))[None].requires_grad_()
    columns = AugColumns(6, False, 2, 16)
    a = torch.randn(2, 6)
    out = swiglu_shrink(gate_up, columns, Shrink(a, (0,)))
    torch.testing.assert_close(out[0, :6], 3 * torch.nn.functional.silu(gates))
    torch.testing.assert_close(swiglu_ref(gate_up)[0], out[0, :6])
    (grad,) = torch.autograd.grad(out[:, :6].sum(), gate_up)
    assert grad.isfinite().all()


def test_wider_residual_is_added_in_its_own_dtype():
    x, weight = torch.randn(4, 16), torch.randn(3, 16)
    residual = torch.randn(4, 3, dtype=torch.float64)
    assert torch.equal(aug_linear(x, weight, residual=residual), residual + aug_linear(x, weight))


@pytest.mark.parametrize("with_adapter", [False, True], ids=["base", "adapter"])
def test_norm_of_a_wider_input_is_rounded_once_to_the_dtype_of_the_weight(with_adapter):
    problem = Problem("norm", 9, 40)
    t = problem.tensors(torch.float32)
    x = torch.randn(9, 40, dtype=torch.float64)
    shrink = Shrink(t["a"], problem.modules) if with_adapter else None
    x_aug = norm_shrink(x, t["norm"], EPS, problem.columns, shrink)
    truth = before("norm", x, t["norm"].double())
    assert x_aug.dtype == torch.float32
    assert torch.equal(x_aug[:, :40], truth.float())


@pytest.mark.parametrize("n_threads", [1, 3])  # three leave a row on the border of two threads
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["fp32", "fp64"])
def test_bits_of_a_gated_row_do_not_depend_on_its_place(n_threads, dtype):
    threads_before = torch.get_num_threads()
    torch.set_num_threads(n_threads)
    moved, expected = [], []
    for width in range(301, 341):
        gate_up = torch.randn(256, 2 * width, dtype=dtype) * 3
        order = torch.randperm(256)
        moved.append(swiglu_ref(gate_up[order]))
        expected.append(swiglu_ref(gate_up)[order])
    torch.set_num_threads(threads_before)
    assert all(torch.equal(a, b) for a, b in zip(moved, expected, strict=True))
