"""Changes to a config.json: settings set to each of their documented values, dropped, doubled or
misspelt.
"""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

HUGE = 10**30
WINDOWS = (None, 4, 8, 4096, 0, -3, HUGE, 5.0)
LAYERS = (
    None, ["full_attention"] * 2, ["full_attention", "sliding_attention"],
    ["sliding_attention"] * 2, ["full_attention"], ["full_attention", "chunked_attention"], [],
)  # fmt: skip
VALUES: dict[str, tuple[Any, ...]] = {
    "model_type": ("qwen2", "qwen3", "llama", "mistral", "olmo2", "smollm3", "gemma", None),
    "hidden_act": ("silu", "swish", "gelu", "relu", None),
    "rms_norm_eps": (1e-6, 1e-5, 1e-2, None),
    "tie_word_embeddings": (True, False, None),
    "attention_bias": (True, False, None),
    "mlp_bias": (True, False, None),
    "head_dim": (4, 6, 8, None, 3),
    "num_attention_heads": (4, 2, 8, 0),
    "num_key_value_heads": (1, 2, 4, None, 3),
    "num_hidden_layers": (1, 2, 3, HUGE),
    "hidden_size": (16, 32, HUGE),
    "intermediate_size": (24, 48, HUGE),
    "vocab_size": (61, 60, 64),
    "max_position_embeddings": (64, 48, 4096, HUGE),
    "rope_theta": (10_000.0, 1_000_000, 500.0, 7, 1, None, 1e300),
    "partial_rotary_factor": (1.0, 0.5, None),
    "original_max_position_embeddings": (16, 32, None),
    "sliding_window": WINDOWS,
    "use_sliding_window": (True, False, None),
    "max_window_layers": (0, 1, 2, 28, -1, None),
    "layer_types": LAYERS,
    "attention_dropout": (0.0, 0, 0.1),
    "dtype": ("bfloat16", "float16", "float32"),
    "torch_dtype": ("bfloat16", "float16"),
    "initializer_range": (0.02, 0.5),
    "use_cache": (True, False),
    "pretraining_tp": (1, 2),
    "architectures": (["LlamaForCausalLM"], ["Qwen2Model"], None),
    "bos_token_id": (1, None),
    "eos_token_id": (2, [2, 3], None),
    "pad_token_id": (0, -1, None),
    "final_logit_softcapping": (30.0, None),
    "attn_logit_softcapping": (50.0, None),
    "hidden_activation": ("gelu_pytorch_tanh", "gelu", "silu", None),
    "query_pre_attn_scalar": (4, 6, 256, 0, 2.5, None),
    "sliding_window_pattern": (1, 2, 6, 0, None),
    "use_bidirectional_attention": (False, True, None),
    "rope_local_base_freq": (10_000.0, 40, None),
    "num_experts": (4, 3, 0, None),
    "num_experts_per_tok": (1, 2, 4, 5),
    "moe_intermediate_size": (12, 24, None),
    "norm_topk_prob": (True, False, None),
    "decoder_sparse_step": (1, 2, 0),
    "mlp_only_layers": ([0], [], [0, 1], None),
    "no_rope_layers": ([1, 0], [0, 0, 1], [1], [1, 2], None),
    "no_rope_layer_interval": (1, 2, 4, 0, None),
    "logit_scale": (0.5,),
    "qk_norm": (True,),
    "transformers_weights": ("model.safetensors", "other.safetensors", "../x.safetensors", 3, None),
    "quantization_config": ({"quant_method": "gptq", "bits": 4},),
    "per_layer_config": (None, {"0": {"intermediate_size": 24}}),
    "text_config": (None,),
}
ROPE_NUMBERS: dict[str, tuple[Any, ...]] = {
    "factor": (1.0, 2.0, 4, 0.5, None),
    "rope_theta": (10_000.0, 500_000.0, 40, 3.0, 1),
    "original_max_position_embeddings": (8, 16, 32, 64, 16.0),
    "low_freq_factor": (1.0, 2, 0.5),
    "high_freq_factor": (4.0, 8, 1.0),
    "attention_factor": (None, 0.8, 1.0, 0, "1"),
    "beta_fast": (None, 32, 4.0, 1, -1),
    "beta_slow": (None, 1, 0.25, 40),
    "mscale": (None, 0.7, 1),
    "mscale_all_dim": (None, 1.3, 1),
    "truncate": (True, False, None),
    "partial_rotary_factor": (1.0, 0.5),
}
LAYER_KINDS = ("full_attention", "sliding_attention")
SPELLINGS = ("rope_type", "type")
OF_TYPE = {
    "default": (),
    "linear": ("factor",),
    "llama3": ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"),
    "yarn": ("factor", "original_max_position_embeddings"),
    "dynamic": ("factor",),
    "longrope": ("factor",),
}


def rope_settings(rng: random.Random) -> Any:
    """Return rope parameters of any type: mostly whole, at times with too much or too little."""
    if rng.random() < 0.1:
        return rng.choice([None, {}, "yarn", {"full_attention": {"rope_type": "default"}}])
    if rng.random() < 0.15:
        return {kind: one_rope(rng) for kind in rng.choice([LAYER_KINDS, LAYER_KINDS[:1]])}
    return one_rope(rng)


def one_rope(rng: random.Random) -> dict[str, Any]:
    """Return the parameters of one rotation."""
    kind = rng.choice(["default", "linear", "llama3", "llama3", "yarn", "yarn", "yarn", "dynamic"])
    rope: dict[str, Any] = {rng.choice(SPELLINGS): kind}
    for key in OF_TYPE[kind]:
        if rng.random() < 0.95:
            rope[key] = rng.choice(ROPE_NUMBERS[key][:3])
    for key in rng.sample(list(ROPE_NUMBERS), rng.randrange(4)):
        rope[key] = rng.choice(ROPE_NUMBERS[key])
    if rng.random() < 0.1:
        rope[rng.choice(SPELLINGS)] = rng.choice(list(OF_TYPE))
    return rope


def misspelt(rng: random.Random, key: str) -> str:
    """Return a key with a letter lost, doubled, or in upper case."""
    at = rng.randrange(len(key))
    return rng.choice([key[:at] + key[at + 1 :], key[: at + 1] + key[at:], key.upper(), f"{key}s"])


def change_config(rng: random.Random, folder: Path) -> None:
    """Change one to four settings of a model folder's config.json."""
    path = folder / "config.json"
    pairs = list(json.loads(path.read_text()).items())
    for _ in range(rng.choice([1, 1, 1, 2, 2, 3, 4])):
        key = rng.choice([*VALUES, *["rope_parameters", "rope_scaling"] * 4, *dict(pairs)])
        kind = rng.choice(["set"] * 6 + ["drop", "drop", "double", "misspell"])
        if key.startswith("rope_") and key != "rope_theta":
            value = rope_settings(rng)
        else:
            value = rng.choice(VALUES.get(key, (dict(pairs).get(key),)))
        at = next((i for i, (name, _) in enumerate(pairs) if name == key), None)
        if kind == "drop" and at is not None:
            del pairs[at]
        elif kind == "double":
            pairs.append((key, value))
        elif kind == "misspell" and at is not None:
            pairs[at] = (misspelt(rng, key), pairs[at][1])
        else:
            pairs = [pair for pair in pairs if pair[0] != key] + [(key, value)]
    members = ", ".join(f"{json.dumps(key)}: {json.dumps(value)}" for key, value in pairs)
    path.write_text(f"{{{members}}}")
