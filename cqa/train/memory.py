"""How much memory a run will need, from shapes alone, and whether that much is there."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

from cqa.data.samples import EncodedSample
from cqa.errors import ResourceError
from cqa.kernels.backend import Backend, compute_dtype, fastest
from cqa.kernels.philox import kept_bytes
from cqa.kernels.precision import wider
from cqa.kernels.token_logprobs import chunk_rows, training_chunk_bytes
from cqa.layout import pack_documents
from cqa.model.config import DecoderConfig
from cqa.model.load import augmented_columns, layer_without_data, weights_bytes
from cqa.model.lora import LoraSpec
from cqa.model.memory import free_bytes, size_text
from cqa.model.projection import Projection
from cqa.train.passes import n_tokens
from cqa.train.plan import Plan

ESTIMATE_ERROR = 0.25  # of the total: what malloc keeps for itself, measured on CPU


@dataclass(frozen=True, slots=True)
class PassSize:
    """What of a pass takes memory: rows fed, rows that the last layer keeps, labelled rows."""

    rows: int
    kept: int
    labels: int


@dataclass(frozen=True, slots=True)
class MemoryEstimate:
    """Parts of the peak, in bytes."""

    weights_bytes: int
    # fp32 masters, gradient, two moments; of a plan also the copy that states are written from
    adapter_bytes: int
    activations_bytes: int  # kept from forward to backward
    workspace_bytes: int  # a chunk of logits, or one layer's gradients: whichever is larger

    @property
    def total_bytes(self) -> int:
        """The sum of the parts."""
        return (
            self.weights_bytes + self.adapter_bytes + self.activations_bytes + self.workspace_bytes
        )

    def __str__(self) -> str:
        return (
            f"weights {size_text(self.weights_bytes)}, "
            f"adapter {size_text(self.adapter_bytes)}, "
            f"activations {size_text(self.activations_bytes)}, "
            f"logits or gradients {size_text(self.workspace_bytes)}"
        )


def estimate_memory(
    shape: DecoderConfig,
    spec: LoraSpec,
    size: PassSize,
    *,
    dtype: torch.dtype,
    device: torch.device,
    recompute: bool,
    dropout: bool,
    n_ranks: int = 1,
) -> MemoryEstimate:
    """Estimate the peak of a training step; off by at most `ESTIMATE_ERROR` where it was measured.

    Args:
        shape: The base model.
        spec: The adapter.
        size: The largest pass.
        dtype: Of the weights.
        device: Where it runs; decides the padding, and with the dtype the ops.
        recompute: Whether layers are recomputed in backward.
        dropout: Whether there is LoRA dropout; the reference ops keep its masks, a GPU's as bits.
        n_ranks: Processes over which the weights are spread; the estimate is of one of them.
    """
    backend = fastest(device, dtype)
    layer = layer_without_data(shape, spec.rank_columns())
    groups = layer.projections
    totals = [augmented_columns(projection, device).total for projection in groups]
    features = [projection.columns.features for projection in groups]
    d, q = shape.hidden_size, shape.n_heads * shape.head_dim
    kv, wide = shape.n_kv_heads * shape.head_dim, 2 * shape.intermediate_size
    # of the attention: the projected heads, q and k rotated; then what comes of the kept rows
    in_place = backend == "triton" and not shape.qk_norm
    before = d + totals[0] + (q + 2 * kv) + (0 if in_place else q + kv)
    after = q + totals[1] + d + totals[2] + wide + totals[3]
    after += d * sum(norm in shape.norms for norm in ("o_norm", "down_norm"))
    adapted = [sum(m.name in spec.targets for m in projection.members) for projection in groups]
    masks = [
        n * _mask_bytes(k, backend) if dropout else 0
        for n, k in zip(adapted, features, strict=True)
    ]
    weights = weights_bytes(shape, spec.rank_columns(), dtype, device, n_ranks)
    dtype = compute_dtype(backend, dtype)
    item = dtype.itemsize
    per_row = (before + after) * item + sum(masks)
    last = size.rows * (before * item + masks[0]) + size.kept * (after * item + sum(masks[1:]))
    if recompute:
        activations = (shape.n_layers - 1) * size.rows * d * item + max(last, size.rows * per_row)
    else:
        activations = (shape.n_layers - 1) * size.rows * per_row + last
    gradients = size.rows * (d + totals[3] + wide) * item
    # one precision wider, for a few operands of the gate's backward
    if backend == "reference" or shape.activation == "gelu_tanh":
        gradients += size.rows * 4 * wide * wider(dtype).itemsize
    n_lora = sum(
        spec.rank * (n * projection.columns.features + sum(_widths(projection, spec)))
        for n, projection in zip(adapted, groups, strict=True)
    )
    return MemoryEstimate(
        weights_bytes=weights,
        adapter_bytes=4 * 4 * shape.n_layers * n_lora,
        activations_bytes=activations,
        workspace_bytes=max(gradients, _head_bytes(shape, size.labels, dtype, backend, device)),
    )


def _mask_bytes(n_cols: int, backend: Backend) -> int:
    """Return what a row's mask of one module takes from forward to backward."""
    if backend == "native":  # drawn again
        return 0
    return n_cols if backend == "reference" else kept_bytes(n_cols)


def _widths(projection: Projection, spec: LoraSpec) -> list[int]:
    """Output features of the adapted members of a group."""
    return [m.width for m in projection.members if m.name in spec.targets]


def _head_bytes(
    shape: DecoderConfig, labels: int, dtype: torch.dtype, backend: Backend, device: torch.device
) -> int:
    """Return the memory of the loss: a chunk of fp32 logits, and their copy in another dtype."""
    height = chunk_rows(shape.vocab_size, training_chunk_bytes(device))
    rows, copy = min(labels, height), 0
    beside = 2 * labels * shape.hidden_size * dtype.itemsize
    if dtype != torch.float32:
        copy = dtype.itemsize
        if backend == "reference":  # a CPU has no product of bf16 with an fp32 result
            copy += 4
            beside += 4 * shape.vocab_size * shape.hidden_size
    return rows * shape.vocab_size * (4 + copy) + beside


def largest_pass(plan: Plan) -> list[EncodedSample]:
    """Return the samples of the pass with the most tokens."""
    return max(plan.passes(), key=n_tokens)


def size_of(samples: list[EncodedSample]) -> PassSize:
    """Return what of a pass takes memory."""
    batch = pack_documents([(sample.ids, sample.loss_mask) for sample in samples])
    return PassSize(batch.n_rows, int(batch.kept.shape[0]), batch.n_targets)


def estimate_plan(
    plan: Plan,
    samples: list[EncodedSample],
    device: torch.device,
    dtype: torch.dtype,
    n_ranks: int = 1,
) -> MemoryEstimate:
    """Estimate the peak of a plan whose largest pass holds some samples; see `estimate_memory`."""
    step = estimate_memory(
        plan.shape,
        plan.spec,
        size_of(samples),
        dtype=dtype,
        device=device,
        recompute=plan.config.recompute,
        dropout=plan.config.dropout > 0,
        n_ranks=n_ranks,
    )
    # three of the adapter's four buffers are copied, to the host (snapshot.py)
    copied = step.adapter_bytes * 3 // 4 if device.type == "cpu" else 0
    return replace(step, adapter_bytes=step.adapter_bytes + copied)


def check_memory(
    plan: Plan,
    device: torch.device,
    dtype: torch.dtype,
    *,
    loaded: bool = False,
    n_ranks: int = 1,
) -> str | None:
    """Compare what a run will need with what is free; return a warning where it may be too much.

    Args:
        plan: The run.
        device: Where it will compute.
        dtype: In what.
        loaded: Whether the weights are there already.
        n_ranks: Processes over which they are spread.

    Raises:
        ResourceError: It is too much, whatever the error of the estimate.
    """
    samples = largest_pass(plan)
    estimate = estimate_plan(plan, samples, device, dtype, n_ranks)
    needed = estimate.total_bytes - (estimate.weights_bytes if loaded else 0)
    free = free_bytes(device)
    if needed <= free:
        return None
    text = (
        f"about {size_text(needed)} of free memory on {device} for passes of "
        f"{n_tokens(samples):,} tokens ({estimate}), got {size_text(free)}"
    )
    if needed * (1 - ESTIMATE_ERROR) <= free:
        return f"expected {text}; it may just fit"
    raise ResourceError(f"expected {text}", hint=_remedies(plan, samples, device, dtype, n_ranks))


def _remedies(
    plan: Plan,
    samples: list[EncodedSample],
    device: torch.device,
    dtype: torch.dtype,
    n_ranks: int,
) -> str:
    """Name what would need less, with what it would then need."""
    remedies = []
    if not plan.config.recompute:
        with_recompute = replace(plan, config=replace(plan.config, recompute=True))
        total = estimate_plan(with_recompute, samples, device, dtype, n_ranks).total_bytes
        remedies.append(f"--recompute ({size_text(total)})")
    if dtype != torch.bfloat16:
        total = estimate_plan(plan, samples, device, torch.bfloat16, n_ranks).total_bytes
        remedies.append(f"--dtype bf16 ({size_text(total)})")
    if len(samples) > 1:
        longest = max(samples, key=lambda sample: len(sample.ids))
        total = estimate_plan(plan, [longest], device, dtype, n_ranks).total_bytes
        remedies.append(f"--pass-tokens {len(longest.ids)} ({size_text(total)})")
    return ", ".join([*remedies, "or a lower --max-tokens with --too-long"])
