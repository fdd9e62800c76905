"""What each architecture means by its config.json: defaults, norms, windows and rotations.

A setting means what transformers 5 makes of it. Where transformers itself reads a file in two ways,
depending on its attention kernel or release, the file is refused.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from cqa.model.numbers import count, flag
from cqa.model.rope import Rope
from cqa.model.rope_settings import DEFAULT_THETA, read_rope

MOST_POSITIONS = 2**31 - 1
MOST_HEADS, MOST_HEAD_DIM, MOST_EXPERTS = 10_000, 10_000, 10_000
LAYER_TYPES = ("full_attention", "sliding_attention")
BEFORE = {"input_norm": "input_layernorm", "post_norm": "post_attention_layernorm"}
AFTER = {"o_norm": "post_attention_layernorm", "down_norm": "post_feedforward_layernorm"}
AROUND = {**AFTER, "input_norm": "input_layernorm", "post_norm": "pre_feedforward_layernorm"}
Rotation = Literal["global", "local"]
Windows = tuple[int | None, ...]


@dataclass(frozen=True, slots=True)
class Architecture:
    """What a model type settles, and what a config of it means where it does not say."""

    kv_heads: int | None = None  # default; None is all heads
    head_dim: int | None = None  # default; None is hidden_size / heads
    null_head_dim: bool = False  # null is the default too
    whole_heads: bool = False  # hidden_size must be a multiple of the heads
    qkv_bias: bool = False  # whatever attention_bias says
    attention_bias: bool = False  # attention_bias counts
    mlp_bias: bool = False  # mlp_bias counts
    qk_norm: Literal["head", "row"] | None = None
    norms: Mapping[str, str] | None = None  # of a layer, by our name; None is BEFORE
    one_plus: bool = False  # norms scale by 1 + weight
    activation: tuple[str, tuple[str, ...]] = ("hidden_act", ("silu", "swish"))
    default_activation: str = "silu"
    eps: float = 1e-6
    theta: float = DEFAULT_THETA
    tied: bool = False  # default of tie_word_embeddings
    pad_id: int | None = None  # default of pad_token_id


ARCHITECTURES = {
    "qwen2": Architecture(kv_heads=32, qkv_bias=True),
    "qwen3": Architecture(kv_heads=32, head_dim=128, attention_bias=True, qk_norm="head"),
    "qwen3_moe": Architecture(kv_heads=4, attention_bias=True, qk_norm="head"),
    "llama": Architecture(null_head_dim=True, whole_heads=True, attention_bias=True, mlp_bias=True),
    "mistral": Architecture(kv_heads=8, null_head_dim=True),
    "olmo2": Architecture(attention_bias=True, qk_norm="row", norms=AFTER, eps=1e-5, pad_id=1),
    "smollm3": Architecture(
        kv_heads=4, attention_bias=True, mlp_bias=True, theta=2_000_000.0, tied=True, pad_id=128_004
    ),
    "gemma3_text": Architecture(
        kv_heads=4,
        head_dim=256,
        whole_heads=True,
        attention_bias=True,
        qk_norm="head",
        norms=AROUND,
        one_plus=True,
        activation=("hidden_activation", ("gelu_pytorch_tanh",)),
        default_activation="gelu_pytorch_tanh",
        tied=True,
        pad_id=0,
    ),
}


def check_pad_id(raw: dict[str, Any], vocab_size: int) -> None:
    """Refuse a padding token that is none of the vocabulary: transformers loads no such model."""
    pad_id = raw.get("pad_token_id", ARCHITECTURES[raw["model_type"]].pad_id)
    if isinstance(pad_id, int) and not -vocab_size <= pad_id < vocab_size:
        raise ValueError(f"pad_token_id {pad_id} with a vocab_size of {vocab_size}")


def read_head_dim(raw: dict[str, Any], per_head: int) -> int:
    """Return the features of a head, an even number."""
    known = ARCHITECTURES[raw["model_type"]]
    if "head_dim" not in raw or (raw["head_dim"] is None and known.null_head_dim):
        raw = {"head_dim": known.head_dim or per_head}
    head_dim = count(raw, "head_dim", MOST_HEAD_DIM)
    if head_dim % 2:
        raise ValueError(f"an odd head_dim {head_dim}")
    return head_dim


def read_kv_heads(raw: dict[str, Any], n_heads: int) -> int:
    """Return the number of key/value heads, of which the heads are a multiple."""
    key = "num_key_value_heads"
    given = raw.get(key, ARCHITECTURES[raw["model_type"]].kv_heads)
    n_kv_heads = count({key: n_heads if given is None else given}, key, MOST_HEADS)
    if n_heads % n_kv_heads:
        implied = "" if key in raw else f" (what a config without {key} means)"
        raise ValueError(f"{n_heads} heads for {n_kv_heads} key/value heads{implied}")
    return n_kv_heads


def read_windows(raw: dict[str, Any], n_layers: int) -> Windows:
    """Return each layer's window: Mistral's is global, Qwen's and others' by layer."""
    kinds = _layer_types(raw, n_layers)
    model_type = raw["model_type"]
    if model_type in ("llama", "olmo2"):
        return (None,) * n_layers
    if model_type == "mistral":
        return _mistral_windows(raw, kinds, n_layers)
    if model_type == "qwen3_moe":
        if kinds is not None:
            raise ValueError(f"a Qwen3-MoE with layer_types {kinds!r:.80}, which it does not have")
        return ((_window(raw) if flag(raw, "use_sliding_window") else None),) * n_layers
    if model_type == "gemma3_text":
        return _gemma_windows(raw, kinds, n_layers)
    if model_type == "smollm3":
        return _smollm_windows(raw, kinds, n_layers)
    return _qwen_windows(raw, kinds, n_layers)


@dataclass(frozen=True, slots=True)
class ExpertShape:
    """What a mixture of experts is made of, and which layers have one."""

    n_experts: int
    top_k: int
    width: int  # features within an expert
    normalised: bool  # weights of the chosen sum to 1
    layers: tuple[bool, ...]


def read_experts(raw: dict[str, Any], n_layers: int) -> ExpertShape | None:
    """Return the experts of a Qwen3-MoE; None for other architectures."""
    if raw["model_type"] != "qwen3_moe":
        return None
    names = [key for key in ("num_experts", "num_local_experts") if key in raw]
    if len({repr(raw[key]) for key in names}) > 1:
        raise ValueError("both num_experts and num_local_experts, which differ")
    n = count({"num_experts": raw[names[0]] if names else 128}, "num_experts", MOST_EXPERTS)
    step = count({"decoder_sparse_step": 1} | raw, "decoder_sparse_step", MOST_POSITIONS)
    dense = raw.get("mlp_only_layers") or []
    if not isinstance(dense, list) or any(type(i) is not int for i in dense):
        raise ValueError(f"mlp_only_layers {dense!r:.80}")
    top_k = count({"num_experts_per_tok": 8} | raw, "num_experts_per_tok", MOST_EXPERTS)
    if top_k > n:
        raise ValueError(f"{top_k} experts a token of {n}")
    return ExpertShape(
        n_experts=n,
        top_k=top_k,
        width=count({"moe_intermediate_size": 768} | raw, "moe_intermediate_size", 1_000_000),
        normalised=flag(raw, "norm_topk_prob"),
        layers=tuple(i not in dense and (i + 1) % step == 0 for i in range(n_layers)),
    )


def _layer_types(raw: dict[str, Any], n_layers: int) -> list[str] | None:
    kinds = raw.get("layer_types")
    if kinds is None:
        return None
    if not isinstance(kinds, list) or any(kind not in LAYER_TYPES for kind in kinds):
        raise ValueError(f"layer_types {kinds!r:.120}; known are {', '.join(LAYER_TYPES)}")
    if len(kinds) != n_layers:
        raise ValueError(f"{len(kinds)} layer_types for {n_layers} layers")
    return kinds


def _mistral_windows(raw: dict[str, Any], kinds: list[str] | None, n_layers: int) -> Windows:
    window = _window(raw)
    if kinds is not None and (window is None or set(kinds) != {"sliding_attention"}):
        raise ValueError(f"a Mistral with layer_types {kinds!r:.80}, read in two ways elsewhere")
    return (window,) * n_layers


def _qwen_windows(raw: dict[str, Any], kinds: list[str] | None, n_layers: int) -> Windows:
    window = _window(raw)
    if not flag(raw, "use_sliding_window"):
        window = None
    first = raw.get("max_window_layers", 28)
    if isinstance(first, bool) or not isinstance(first, int):
        raise ValueError(f"max_window_layers {first!r:.80}")
    if kinds is None:
        return tuple(window if i >= first else None for i in range(n_layers))
    return _by_kind(window, kinds)


def _smollm_windows(raw: dict[str, Any], kinds: list[str] | None, n_layers: int) -> Windows:
    window = _window({"sliding_window": None} | raw)
    if not flag(raw, "use_sliding_window"):
        window = None
    if kinds is None:
        return tuple(None if rotated else window for rotated in _rotated(raw, n_layers))
    return _by_kind(window, kinds)


def _gemma_windows(raw: dict[str, Any], kinds: list[str] | None, n_layers: int) -> Windows:
    if flag({"use_bidirectional_attention": raw.get("use_bidirectional_attention") or False},
            "use_bidirectional_attention"):  # fmt: skip
        raise ValueError("use_bidirectional_attention, which scores no text from left to right")
    every = count({"sliding_window_pattern": 6} | raw, "sliding_window_pattern", MOST_POSITIONS)
    pattern = [LAYER_TYPES[(i + 1) % every != 0] for i in range(n_layers)]
    if kinds is not None and "sliding_window_pattern" in raw and kinds != pattern:
        raise ValueError("layer_types that are not those of sliding_window_pattern")
    return _by_kind(_window(raw), kinds or pattern)


def _by_kind(window: int | None, kinds: list[str]) -> Windows:
    if window is None and "sliding_attention" in kinds:
        raise ValueError("layer_types with sliding_attention, and no sliding window in use")
    return tuple(window if kind == "sliding_attention" else None for kind in kinds)


def _window(raw: dict[str, Any]) -> int | None:
    if raw.get("sliding_window", 0) is None:
        return None
    return count({"sliding_window": 4096} | raw, "sliding_window", MOST_POSITIONS)


def _rotated(raw: dict[str, Any], n_layers: int) -> list[bool]:
    """Return of each layer of a SmolLM3 whether it rotates: all but every fourth by default."""
    given, key = raw.get("no_rope_layers"), "no_rope_layer_interval"
    every = count({key: 4} | raw, key, MOST_POSITIONS)
    if given is None:
        return [(i + 1) % every != 0 for i in range(n_layers)]
    if not isinstance(given, list) or any(type(x) is not int or x not in (0, 1) for x in given):
        raise ValueError(f"no_rope_layers {given!r:.80}; known are 0 (no rotation) and 1")
    if len(given) < n_layers:
        raise ValueError(f"{len(given)} no_rope_layers for {n_layers} layers")
    return [bool(x) for x in given[:n_layers]]


@dataclass(frozen=True, slots=True)
class Rotations:
    """The rotary settings of a model, and which of them each layer uses."""

    rope: Rope
    local: Rope | None  # those of layers with a window, where they have their own
    layers: tuple[Rotation | None, ...]  # None: a layer without positions


def read_rotations(raw: dict[str, Any], n_layers: int, head_dim: int) -> Rotations:
    """Return each layer's rotation.

    Raises:
        ValueError: The settings are malformed, contradict each other, or are not computed here.
        KeyError: One is missing.
    """
    model_type = raw["model_type"]
    theta = ARCHITECTURES[model_type].theta
    if model_type == "gemma3_text":
        return _gemma_rotations(raw, n_layers, head_dim)
    rope = read_rope(raw, head_dim, theta)
    rotated = _rotated(raw, n_layers) if model_type == "smollm3" else [True] * n_layers
    return Rotations(rope, None, tuple("global" if r else None for r in rotated))


def _gemma_rotations(raw: dict[str, Any], n_layers: int, head_dim: int) -> Rotations:
    """Read the two rotations: older files name the local theta alone, newer ones have a dict."""
    nested = raw.get("rope_parameters")
    known = ("full_attention", "sliding_attention")
    if nested is not None and (not isinstance(nested, dict) or not set(nested) <= set(known)):
        raise ValueError(f"rope parameters {nested!r:.80}; expected those of {' and '.join(known)}")
    of = {} if nested is None else nested
    shared = {"max_position_embeddings": raw["max_position_embeddings"]}
    settings = {"global": dict(shared), "local": dict(shared)}
    for place, kind, theta in (
        ("global", "full_attention", "rope_theta"),
        ("local", "sliding_attention", "rope_local_base_freq"),
    ):
        settings[place]["rope_parameters"] = of.get(kind)
        if theta in raw:
            settings[place]["rope_theta"] = raw[theta]
    settings["global"]["rope_scaling"] = raw.get("rope_scaling")
    for key in ("partial_rotary_factor", "original_max_position_embeddings"):
        if key in raw:
            settings["global"][key] = settings["local"][key] = raw[key]
    windows = read_windows(raw, n_layers)
    return Rotations(
        read_rope(settings["global"], head_dim, 1_000_000.0),
        read_rope(settings["local"], head_dim, 10_000.0),
        tuple("global" if window is None else "local" for window in windows),
    )
