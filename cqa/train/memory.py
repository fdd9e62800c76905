"""How much memory a run will need, from shapes alone."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from cqa.kernels.token_logprobs import CHUNK_ROWS
from cqa.model.config import DecoderConfig
from cqa.model.lora import LoraSpec


@dataclass(frozen=True, slots=True)
class MemoryEstimate:
    """Parts of the peak, in bytes."""

    weights_bytes: int
    adapter_bytes: int  # fp32 masters, gradient, two moments
    activations_bytes: int
    logits_bytes: int

    @property
    def total_bytes(self) -> int:
        """The sum of the parts."""
        return self.weights_bytes + self.adapter_bytes + self.activations_bytes + self.logits_bytes


def estimate_memory(
    shape: DecoderConfig,
    spec: LoraSpec,
    *,
    rows: int,
    dtype: torch.dtype,
    recompute: bool,
    masks: bool,
) -> MemoryEstimate:
    """Estimate the peak of a training step.

    Args:
        shape: The base model.
        spec: The adapter.
        rows: Tokens of the longest pass.
        dtype: Compute dtype.
        recompute: Whether layers are recomputed in backward.
        masks: Whether dropout masks are kept, one byte an element (the reference ops do).
    """
    size = dtype.itemsize
    d, i = shape.hidden_size, shape.intermediate_size
    q, kv = shape.n_heads * shape.head_dim, shape.n_kv_heads * shape.head_dim
    inputs = {"q": d, "k": d, "v": d, "o": q, "gate": d, "up": d, "down": i}
    outputs = {"q": q, "k": kv, "v": kv, "o": d, "gate": i, "up": i, "down": d}
    layer = sum(inputs[m] * outputs[m] for m in inputs) + 2 * d
    lora = sum(spec.rank * (inputs[m] + outputs[m]) for m in spec.targets)
    columns = sum(spec.rank * outputs[m] for m in spec.targets)
    tables = (1 if shape.tied else 2) * shape.vocab_size * d
    kept = 2 * d + (2 * d + q + i) + 2 * (q + 2 * kv) + 2 * q + 2 * i  # floats a row and layer
    mask_bytes = sum(inputs[m] for m in spec.targets) if masks else 0
    per_row = kept * size + mask_bytes
    layers = 1 if recompute else shape.n_layers
    activations = rows * (per_row * layers + (d * size * shape.n_layers if recompute else 0))
    return MemoryEstimate(
        weights_bytes=(shape.n_layers * (layer + columns) + tables) * size,
        adapter_bytes=4 * 4 * shape.n_layers * lora,
        activations_bytes=activations + 2 * rows * i * size,
        logits_bytes=2 * CHUNK_ROWS * shape.vocab_size * 4,
    )
