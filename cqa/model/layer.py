"""The weights of one decoder layer."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from cqa.kernels.experts import Experts
from cqa.model.architectures import Rotation
from cqa.model.projection import Projection


@dataclass(slots=True)
class Layer:
    """Weights of one decoder layer."""

    input_norm: Tensor | None
    qkv: Projection
    q_norm: Tensor | None  # of a head, or of all of them as one row
    k_norm: Tensor | None
    o: Projection
    o_norm: Tensor | None  # of what attention adds
    post_norm: Tensor | None
    gate_up: Projection
    down: Projection
    down_norm: Tensor | None  # of what the MLP adds
    experts: Experts | None  # in place of the MLP, whose two groups then have no features
    window: int | None
    rotation: Rotation | None

    @property
    def projections(self) -> tuple[Projection, ...]:
        """The four groups, or those of attention alone, in the order in which they run."""
        if self.experts is not None:
            return (self.qkv, self.o)
        return (self.qkv, self.o, self.gate_up, self.down)

    @property
    def norms(self) -> tuple[Tensor, ...]:
        """The weights of all norms that there are."""
        found = (self.input_norm, self.q_norm, self.k_norm, self.o_norm, self.post_norm)
        return tuple(norm for norm in (*found, self.down_norm) if norm is not None)
