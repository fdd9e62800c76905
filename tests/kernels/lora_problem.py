"""LoRA projections behind an op that makes their input: fused, and written out plainly."""

from dataclasses import dataclass
from itertools import pairwise

import torch
from helpers import assert_as_accurate
from torch import Tensor

from cqa.kernels.aug_columns import AugColumns
from cqa.kernels.aug_linear import LoraRows, aug_linear
from cqa.kernels.copy_shrink import copy_shrink
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
