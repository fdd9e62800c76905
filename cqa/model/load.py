"""Load a base model: stream safetensors straight into the augmented weights."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from cqa.errors import ResourceError
from cqa.kernels.aug_columns import AugColumns
from cqa.kernels.backend import Backend, compute_dtype, fastest
from cqa.kernels.experts import Experts
from cqa.model.checkpoint import stream
from cqa.model.config import HEAD, TABLE, DecoderConfig, read_checkpoint, read_config, tensor_shapes
from cqa.model.decoder import Decoder
from cqa.model.digest import hashing
from cqa.model.layer import Layer
from cqa.model.memory import free_bytes, size_text
from cqa.model.projection import Projection, row_multiple
from cqa.model.spread import PIECE_BYTES, own_part
from cqa.ranks import ALONE, Ranks

Device = Literal["auto", "cpu", "cuda"]
Dtype = Literal["auto", "fp32", "bf16"]
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
PLACES = {
    "self_attn.q_proj": "q",
    "self_attn.k_proj": "k",
    "self_attn.v_proj": "v",
    "self_attn.o_proj": "o",
    "mlp.gate_proj": "gate",
    "mlp.up_proj": "up",
    "mlp.down_proj": "down",
}


def dtype_name(dtype: torch.dtype) -> str:
    """Name a dtype as it stands in results: float32, bfloat16."""
    return str(dtype).removeprefix("torch.")


@dataclass(frozen=True, slots=True)
class BaseModel:
    """A loaded base and what identifies it."""

    decoder: Decoder
    digest: str  # sha256 over config.json and the safetensors files


def pick_device(device: Device) -> torch.device:
    """Resolve `auto`: the GPU if there is one.

    Raises:
        ResourceError: CUDA was asked for and is not there.
    """
    if device == "cuda" and not torch.cuda.is_available():
        raise ResourceError("expected a CUDA device, got none", hint="use --device cpu")
    return torch.device("cuda" if device != "cpu" and torch.cuda.is_available() else "cpu")


def pick_dtype(dtype: Dtype, device: torch.device) -> torch.dtype:
    """Resolve `auto`: bf16 weights on CUDA, fp32 on CPU."""
    if dtype == "auto":
        return torch.bfloat16 if device.type == "cuda" else torch.float32
    return DTYPES[dtype]


def open_model(
    folder: Path,
    device: Device,
    dtype: Dtype,
    *,
    rank_columns: dict[str, int],
    ranks: Ranks = ALONE,
) -> BaseModel:
    """Load a base model on the device and in the dtype that settings name; see `load_model`.

    Raises:
        ResourceError: The weights are larger than the memory that is free.
    """
    place = pick_device(device)
    number = pick_dtype(dtype, place)
    check_weights_fit(read_config(folder), rank_columns, number, place, ranks.count)
    return load_model(folder, device=place, dtype=number, rank_columns=rank_columns, ranks=ranks)


def check_weights_fit(
    shape: DecoderConfig,
    rank_columns: dict[str, int],
    dtype: torch.dtype,
    device: torch.device,
    n_ranks: int = 1,
) -> None:
    """Refuse a model whose weights, as they are spread, are larger than the memory that is free.

    Raises:
        ResourceError: They are.
    """
    needed, free = weights_bytes(shape, rank_columns, dtype, device, n_ranks), free_bytes(device)
    if needed > free:
        other = "" if dtype == torch.bfloat16 else "--dtype bf16, or "
        more = "more processes, or " if n_ranks > 1 else ""
        raise ResourceError(
            f"expected {size_text(needed)} of free memory on {device} for the weights in "
            f"{dtype_name(dtype)}, got {size_text(free)}",
            hint=f"{other}{more}a device with more memory",
        )


def weights_bytes(
    shape: DecoderConfig,
    rank_columns: dict[str, int],
    dtype: torch.dtype,
    device: torch.device,
    n_ranks: int = 1,
) -> int:
    """Return the size of a model's weights, room for adapters included, without allocating it.

    Of weights that are spread over ranks, what one of them has at the most: its part, and beside it
    a layer that is whole and one that is being gathered, or the head.
    """
    wide = compute_dtype(fastest(device, dtype), dtype)
    layer = layer_without_data(shape, rank_columns)
    norm_item = 4 if shape.one_plus else dtype.itemsize
    norms = per_layer = sum(norm.numel() for norm in layer.norms) * norm_item
    experts, mixed = 0, 0
    if (mixture := shape.experts) is not None:  # the first layer counts as a dense one below
        layer = layer_without_data(replace(shape, experts=None), rank_columns)
        a_mlp = 3 * shape.intermediate_size * shape.hidden_size
        all_experts = mixture.n_experts * shape.hidden_size * (3 * mixture.width + 1)
        mixed = (all_experts - a_mlp) * dtype.itemsize
        experts = sum(mixture.layers) * mixed
    for projection in layer.projections:
        columns = augmented_columns(projection, device)
        low = columns.total - columns.base
        row_bytes = columns.base * dtype.itemsize + low * wide.itemsize
        per_layer += projection.weight.shape[0] * row_bytes
    tables = (1 if shape.tied else 2) * shape.vocab_size * shape.hidden_size
    last = shape.hidden_size * norm_item
    whole = shape.n_layers * per_layer + experts + tables * dtype.itemsize + last
    if n_ranks == 1:
        return whole
    head = shape.vocab_size * shape.hidden_size * dtype.itemsize
    if fastest(device, dtype) == "native":
        head = min(head, 2 * PIECE_BYTES)
    everywhere = shape.n_layers * norms + last
    largest = max(2 * (per_layer + mixed - norms), head)
    return everywhere + -(-(whole - everywhere) // n_ranks) + largest


def layer_without_data(shape: DecoderConfig, rank_columns: dict[str, int]) -> Layer:
    """Return the first layer of a model, of tensors that have a shape only."""
    one = replace(shape, n_layers=1, windows=shape.windows[:1])
    meta = torch.device("meta")
    return Decoder(one, rank_columns=rank_columns, dtype=torch.float32, device=meta).layers[0]


def augmented_columns(projection: Projection, device: torch.device) -> AugColumns:
    """Return the columns of a group's augmented row on a device, with the widest adapter."""
    k, bias = projection.columns.features, projection.columns.bias
    return AugColumns(k, bias, projection.rank_columns, row_multiple(device))


def load_model(
    folder: Path,
    *,
    device: torch.device,
    dtype: torch.dtype,
    rank_columns: dict[str, int] | None = None,
    backend: Backend | None = None,
    ranks: Ranks = ALONE,
) -> BaseModel:
    """Load a base model, with room for adapters.

    Args:
        folder: Hugging Face model folder with safetensors.
        device: Where the weights go.
        dtype: What they are converted to.
        rank_columns: The most LoRA columns each module will need.
        backend: Which implementation of the ops runs; see cqa.kernels.backend.
        ranks: The processes that the weights are spread over; each copies its own part.

    Raises:
        ModelError: Files are missing or malformed, tensors do not fit the config, or a file was
            written to meanwhile.
    """
    config, files = read_checkpoint(folder)
    with hashing([folder / "config.json", *set(files.values())]) as digest:
        decoder = Decoder(
            config, rank_columns=rank_columns or {}, dtype=dtype, device=device, backend=backend,
            ranks=ranks,
        )  # fmt: skip
        places = destinations(decoder)
        for name, tensor in stream({name: files[name] for name in places}):
            put = places[name][1]
            put(tensor)
        return BaseModel(decoder, digest())


def _put_one_plus(target: Tensor, factor: float, weight: Tensor) -> None:
    """Write factor · (1 + w), summed in fp32 as the model does it."""
    target.copy_(factor * (1.0 + weight.to(target.dtype)))


def _leave(tensor: Tensor) -> None:
    """Put a tensor nowhere: another process holds it."""


def _expert_destinations(
    prefix: str, experts: Experts, ranks: Ranks
) -> dict[str, Callable[[Tensor], object]]:
    """Map the tensors of a layer's experts to what puts them in place."""
    targets: dict[str, Callable[[Tensor], object]] = {f"{prefix}.gate.weight": experts.router.copy_}
    first, end = own_part(experts.router.shape[0], ranks)
    for j in range(experts.router.shape[0]):
        names = [f"{prefix}.experts.{j}.{name}_proj.weight" for name in ("gate", "up", "down")]
        if not first <= j < end:
            targets |= dict.fromkeys(names, _leave)
            continue
        gate, up = experts.gate_up[j - first].chunk(2)
        for name, target in zip(names, (gate, up, experts.down[j - first]), strict=True):
            targets[name] = target.copy_
    return targets


def destinations(
    decoder: Decoder,
) -> dict[str, tuple[tuple[int, ...], Callable[[Tensor], object]]]:
    """Map every tensor name of the checkpoint to its shape and to what puts it in place."""
    targets: dict[str, Callable[[Tensor], object]] = {}

    def plain(name: str, target: Tensor) -> None:
        targets[name] = target.copy_

    def norm(name: str, target: Tensor | None, factor: float = 1.0) -> None:
        if target is not None:
            scaled = decoder.config.one_plus
            targets[name] = partial(_put_one_plus, target, factor) if scaled else target.copy_

    spread = decoder.spread
    if spread is None:
        plain(TABLE, decoder.table)
        plain(HEAD, decoder.head)
    else:
        targets[TABLE], targets[HEAD] = spread.table.load, spread.head.load
    ranks = ALONE if spread is None else spread.ranks
    norm("model.norm.weight", decoder.norm)
    for i, layer in enumerate(decoder.layers):
        prefix = f"model.layers.{i}"
        for ours, theirs in decoder.config.norms.items():
            norm(f"{prefix}.{theirs}.weight", getattr(layer, ours))
        norm(f"{prefix}.self_attn.q_norm.weight", layer.q_norm, decoder.config.query_factor)
        norm(f"{prefix}.self_attn.k_norm.weight", layer.k_norm)
        by_name = {member.name: p for p in layer.projections for member in p.members}
        if layer.experts is not None:
            targets |= _expert_destinations(f"{prefix}.mlp", layer.experts, ranks)
        for place, name in PLACES.items():
            if name not in by_name:
                continue
            for part in ("weight", "bias"):
                targets[f"{prefix}.{place}.{part}"] = partial(by_name[name].load, name, part)
    return {name: (shape, targets[name]) for name, shape in tensor_shapes(decoder.config)}
