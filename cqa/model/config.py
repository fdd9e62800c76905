"""A decoder's shape, read from a Hugging Face folder; what is not understood is refused.

A setting means what transformers 5 makes of it, its defaults too. Sizes are compared with the
headers of the weights before anything is allocated.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from cqa.errors import ModelError
from cqa.model.adapter_files import CONFIG as ADAPTER_CONFIG
from cqa.model.checkpoint import headers, tensor_files
from cqa.model.numbers import count, flag, number
from cqa.model.rope_settings import read_rope
from cqa.reading import read_object

ARCHITECTURES = ("qwen2", "qwen3", "llama", "mistral")
MOST_LAYERS, MOST_HEADS, MOST_HEAD_DIM = 10_000, 10_000, 10_000
MOST_FEATURES, MOST_TOKENS = 1_000_000, 10_000_000  # products of these fit 64 bits
MOST_POSITIONS = 2**31 - 1
KV_HEADS = {"qwen2": 32, "qwen3": 32, "mistral": 8}  # where a config does not say; Llama's: all
LAYER_TYPES = ("full_attention", "sliding_attention")
FLOATS = {"F64", "F32", "F16", "BF16"}  # as safetensors calls them
TABLE, HEAD = "model.embed_tokens.weight", "lm_head.weight"
ELSEWHERE = {  # settings that give the model another shape than the rest of the file says
    "auto_map": "an architecture of its own, got one that wants remote code",
    "quantization_config": "plain weights, got a quantised checkpoint",
    "per_layer_config": "layers of one shape, got per_layer_config",
    "configuration_files": "one config, got configuration_files that name others",
    "text_config": "the config of a text model, got text_config, that of a part of a larger one",
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
    tied: bool  # the head is the embedding
    qkv_bias: bool
    o_bias: bool
    mlp_bias: bool
    qk_norm: bool
    windows: tuple[int | None, ...]  # sliding window of each layer
    rope: dict[str, Any]  # rope_type, rope_theta and the type's own parameters


def read_config(folder: Path) -> DecoderConfig:
    """Return the shape of a model folder's decoder; see `read_checkpoint` for what it raises."""
    return read_checkpoint(folder)[0]


def read_checkpoint(folder: Path) -> tuple[DecoderConfig, dict[str, Path]]:
    """Read config.json and the headers of the weights; return the shape and each tensor's file.

    A head that the weights bring is the model's head, also where `tie_word_embeddings` is set.

    Raises:
        ModelError: A file is missing or malformed, asks for something this decoder does not
            compute, or config and weights do not fit.
    """
    path = folder / "config.json"
    raw = read_object(path, ModelError)
    if raw is None:
        raise ModelError(
            "expected a model folder with config.json, got none", where=str(folder),
            hint="the folder holds an adapter: name its base with --model, and it with --adapter"
            if (folder / ADAPTER_CONFIG).exists()
            else "--model takes a folder in Hugging Face format, or a hub id",
        )  # fmt: skip
    config = parse_config(raw, str(path))
    if (folder / ADAPTER_CONFIG).exists():
        raise ModelError(
            f"expected a base model alone, got {ADAPTER_CONFIG} beside its config.json: "
            "transformers puts that adapter on top",
            where=str(folder),
            hint="give base and adapter a folder each",
        )
    files = tensor_files(folder, raw.get("transformers_weights"))
    if config.tied and HEAD in files:
        config = replace(config, tied=False)
    _check_tensors(config, files, folder)
    return config, files


def parse_config(raw: dict[str, Any], where: str) -> DecoderConfig:
    """Read the contents of a config.json alone; `where` names it in errors.

    Raises:
        ModelError: It is malformed, contradicts itself, or asks for something this decoder does
            not compute.
    """
    model_type = raw.get("model_type")
    if model_type not in ARCHITECTURES:
        raise ModelError(
            f"expected one of {', '.join(ARCHITECTURES)}, got architecture: {model_type!r:.80}",
            where=where,
        )
    for key, expected in ELSEWHERE.items():
        if raw.get(key) is not None:
            raise ModelError(f"expected {expected}", where=where)
    if raw.get("hidden_act", "silu") not in ("silu", "swish"):
        raise ModelError(f"expected hidden_act silu, got: {raw['hidden_act']!r:.80}", where=where)
    try:
        return _parse(raw)
    except KeyError as error:
        raise ModelError(f"expected `{error.args[0]}`, got none", where=where) from None
    except ValueError as error:
        raise ModelError(f"expected a consistent config, got: {error}", where=where) from None


def _parse(raw: dict[str, Any]) -> DecoderConfig:
    model_type = raw["model_type"]
    n_layers = count(raw, "num_hidden_layers", MOST_LAYERS)
    n_heads = count(raw, "num_attention_heads", MOST_HEADS)
    hidden_size = count(raw, "hidden_size", MOST_FEATURES)
    if model_type == "llama" and hidden_size % n_heads:
        raise ValueError(f"hidden_size {hidden_size} for {n_heads} heads")
    head_dim = _head_dim(raw, hidden_size // n_heads)
    dropout = raw.get("attention_dropout")
    if dropout is not None and (isinstance(dropout, bool) or dropout != 0):
        raise ValueError(f"attention_dropout {dropout!r:.80}, which is not applied here")
    attention_bias, mlp_bias = flag(raw, "attention_bias"), flag(raw, "mlp_bias")
    bias = attention_bias and model_type in ("llama", "qwen3")
    return DecoderConfig(
        model_type=model_type,
        n_layers=n_layers,
        hidden_size=hidden_size,
        intermediate_size=count(raw, "intermediate_size", MOST_FEATURES),
        n_heads=n_heads,
        n_kv_heads=_kv_heads(raw, n_heads),
        head_dim=head_dim,
        vocab_size=count(raw, "vocab_size", MOST_TOKENS),
        max_positions=count(raw, "max_position_embeddings", MOST_POSITIONS),
        rms_norm_eps=number({"rms_norm_eps": 1e-6} | raw, "rms_norm_eps", most=1.0),
        tied=flag(raw, "tie_word_embeddings"),
        qkv_bias=model_type == "qwen2" or bias,
        o_bias=bias,
        mlp_bias=mlp_bias and model_type == "llama",
        qk_norm=model_type == "qwen3",
        windows=_windows(raw, n_layers),
        rope=read_rope(raw, head_dim),
    )


def _head_dim(raw: dict[str, Any], per_head: int) -> int:
    model_type = raw["model_type"]
    if "head_dim" not in raw or (raw["head_dim"] is None and model_type in ("llama", "mistral")):
        raw = {"head_dim": 128 if model_type == "qwen3" else per_head}
    head_dim = count(raw, "head_dim", MOST_HEAD_DIM)
    if head_dim % 2:
        raise ValueError(f"an odd head_dim {head_dim}")
    return head_dim


def _kv_heads(raw: dict[str, Any], n_heads: int) -> int:
    key = "num_key_value_heads"
    default = KV_HEADS.get(raw["model_type"], n_heads)
    given = raw.get(key, default)
    n_kv_heads = count({key: n_heads if given is None else given}, key, MOST_HEADS)
    if n_heads % n_kv_heads:
        implied = "" if key in raw else f" (what a config without {key} means)"
        raise ValueError(f"{n_heads} heads for {n_kv_heads} key/value heads{implied}")
    return n_kv_heads


def _windows(raw: dict[str, Any], n_layers: int) -> tuple[int | None, ...]:
    """Return each layer's window: Mistral's is global, Qwen's by layer and off by default."""
    kinds = raw.get("layer_types")
    if kinds is not None:
        if not isinstance(kinds, list) or any(kind not in LAYER_TYPES for kind in kinds):
            raise ValueError(f"layer_types {kinds!r:.120}; known are {', '.join(LAYER_TYPES)}")
        if len(kinds) != n_layers:
            raise ValueError(f"{len(kinds)} layer_types for {n_layers} layers")
    if raw["model_type"] == "llama":
        return (None,) * n_layers
    window = _window(raw)
    if raw["model_type"] == "mistral":
        if kinds is not None and (window is None or set(kinds) != {"sliding_attention"}):
            raise ValueError(
                f"a Mistral with layer_types {kinds!r:.80}, read in two ways elsewhere"
            )
        return (window,) * n_layers
    if not flag(raw, "use_sliding_window"):
        window = None
    first = raw.get("max_window_layers", 28)
    if isinstance(first, bool) or not isinstance(first, int):
        raise ValueError(f"max_window_layers {first!r:.80}")
    if kinds is None:
        return tuple(window if i >= first else None for i in range(n_layers))
    if window is None and "sliding_attention" in kinds:
        raise ValueError("layer_types with sliding_attention, and no sliding window in use")
    return tuple(window if kind == "sliding_attention" else None for kind in kinds)


def _window(raw: dict[str, Any]) -> int | None:
    if raw.get("sliding_window", 0) is None:
        return None
    return count({"sliding_window": 4096} | raw, "sliding_window", MOST_POSITIONS)


def tensor_shapes(config: DecoderConfig) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Yield the name and shape of every tensor that a checkpoint of this shape holds."""
    hidden, wide = config.hidden_size, config.intermediate_size
    width, kv_width = config.n_heads * config.head_dim, config.n_kv_heads * config.head_dim
    yield TABLE, (config.vocab_size, hidden)
    if not config.tied:
        yield HEAD, (config.vocab_size, hidden)
    yield "model.norm.weight", (hidden,)
    linear = {
        "self_attn.q_proj": (width, hidden, config.qkv_bias),
        "self_attn.k_proj": (kv_width, hidden, config.qkv_bias),
        "self_attn.v_proj": (kv_width, hidden, config.qkv_bias),
        "self_attn.o_proj": (hidden, width, config.o_bias),
        "mlp.gate_proj": (wide, hidden, config.mlp_bias),
        "mlp.up_proj": (wide, hidden, config.mlp_bias),
        "mlp.down_proj": (hidden, wide, config.mlp_bias),
    }
    for i in range(config.n_layers):
        prefix = f"model.layers.{i}"
        yield f"{prefix}.input_layernorm.weight", (hidden,)
        yield f"{prefix}.post_attention_layernorm.weight", (hidden,)
        if config.qk_norm:
            yield f"{prefix}.self_attn.q_norm.weight", (config.head_dim,)
            yield f"{prefix}.self_attn.k_norm.weight", (config.head_dim,)
        for name, (rows, columns, bias) in linear.items():
            yield f"{prefix}.{name}.weight", (rows, columns)
            if bias:
                yield f"{prefix}.{name}.bias", (rows,)


def _check_tensors(config: DecoderConfig, files: dict[str, Path], folder: Path) -> None:
    """Compare a config with the headers of the weights.

    Raises:
        ModelError: A tensor is missing, unexpected, mis-shaped or holds no floats.
    """
    if config.n_layers > len(files):
        raise ModelError(
            f"expected {config.n_layers} layers as the config says, got {len(files)} tensors",
            where=str(folder),
        )
    shapes = dict(tensor_shapes(config))
    missing = [name for name in shapes if name not in files]
    unexpected = [n for n in files if n not in shapes and "rotary_emb" not in n]
    for problem, names in (("no", missing), ("an unexpected", unexpected)):
        if names:
            raise ModelError(
                f"expected the tensors of a {config.model_type} model, got {problem} "
                f"{names[0]}{f' (and {len(names) - 1} more)' if len(names) > 1 else ''}",
                where=str(folder),
            )
    for name, shape, dtype in headers({name: files[name] for name in shapes}):
        if shape != shapes[name]:
            raise ModelError(
                f"expected {name} of shape {shapes[name]} as the config says, got: {shape}",
                where=str(files[name]),
            )
        if dtype not in FLOATS:
            raise ModelError(f"expected floats in {name}, got: {dtype}", where=str(files[name]))
