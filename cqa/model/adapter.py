"""Adapter files in PEFT's format: written, read, and checked against a decoder."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from cqa.errors import ModelError
from cqa.model.checkpoint import opened
from cqa.model.decoder import Decoder
from cqa.model.lora import Adapter, Key, LoraSpec, adapted_members
from cqa.model.projection import MODULES

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
PEFT_PREFIX = "base_model.model.model.layers"
PARENTS = dict.fromkeys("qkvo", "self_attn") | dict.fromkeys(("gate", "up", "down"), "mlp")


def write_adapter(
    folder: Path,
    spec: LoraSpec,
    weights: Mapping[Key, tuple[Tensor, Tensor]],
    base: str,
    dropout: float,
) -> None:
    """Write an adapter in PEFT's format into an existing folder.

    Args:
        folder: Where adapter_config.json and adapter_model.safetensors go.
        spec: Its definition.
        weights: fp32 A and B of every adapted module.
        base: What the base model was called, for `base_model_name_or_path`.
        dropout: The dropout it was trained with.
    """
    tensors = {}
    for (layer, name), (a, b) in weights.items():
        prefix = f"{PEFT_PREFIX}.{layer}.{PARENTS[name]}.{name}_proj"
        tensors[f"{prefix}.lora_A.weight"] = a.detach().cpu().contiguous().clone()
        tensors[f"{prefix}.lora_B.weight"] = b.detach().cpu().contiguous().clone()
    alpha = int(spec.alpha) if float(spec.alpha).is_integer() else spec.alpha
    config = {
        "base_model_name_or_path": base,
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
        "init_lora_weights": True,
        "lora_alpha": alpha,
        "lora_dropout": dropout,
        "modules_to_save": None,
        "peft_type": "LORA",
        "r": spec.rank,
        "target_modules": [f"{name}_proj" for name in spec.targets],
        "task_type": "CAUSAL_LM",
        "use_dora": False,
        "use_rslora": spec.rslora,
    }
    save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})
    text = json.dumps(config, indent=2, sort_keys=True) + "\n"
    (folder / CONFIG).write_text(text, encoding="utf-8")


def read_spec(folder: Path) -> LoraSpec:
    """Read adapter_config.json of a PEFT adapter.

    Raises:
        ModelError: It is missing or malformed, or asks for more than plain LoRA.
    """
    path = folder / CONFIG
    where = str(path)
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ModelError(
            f"expected an adapter folder with {CONFIG}, got none", where=str(folder)
        ) from None
    except (OSError, ValueError, RecursionError) as error:
        raise ModelError(f"expected a JSON config, got: {error}", where=where) from None
    if not isinstance(raw, dict):
        raise ModelError("expected a JSON object", where=where)
    _refuse_unsupported(raw, where)
    rank, alpha = raw.get("r"), raw.get("lora_alpha")
    if isinstance(rank, bool) or not isinstance(rank, int) or rank < 1:
        raise ModelError(f"expected `r` to be a positive whole number, got: {rank!r}", where=where)
    if isinstance(alpha, bool) or not isinstance(alpha, (int, float)):
        raise ModelError(f"expected `lora_alpha` to be a number, got: {alpha!r}", where=where)
    if not 0 < alpha <= sys.float_info.max:
        raise ModelError(
            f"expected `lora_alpha` to be a positive number, got: {alpha!r}", where=where
        )
    return LoraSpec(rank, float(alpha), bool(raw.get("use_rslora")), _targets(raw, where))


def _refuse_unsupported(raw: dict[str, Any], where: str) -> None:
    plain = {
        "peft_type": ("LORA",),
        "bias": ("none", None),
        "task_type": ("CAUSAL_LM", None),
        "init_lora_weights": (
            True,
            False,
            None,
            "gaussian",
            "eva",
            "orthogonal",
        ),  # others change the base
    }
    for key, allowed in plain.items():
        if raw.get(key) not in allowed:
            raise ModelError(f"expected {key} {allowed[0]}, got: {raw.get(key)!r}", where=where)
    empty = (
        "use_dora", "fan_in_fan_out", "modules_to_save", "rank_pattern", "alpha_pattern",
        "layers_to_transform", "layer_replication", "trainable_token_indices", "lora_bias",
        "target_parameters", "exclude_modules", "alora_invocation_tokens",
    )  # fmt: skip
    for key in empty:
        if raw.get(key):
            raise ModelError(f"expected plain LoRA, got {key}: {raw[key]!r}", where=where)


def _targets(raw: dict[str, Any], where: str) -> tuple[str, ...]:
    targets = raw.get("target_modules")
    if targets == "all-linear":
        return MODULES
    names = {f"{name}_proj": name for name in MODULES}
    if (
        not isinstance(targets, list)
        or not targets
        or not all(isinstance(t, str) and t in names for t in targets)
    ):
        raise ModelError(
            f"expected target_modules among {', '.join(names)}, got: {targets!r}", where=where
        )
    return tuple(name for name in MODULES if f"{name}_proj" in targets)


def read_adapter(folder: Path, decoder: Decoder) -> Adapter:
    """Read a PEFT adapter for this decoder, every tensor checked.

    Raises:
        ModelError: Files are missing or malformed, keys are missing, unexpected or mis-shaped (made
            for another base), a value is not finite, or the adapter changes nothing.
    """
    spec = read_spec(folder)
    path = folder / WEIGHTS
    if not path.is_file():
        hint = "pickle adapters (adapter_model.bin) are not read; save it as safetensors"
        raise ModelError(f"expected {WEIGHTS}, got none", where=str(folder), hint=hint)
    with opened(path) as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    weights: dict[Key, tuple[Tensor, Tensor]] = {}
    for projection in decoder.projections():
        for name in adapted_members(projection, spec):
            prefix = f"{PEFT_PREFIX}.{projection.layer}.{PARENTS[name]}.{name}_proj"
            shapes = (
                (spec.rank, projection.columns.features),
                (projection.member(name).width, spec.rank),
            )
            a, b = (
                _checked(
                    tensors.pop(f"{prefix}.lora_{ab}.weight", None),
                    shape,
                    f"{prefix}.lora_{ab}",
                    path,
                )
                for ab, shape in zip("AB", shapes, strict=True)
            )
            weights[projection.layer, name] = (a, b)
    if tensors:
        raise ModelError(f"expected no tensor {next(iter(tensors))}", where=str(path))
    if not any(bool(b.any()) and bool(a.any()) for a, b in weights.values()):
        raise ModelError(
            "expected an adapter that changes the model, got one whose B is all zero",
            where=str(path),
        )
    return Adapter(spec, weights)


def _checked(tensor: Tensor | None, shape: tuple[int, int], name: str, path: Path) -> Tensor:
    hint = "the adapter was probably made for another base model"
    if tensor is None:
        raise ModelError(f"expected {name}, got none", where=str(path), hint=hint)
    if tuple(tensor.shape) != shape:
        raise ModelError(
            f"expected {name} of shape {shape}, got: {tuple(tensor.shape)}",
            where=str(path),
            hint=hint,
        )
    if not tensor.is_floating_point() or not bool(torch.isfinite(tensor).all()):
        raise ModelError(f"expected finite floats in {name}, got others", where=str(path))
    return tensor
