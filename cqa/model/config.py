"""A decoder's shape, read from a Hugging Face config.json; anything not understood is refused."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cqa.errors import ModelError

ARCHITECTURES = ("qwen2", "qwen3", "llama", "mistral")
MOST_LAYERS = 10_000
ROPE_TYPES = {  # what each needs beside rope_theta
    "default": (),
    "linear": ("factor",),
    "llama3": (
        "factor",
        "low_freq_factor",
        "high_freq_factor",
        "original_max_position_embeddings",
    ),
    "yarn": ("factor", "original_max_position_embeddings"),
}


@dataclass(frozen=True, slots=True)
class DecoderConfig:
    """Everything that the decoder needs to know of a checkpoint."""

    model_type: str
    n_layers: int
    hidden_size: int
    intermediate_size: int
    n_heads: int
    n_kv_heads: int
    head_dim: int
    vocab_size: int
    max_positions: int
    rms_norm_eps: float
    tied: bool
    qkv_bias: bool
    o_bias: bool
    mlp_bias: bool
    qk_norm: bool
    windows: tuple[int | None, ...]  # sliding window of each layer
    rope: dict[str, Any]  # rope_type, rope_theta and the type's own parameters


def read_config(folder: Path) -> DecoderConfig:
    """Read config.json of a model folder.

    Raises:
        ModelError: It is missing or malformed, or asks for something this decoder does not compute.
    """
    path = folder / "config.json"
    where = str(path)
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ModelError(
            "expected a model folder with config.json, got none", where=str(folder),
            hint="--model takes a folder in Hugging Face format, or a hub id",
        ) from None  # fmt: skip
    except (OSError, ValueError, RecursionError) as error:
        raise ModelError(f"expected a JSON config, got: {error}", where=where) from None
    if not isinstance(raw, dict):
        raise ModelError("expected a JSON object", where=where)
    return parse_config(raw, where)


def parse_config(raw: dict[str, Any], where: str) -> DecoderConfig:
    """Read the contents of a config.json; `where` names it in errors, which are `read_config`'s."""
    try:
        _refuse_unsupported(raw, where)
        return _parse(raw)
    except KeyError as error:
        raise ModelError(f"expected `{error.args[0]}`, got none", where=where) from None
    except (TypeError, ValueError, ZeroDivisionError) as error:
        raise ModelError(f"expected a consistent config, got: {error}", where=where) from None


def _refuse_unsupported(raw: dict[str, Any], where: str) -> None:
    model_type = raw.get("model_type")
    if model_type not in ARCHITECTURES:
        raise ModelError(
            f"expected one of {', '.join(ARCHITECTURES)}, got architecture: {model_type}",
            where=where,
        )
    if "auto_map" in raw:
        raise ModelError(
            "expected an architecture of its own, got one that wants remote code", where=where
        )
    if raw.get("quantization_config"):
        raise ModelError("expected plain weights, got a quantised checkpoint", where=where)
    if raw.get("hidden_act", "silu") != "silu":
        raise ModelError(f"expected hidden_act silu, got: {raw['hidden_act']}", where=where)
    if raw.get("attention_dropout"):
        raise ModelError(
            f"expected attention_dropout 0, got: {raw['attention_dropout']}", where=where
        )
    rope_type = _rope(raw).get("rope_type")
    if rope_type not in ROPE_TYPES:
        raise ModelError(
            f"expected rope type {' | '.join(ROPE_TYPES)}, got: {rope_type}", where=where
        )
    if (
        _rope(raw).get("partial_rotary_factor", 1.0) != 1.0
        or raw.get("partial_rotary_factor", 1.0) != 1.0
    ):
        raise ModelError(
            "expected rotation of whole heads, got a partial_rotary_factor", where=where
        )


def _rope(raw: dict[str, Any]) -> dict[str, Any]:
    """Return rope parameters from either spelling: rope_parameters or rope_scaling."""
    given = raw.get("rope_parameters") or raw.get("rope_scaling") or {}
    if not isinstance(given, dict):
        raise ValueError(f"rope parameters {given!r}")
    rope = dict(given)
    rope.setdefault("rope_type", rope.get("type", "default"))
    rope.setdefault("rope_theta", raw.get("rope_theta", 10_000.0))
    rope.setdefault("original_max_position_embeddings", raw["max_position_embeddings"])
    for key in ("rope_theta", *ROPE_TYPES.get(str(rope["rope_type"]), ())):
        _positive(rope, key)
    return rope


def _positive(raw: dict[str, Any], key: str, default: float | None = None) -> float:
    value = raw.get(key, default)
    if value is None:
        raise KeyError(key)
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < math.inf:
        raise ValueError(f"{key} {value!r}")
    return value


def _count(raw: dict[str, Any], key: str, default: int | None = None) -> int:
    value = _positive(raw, key, default)
    if not isinstance(value, int):
        raise ValueError(f"{key} {value!r}")
    return value


def _flag(raw: dict[str, Any], key: str) -> bool:
    value = raw.get(key)
    if value is not None and not isinstance(value, bool):
        raise ValueError(f"{key} {value!r}")
    return bool(value)


def _parse(raw: dict[str, Any]) -> DecoderConfig:
    model_type = raw["model_type"]
    n_layers, n_heads = _count(raw, "num_hidden_layers"), _count(raw, "num_attention_heads")
    hidden_size = _count(raw, "hidden_size")
    bias = _flag(raw, "attention_bias") and model_type in ("llama", "qwen3")
    default_dim = 128 if model_type == "qwen3" else hidden_size // n_heads
    given = {key: value for key, value in raw.items() if value is not None}
    n_kv_heads = _count(given, "num_key_value_heads", n_heads)
    if n_heads % n_kv_heads:
        raise ValueError(f"{n_heads} heads for {n_kv_heads} key/value heads")
    if n_layers > MOST_LAYERS:
        raise ValueError(f"{n_layers} layers")
    if _count(given, "head_dim", default_dim) % 2:
        raise ValueError("an odd head_dim")
    return DecoderConfig(
        model_type=model_type,
        n_layers=n_layers,
        hidden_size=hidden_size,
        intermediate_size=_count(raw, "intermediate_size"),
        n_heads=n_heads,
        n_kv_heads=n_kv_heads,
        head_dim=_count(given, "head_dim", default_dim),
        vocab_size=_count(raw, "vocab_size"),
        max_positions=_count(raw, "max_position_embeddings"),
        rms_norm_eps=_positive(raw, "rms_norm_eps", 1e-6),
        tied=_flag(raw, "tie_word_embeddings"),
        qkv_bias=model_type == "qwen2" or bias,
        o_bias=bias,
        mlp_bias=_flag(raw, "mlp_bias") and model_type == "llama",
        qk_norm=model_type == "qwen3",
        windows=_windows(raw, n_layers),
        rope=_rope(raw),
    )


def _windows(raw: dict[str, Any], n_layers: int) -> tuple[int | None, ...]:
    """Return each layer's window: Mistral's is global, Qwen's by layer and off by default."""
    window = raw.get("sliding_window", 4096 if raw["model_type"] == "mistral" else None)
    window = None if window is None else _count(raw, "sliding_window", window)
    if raw["model_type"] == "mistral":
        return (window,) * n_layers
    if raw["model_type"] == "llama" or not _flag(raw, "use_sliding_window") or window is None:
        return (None,) * n_layers
    first = raw.get("max_window_layers", 28)
    kinds = raw.get("layer_types") or [
        "sliding_attention" if i >= first else "full_attention" for i in range(n_layers)
    ]
    if len(kinds) != n_layers:
        raise ValueError(f"{len(kinds)} layer_types for {n_layers} layers")
    return tuple(window if kind == "sliding_attention" else None for kind in kinds)
