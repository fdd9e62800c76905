"""LoRA adapters: what defines one, in the decoder's weights, and in training in flat buffers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from cqa.kernels.adamw import AdamState
from cqa.kernels.gradient import Gradient
from cqa.kernels.philox import INIT, stream_of, uniforms
from cqa.kernels.scatter import ScatterTable, Segment, scatter
from cqa.model.decoder import Decoder
from cqa.model.projection import MODULES, Projection, module_number

Key = tuple[int, str]  # layer and module


@dataclass(frozen=True, slots=True)
class LoraSpec:
    """Rank, scaling and targets of an adapter."""

    rank: int
    alpha: float
    rslora: bool
    targets: tuple[str, ...]  # a subset of MODULES, in that order

    @property
    def scaling(self) -> float:
        """Alpha / sqrt(rank) with rank stabilisation (arXiv:2312.03732), else alpha / rank."""
        return self.alpha / (self.rank**0.5 if self.rslora else self.rank)

    def rank_columns(self) -> dict[str, int]:
        """The columns that each module needs in its augmented weight."""
        return dict.fromkeys(self.targets, self.rank)


@dataclass(frozen=True, slots=True)
class Adapter:
    """An adapter's weights in memory: A (R, in) and B (out, R) of every adapted module.

    Not every layer need have the modules that the spec targets.
    """

    spec: LoraSpec
    weights: Mapping[Key, tuple[Tensor, Tensor]]

    @property
    def n_bytes(self) -> int:
        """How much memory it takes."""
        return sum(a.nbytes + b.nbytes for a, b in self.weights.values())


@dataclass(frozen=True, slots=True)
class PlacedGroup:
    """What of an adapter a group of projections takes."""

    names: tuple[str, ...]
    lora_a: Tensor  # (G·R, in), of all its adapted members
    scaled_b: tuple[Tensor, ...]  # scaling·B (out, R) of each


@dataclass(frozen=True, slots=True)
class PlacedAdapter:
    """An adapter on a decoder's device and in its dtypes, which no file changes any more."""

    groups: tuple[PlacedGroup | None, ...]  # of the decoder's projections, in their order

    @property
    def n_bytes(self) -> int:
        """How much memory it takes."""
        held = [group for group in self.groups if group is not None]
        return sum(t.nbytes for group in held for t in (group.lora_a, *group.scaled_b))


@torch.no_grad()
def place(decoder: Decoder, adapter: Adapter) -> PlacedAdapter:
    """Copy an adapter to the decoder's device, in the dtypes that its weights have there."""
    return PlacedAdapter(tuple(_placed(p, decoder, adapter) for p in decoder.projections()))


def _placed(projection: Projection, decoder: Decoder, adapter: Adapter) -> PlacedGroup | None:
    layer, weights = projection.layer, adapter.weights
    names = tuple(m.name for m in projection.members if (layer, m.name) in weights)
    if not names:
        return None
    pairs = [weights[layer, name] for name in names]
    lora_a = torch.cat([a for a, _ in pairs]).to(decoder.device, decoder.compute_dtype)
    scaling, dtype = adapter.spec.scaling, projection.low.dtype
    scaled_b = [(b.to(decoder.device, torch.float32) * scaling).to(dtype) for _, b in pairs]
    return PlacedGroup(names, lora_a, tuple(scaled_b))


def attach(decoder: Decoder, adapter: Adapter | PlacedAdapter) -> None:
    """Write an adapter into the decoder's augmented weights, replacing the one there.

    One that was placed for this decoder is copied on the device alone.
    """
    placed = place(decoder, adapter) if isinstance(adapter, Adapter) else adapter
    for projection, group in zip(decoder.projections(), placed.groups, strict=True):
        if group is None:
            projection.detach()
        else:
            projection.attach(group.lora_a, group.scaled_b, group.names, scaling=1.0)


def adapted_members(projection: Projection, spec: LoraSpec) -> list[str]:
    """Name the members of a group that an adapter targets."""
    return [member.name for member in projection.members if member.name in spec.targets]


class TrainableLora:
    """An adapter in training: fp32 masters in one flat buffer, each tensor a view of it."""

    def __init__(self, decoder: Decoder, spec: LoraSpec, seed: int) -> None:
        """Initialise as PEFT does (A Kaiming-uniform with a = √5, B zero) and attach."""
        self.spec = spec
        self.decoder = decoder
        decoder.detach_adapter()
        self._groups = [(p, n) for p in decoder.projections() if (n := adapted_members(p, spec))]
        n_params = sum(
            spec.rank * (p.columns.features + p.member(name).width)
            for p, names in self._groups
            for name in names
        )
        flat = [torch.zeros(n_params, dtype=torch.float32, device=decoder.device) for _ in range(4)]
        self.state = AdamState(*flat)
        self.weights: dict[Key, tuple[Tensor, Tensor]] = {}
        self._gradients: list[Gradient] = []
        self._offset = 0
        for projection, names in self._groups:
            self._attach_group(projection, names, seed)
        self._table = ScatterTable(
            [
                Segment(int(b.storage_offset()), block, spec.scaling)
                for projection, _ in self._groups
                for b, block in projection.b_blocks()
            ]
        )

    @property
    def n_params(self) -> int:
        """How many numbers are trained."""
        return self.state.param.numel()

    @torch.no_grad()
    def load(self, weights: Mapping[Key, tuple[Tensor, Tensor]]) -> None:
        """Copy A (R, in) and B (out, R) of every module into the masters, in place."""
        for key, pair in self.weights.items():
            for own, given in zip(pair, weights[key], strict=True):
                own.copy_(given)
        self.after_step()

    def after_step(self) -> None:
        """Bring the augmented weights up to date with the masters, and forget the gradient."""
        scatter(self.state.param, self._table, backend=self.decoder.backend)
        self.forget_gradient()

    def forget_gradient(self) -> None:
        """Let the next pass write the gradient, whatever the buffer holds."""
        for gradient in self._gradients:
            gradient.written = False

    def note_gradient(self) -> None:
        """Let the next pass add to what the buffer holds."""
        for gradient in self._gradients:
            gradient.written = True

    def complete_gradient(self) -> None:
        """Make the flat buffer that of the passes since it was forgotten: zero where none wrote."""
        for gradient in self._gradients:
            if not gradient.written:
                gradient.value.zero_()
        self.note_gradient()

    def _attach_group(self, projection: Projection, names: list[str], seed: int) -> None:
        rank, k = self.spec.rank, projection.columns.features
        first = self._offset
        lora_a = self._take(rank * len(names), k)
        middle = self._offset
        lora_b = [self._take(projection.member(name).width, rank) for name in names]
        gradients = (
            Gradient(self.state.grad[first:middle].view(-1, k)),
            Gradient(self.state.grad[middle : self._offset].view(-1, rank)),
        )
        self._gradients += gradients
        for g, (name, b) in enumerate(zip(names, lora_b, strict=True)):
            a = lora_a.data[g * rank : (g + 1) * rank]
            stream = stream_of(INIT, module_number(projection.layer, name))
            u = torch.from_numpy(uniforms(seed, 0, stream, rank * k)).view(rank, k)
            a.copy_((u * 2 - 1) / k**0.5)
            self.weights[projection.layer, name] = (a, b.data)
        projection.attach(lora_a, lora_b, names, self.spec.scaling, gradients)

    def _take(self, *shape: int) -> Tensor:
        """Return the next part of the flat buffer as a leaf."""
        start = self._offset
        self._offset += shape[0] * shape[1]
        return self.state.param[start : self._offset].view(shape).requires_grad_()


def widest(specs: Sequence[LoraSpec]) -> dict[str, int]:
    """The LoRA columns to allocate so that each of several adapters fits."""
    return {name: max((s.rank for s in specs if name in s.targets), default=0) for name in MODULES}
