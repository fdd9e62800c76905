"""A decoder's shape, read from a Hugging Face folder; what is not understood is refused.

A setting means what transformers 5 makes of it, its defaults too. Sizes are compared with the
headers of the weights before anything is allocated.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from cqa.errors import ModelError
from cqa.model.adapter_files import CONFIG as ADAPTER_CONFIG
from cqa.model.architectures import (
    ARCHITECTURES,
    BEFORE,
    MOST_HEADS,
    MOST_POSITIONS,
    ExpertShape,
    Rotation,
    check_pad_id,
    read_experts,
    read_head_dim,
    read_kv_heads,
    read_rotations,
    read_windows,
)
from cqa.model.checkpoint import headers, tensor_files
from cqa.model.numbers import count, flag, number
from cqa.model.rope import Rope
from cqa.reading import read_object

MOST_LAYERS = 10_000
MOST_FEATURES, MOST_TOKENS = 1_000_000, 10_000_000  # products of these fit 64 bits
FLOATS = {"F64", "F32", "F16", "BF16"}  # as safetensors calls them
TABLE, HEAD = "model.embed_tokens.weight", "lm_head.weight"
OTHER_ENGINE = "score --engine transformers scores what transformers itself loads, without training"
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
    qk_norm: Literal["head", "row"] | None  # what a norm of q and of k goes over
    windows: tuple[int | None, ...]  # sliding window of each layer
    rope: Rope
    local_rope: Rope | None  # that of layers with a window, where they have their own
    rotations: tuple[Rotation | None, ...]  # of each layer; None is a layer without positions
    norms: Mapping[str, str]  # of a layer: our name, and the checkpoint's
    one_plus: bool  # norms scale by 1 + weight
    activation: Literal["silu", "gelu_tanh"]
    embedding_scale: float
    query_factor: float  # on q, where attention is not scaled by 1/sqrt(head_dim)
    experts: ExpertShape | None  # of layers that have them in place of an MLP

    def has_experts(self, layer: int) -> bool:
        """Whether a layer has experts in place of an MLP."""
        return self.experts is not None and self.experts.layers[layer]


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
    if not isinstance(model_type, str) or model_type not in ARCHITECTURES:
        raise ModelError(
            f"expected one of {', '.join(ARCHITECTURES)}, got architecture: {model_type!r:.80}",
            where=where,
            hint=OTHER_ENGINE,
        )
    for key, expected in ELSEWHERE.items():
        if raw.get(key) is not None:
            raise ModelError(f"expected {expected}", where=where)
    known = ARCHITECTURES[model_type]
    key, names = known.activation
    if raw.get(key, known.default_activation) not in names:
        raise ModelError(f"expected {key} {names[0]}, got: {raw[key]!r:.80}", where=where)
    try:
        return _parse(raw)
    except KeyError as error:
        raise ModelError(f"expected `{error.args[0]}`, got none", where=where) from None
    except ValueError as error:
        raise ModelError(
            f"expected a consistent config, got: {error}",
            where=where,
            hint=OTHER_ENGINE if isinstance(error, _FinalCapError) else None,
        ) from None


def _parse(raw: dict[str, Any]) -> DecoderConfig:
    model_type = raw["model_type"]
    known = ARCHITECTURES[model_type]
    n_layers = count(raw, "num_hidden_layers", MOST_LAYERS)
    n_heads = count(raw, "num_attention_heads", MOST_HEADS)
    hidden_size = count(raw, "hidden_size", MOST_FEATURES)
    if known.whole_heads and hidden_size % n_heads:
        raise ValueError(f"hidden_size {hidden_size} for {n_heads} heads")
    head_dim = read_head_dim(raw, hidden_size // n_heads)
    dropout = raw.get("attention_dropout")
    if dropout is not None and (isinstance(dropout, bool) or dropout != 0):
        raise ValueError(f"attention_dropout {dropout!r:.80}, which is not applied here")
    attention_bias, mlp_bias = flag(raw, "attention_bias"), flag(raw, "mlp_bias")
    bias = attention_bias and known.attention_bias
    rotations = read_rotations(raw, n_layers, head_dim)
    gemma = model_type == "gemma3_text"
    if gemma:
        _refuse_soft_caps(raw)
    vocab_size = count(raw, "vocab_size", MOST_TOKENS)
    check_pad_id(raw, vocab_size)
    return DecoderConfig(
        model_type=model_type,
        n_layers=n_layers,
        hidden_size=hidden_size,
        intermediate_size=count(raw, "intermediate_size", MOST_FEATURES),
        n_heads=n_heads,
        n_kv_heads=read_kv_heads(raw, n_heads),
        head_dim=head_dim,
        vocab_size=vocab_size,
        max_positions=count(raw, "max_position_embeddings", MOST_POSITIONS),
        rms_norm_eps=number({"rms_norm_eps": known.eps} | raw, "rms_norm_eps", most=1.0),
        tied=flag({"tie_word_embeddings": known.tied} | raw, "tie_word_embeddings"),
        qkv_bias=known.qkv_bias or bias,
        o_bias=bias,
        mlp_bias=mlp_bias and known.mlp_bias,
        qk_norm=known.qk_norm,
        windows=read_windows(raw, n_layers),
        rope=rotations.rope,
        local_rope=rotations.local,
        rotations=rotations.layers,
        norms=known.norms or BEFORE,
        one_plus=known.one_plus,
        activation="gelu_tanh" if gemma else "silu",
        embedding_scale=hidden_size**0.5 if gemma else 1.0,
        query_factor=_query_factor(raw, head_dim) if gemma else 1.0,
        experts=read_experts(raw, n_layers),
    )


def _refuse_soft_caps(raw: dict[str, Any]) -> None:
    """Refuse what no Gemma 3 has set, and what transformers applies in one of two places only."""
    for key, error in (
        ("final_logit_softcapping", _FinalCapError),
        ("attn_logit_softcapping", ValueError),
    ):
        if raw.get(key) is not None:
            raise error(f"{key} {raw[key]!r:.80}, which is not computed here")


class _FinalCapError(ValueError):
    """A soft cap on the final logits, which transformers computes whatever its attention kernel."""


def _query_factor(raw: dict[str, Any], head_dim: int) -> float:
    """Return the factor on q that makes 1/sqrt(head_dim) 1/sqrt(query_pre_attn_scalar)."""
    key = "query_pre_attn_scalar"
    return float((head_dim / count({key: 256} | raw, key, MOST_FEATURES)) ** 0.5)


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
        for norm in config.norms.values():
            yield f"{prefix}.{norm}.weight", (hidden,)
        if config.qk_norm:
            per_head = config.qk_norm == "head"
            for name, features in (("q_norm", width), ("k_norm", kv_width)):
                yield (
                    f"{prefix}.self_attn.{name}.weight",
                    (config.head_dim if per_head else features,),
                )
        if config.experts is not None and config.has_experts(i):
            yield f"{prefix}.mlp.gate.weight", (config.experts.n_experts, hidden)
            for j in range(config.experts.n_experts):
                for name in ("gate_proj", "up_proj"):
                    yield f"{prefix}.mlp.experts.{j}.{name}.weight", (config.experts.width, hidden)
                name = f"{prefix}.mlp.experts.{j}.down_proj.weight"
                yield name, (hidden, config.experts.width)
        for name, (rows, columns, bias) in linear.items():
            if name.startswith("mlp.") and config.has_experts(i):
                continue
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
