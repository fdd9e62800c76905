"""The frozen projections of a layer, grouped by shared input, each with room for an adapter."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from cqa.kernels.aug_columns import AugColumns
from cqa.kernels.aug_linear import LoraRows, aug_linear
from cqa.kernels.backend import Backend
from cqa.kernels.gradient import Gradient
from cqa.kernels.philox import Dropout
from cqa.kernels.shrink import Shrink

MODULES = ("q", "k", "v", "o", "gate", "up", "down")
GROUPS = (("q", "k", "v"), ("o",), ("gate", "up"), ("down",))


def module_number(layer: int, module: str) -> int:
    """Number a module within the model, for its random streams."""
    return layer * len(MODULES) + MODULES.index(module)


def row_multiple(device: torch.device) -> int:
    """Return what the augmented rows are padded to: the alignment that a device's GEMMs like."""
    return 64 if device.type == "cuda" else 16


@dataclass(frozen=True, slots=True)
class Member:
    """One projection of a group: its name and its rows of the stacked weight."""

    name: str
    rows: slice

    @property
    def width(self) -> int:
        """Its output features."""
        return int(self.rows.stop - self.rows.start)


@dataclass(frozen=True, slots=True)
class LinearMap:
    """A group's weight with its adapter and without its bias: W + scaling·B·A, kept as factors."""

    weight: Tensor  # (N, K)
    lora: tuple[Tensor, Tensor] | None = None  # A (G·R, K) and scaling·B (N, G·R)

    def __call__(self, x: Tensor) -> Tensor:
        """Map inputs (M, K) to outputs (M, N)."""
        y = x @ self.weight.T
        if self.lora is None:
            return y
        a, b = self.lora
        return y + (x @ a.T) @ b.T

    def transposed(self, y: Tensor) -> Tensor:
        """Map (M, N) to (M, K) by the transposed matrix."""
        x = y @ self.weight
        if self.lora is None:
            return x
        a, b = self.lora
        return x + (y @ b) @ a


class Projection:
    """A group of projections as one weight [W | bias | scaling·B], shape (N, K_aug).

    An adapter is attached by writing its B columns in place and keeping a reference to its A;
    the columns of an absent or smaller adapter are not read. Where results are wider than the
    weights, the columns scaling·B are a matrix of their own in the dtype of the results.
    """

    def __init__(
        self,
        layer: int,
        outputs: Mapping[str, int],
        in_features: int,
        *,
        bias: bool,
        rank_columns: int,
        dtype: torch.dtype,
        compute_dtype: torch.dtype,
        device: torch.device,
        without_data: bool = False,
    ) -> None:
        """Allocate the weight; `rank_columns` is the most that any adapter will need.

        Without data it has a shape only, to be spread over processes.
        """
        self.layer = layer
        self.multiple = row_multiple(device)
        self.columns = AugColumns(in_features, bias, 0, self.multiple)
        widest = AugColumns(in_features, bias, rank_columns, self.multiple)
        self.rank_columns = rank_columns
        stops = torch.tensor(list(outputs.values())).cumsum(0).tolist()
        starts = [0, *stops[:-1]]
        self.members = tuple(
            Member(name, slice(a, b)) for name, a, b in zip(outputs, starts, stops, strict=True)
        )
        self.split = compute_dtype != dtype
        n, n_low = stops[-1], widest.total - widest.base
        place = torch.device("meta") if without_data else device
        self.weight = torch.zeros(
            n, widest.base if self.split else widest.total, dtype=dtype, device=place
        )
        self.low = self.weight[:, widest.base :]  # scaling·B
        if self.split:
            self.low = torch.zeros(n, n_low, dtype=compute_dtype, device=place)
        self._n_base = widest.base
        self._held_here, self._written = slice(0, n), self.low  # rows, and scaling·B of them
        self._lora_a: Tensor | None = None
        self._modules: tuple[int, ...] = ()
        self._rows: tuple[LoraRows, ...] = ()
        self._gradients: tuple[Gradient | None, Gradient | None] = (None, None)  # of A and B
        self._scaling = 1.0

    def member(self, name: str) -> Member:
        """Return a projection of the group."""
        return next(member for member in self.members if member.name == name)

    def load(self, name: str, part: str, tensor: Tensor) -> None:
        """Copy a checkpoint tensor (`part` is "weight" or "bias") to its place.

        Of a weight that is spread, only the rows that are held here are read.
        """
        held, given = self._held(self.member(name).rows)
        k = self.columns.features
        target = self.weight[held, :k] if part == "weight" else self.weight[held, k]
        target.copy_(tensor[given])

    def hold_rows_from(self, first: int) -> None:
        """Take `weight` and `low`, as they are now, for rows from `first` on: those held here."""
        self.weight.zero_()
        if self.split:
            self.low.zero_()
        else:
            self.low = self.weight[:, self._n_base :]
        self._held_here = slice(first, first + self.weight.shape[0])
        self._written = self.low

    def _held(self, rows: slice) -> tuple[slice, slice]:
        """Return which of some rows are held here: as rows held, and within those given."""
        here = self._held_here
        first = max(rows.start, here.start)
        end = max(first, min(rows.stop, here.stop))
        start = first - rows.start
        return slice(first - here.start, end - here.start), slice(start, start + end - first)

    def attach(
        self,
        lora_a: Tensor,
        lora_b: Sequence[Tensor],
        modules: Sequence[str],
        scaling: float,
        gradients: tuple[Gradient, Gradient] | None = None,
    ) -> None:
        """Attach an adapter: A of the adapted members stacked (G·R, K), and B of each (n, R).

        In training `gradients` are those of A and of the Bs, one below the other.
        """
        k, bias = self.columns.features, self.columns.bias
        self.columns = AugColumns(k, bias, lora_a.shape[0], self.multiple)
        rank = lora_a.shape[0] // len(modules)
        first = self.columns.base
        self._lora_a, self._scaling = lora_a, scaling
        self._gradients = gradients or (None, None)
        self._modules = tuple(module_number(self.layer, name) for name in modules)
        self._rows = tuple(
            LoraRows(self.member(name).rows, slice(first + g * rank, first + (g + 1) * rank), b)
            for g, (name, b) in enumerate(zip(modules, lora_b, strict=True))
        )
        self._written.zero_()
        self.unsilence()

    def b_blocks(self) -> list[tuple[Tensor, Tensor]]:
        """Return B of every adapted member, and the block of the weight that holds scaling·B.

        Of a weight that is spread, both in the rows that are held here.
        """
        blocks = []
        for m in self._rows:
            held, given = self._held(m.rows)
            columns = slice(m.columns.start - self._n_base, m.columns.stop - self._n_base)
            blocks.append((m.lora_b.detach()[given], self._written[held, columns]))
        return blocks

    def silence(self) -> None:
        """Let the adapter add nothing, in as many columns: its rounding without its effect."""
        self._written.zero_()

    @torch.no_grad()
    def unsilence(self) -> None:
        """Let the adapter, where there is one, add what it does."""
        for b, block in self.b_blocks():
            block.copy_(b * self._scaling)

    def detach(self) -> None:
        """Go back to the base: the adapter columns are no longer read."""
        self.columns = AugColumns(self.columns.features, self.columns.bias, 0, self.multiple)
        self._lora_a, self._modules, self._rows = None, (), ()

    def shrink(self, dropout: Dropout | None = None) -> Shrink | None:
        """Return the LoRA side of this group's input, or None without an adapter."""
        if self._lora_a is None:
            return None
        return Shrink(self._lora_a, self._modules, dropout, self._gradients[0])

    def linear_map(self, dtype: torch.dtype) -> LinearMap:
        """Return what the group does to its input, but for the bias, to compute in a dtype."""
        weight = self.weight[:, : self.columns.features].to(dtype)
        if self._lora_a is None:
            return LinearMap(weight)
        low = self.low[:, : self.columns.rank_columns].to(dtype)
        return LinearMap(weight, (self._lora_a.detach().to(dtype), low))

    def __call__(
        self,
        x_aug: Tensor,
        residual: Tensor | None = None,
        *,
        overwrite: bool = False,
        backend: Backend,
    ) -> Tensor:
        """Project an augmented input (M, K_aug) to (M, N), residual added, perhaps in place."""
        return aug_linear(
            x_aug,
            self.weight,
            self._rows,
            scaling=self._scaling,
            residual=residual,
            overwrite=overwrite,
            low=self.low if self.split else None,
            gradient=self._gradients[1],
            backend=backend,
        )
