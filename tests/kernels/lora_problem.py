"""LoRA projections behind an op that makes their input: fused, and written out plainly."""

from dataclasses import dataclass
from itertools import pairwise

import pytest
import torch
from helpers import assert_as_accurate
from torch import Tensor

from cqa.kernels.aug_columns import AugColumns
from cqa.kernels.aug_linear import LoraRows, aug_linear
from cqa.kernels.copy_shrink import copy_shrink
from cqa.kernels.launch import INTERPRETED
from cqa.kernels.philox import Dropout
from cqa.kernels.rms_norm import norm_shrink
from cqa.kernels.shrink import Shrink
from cqa.kernels.swiglu_shrink import swiglu_shrink

EPS, SCALING, MODULES = 1e-5, 1.75, (7, 12, 13)


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
        generator = torch.Generator("cpu").manual_seed(self.m * 1000 + self.k)

        def normal(*shape: int) -> Tensor:
            drawn = torch.randn(*shape, generator=generator, device="cpu").bfloat16()
            return drawn.to(dtype).to(torch.get_default_device())

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
                dropped = x * keep.to(x) * problem.dropout.scale
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


SIZES = pytest.mark.parametrize(
    ("m", "k"), [(1, 16), (1, 13), (7, 40), (40, 300), (130, 64)], ids=lambda n: str(n)
)
SETTINGS = pytest.mark.parametrize(
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
DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
BIAS = pytest.mark.parametrize("bias", [False, True], ids=["no-bias", "bias"])
ADAPTER = pytest.mark.parametrize("with_adapter", [False, True], ids=["base", "adapter"])
RANKS = pytest.mark.parametrize("rank", [72, 256])


def check_projections(problem: Problem, dtype: torch.dtype, backend: str) -> None:
    """Values and gradients are as accurate as plain PyTorch's."""
    sizes = ((7, 40), (40, 300)) if dtype == torch.float32 else ((7, 40),)
    if backend == "triton" and INTERPRETED and (problem.m, problem.k) not in sizes:
        pytest.skip("one tile and several are enough in the slow interpreter")
    truth, naive = plain(problem, torch.float64), plain(problem, dtype)
    assert_all_as_accurate(fused(problem, dtype), naive, truth)


def check_base(problem: Problem) -> None:
    """Without an adapter the base alone is projected."""
    t = problem.tensors(torch.float32)
    weight, _ = augmented_weight(problem, t)
    x_aug = augment(problem, {**t, "x": t["x"].requires_grad_()}, None)
    assert x_aug.shape == (problem.m, problem.columns.base)
    y = aug_linear(x_aug, weight)
    actual = differentiated({"x": t["x"]}, y, t["dy"])

    def expected(dtype: torch.dtype) -> dict[str, Tensor]:
        t = problem.tensors(dtype)
        x = t["x"].requires_grad_()
        y = before(problem.op, x, t["norm"]) @ t["weight"].T + t["bias"]
        return differentiated({"x": x}, y, t["dy"])

    assert_all_as_accurate(actual, expected(torch.float32), expected(torch.float64))


def check_constants(problem: Problem, *, with_adapter: bool) -> None:
    """The constant column is exactly one, and the padding zero."""
    t = problem.tensors(torch.float32)
    shrink = Shrink(t["a"], problem.modules, problem.dropout) if with_adapter else None
    x_aug = augment(problem, t, shrink)
    k, columns = problem.k, problem.columns
    assert x_aug.isfinite().all()
    if problem.bias:
        assert (x_aug[:, k] == 1).all()
        assert (x_aug[:, k + 1 : columns.base] == 0).all()
    assert x_aug.shape[1] == (columns.total if with_adapter else columns.base)
    if with_adapter:
        assert columns.total % 64 == 0
        assert columns.total > columns.ranks.stop
        assert (x_aug[:, columns.ranks.stop :] == 0).all()


def check_no_rows(op: str, p: float) -> None:
    """An empty batch has gradients, and they are zero."""
    actual = fused(Problem(op, 0, 40, p=p), torch.float32)
    assert actual["y"].shape == (0, 18)
    for name in ("da", "db0", "db1", "db2"):
        assert torch.equal(actual[name], torch.zeros_like(actual[name])), name
