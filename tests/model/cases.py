"""Architectures and the settings of their configs that change what is computed."""


def rope(kind: str, **parameters) -> dict:
    return {"rope_parameters": {"rope_type": kind, "rope_theta": 10_000.0, **parameters}}


LINEAR = rope("linear", factor=3.0)
LLAMA3 = rope(
    "llama3",
    factor=8.0,
    low_freq_factor=1.0,
    high_freq_factor=4.0,
    original_max_position_embeddings=64,
)
YARN = rope("yarn", factor=4.0, original_max_position_embeddings=64)
MOE = {
    "num_experts": 5, "num_experts_per_tok": 2, "moe_intermediate_size": 24, "head_dim": 8,
}  # fmt: skip
GEMMA3 = {
    "head_dim": 16, "sliding_window": 8, "query_pre_attn_scalar": 16,
    "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
}  # fmt: skip
CASES = {
    "qwen2": ("qwen2", {}),
    "qwen2-tied": ("qwen2", {"tie_word_embeddings": True}),
    "qwen2-sliding": (
        "qwen2",
        {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 1},
    ),
    "qwen2-yarn": ("qwen2", YARN),
    "qwen3": ("qwen3", {"head_dim": 8}),
    "qwen3-tied-wide-heads": ("qwen3", {"tie_word_embeddings": True, "head_dim": 20}),
    "qwen3-default-head-dim": ("qwen3", {}),
    "qwen3-biases": ("qwen3", {"attention_bias": True, "head_dim": 8}),
    "llama": ("llama", {}),
    "llama-tied": ("llama", {"tie_word_embeddings": True}),
    "llama-biases": ("llama", {"attention_bias": True, "mlp_bias": True}),
    "llama-attention-bias": ("llama", {"attention_bias": True}),
    "llama-wide-heads": ("llama", {"head_dim": 12}),
    "llama-no-groups": ("llama", {"num_key_value_heads": 6}),
    "llama-one-layer": ("llama", {"num_hidden_layers": 1}),
    "llama-theta": ("llama", rope("default") | {"rope_parameters": {"rope_theta": 500.0}}),
    "llama-linear": ("llama", LINEAR),
    "llama-llama3": ("llama", LLAMA3 | {"head_dim": 16}),
    "llama-yarn": ("llama", YARN | {"head_dim": 16}),
    "llama-yarn-factor-given": (
        "llama",
        rope("yarn", factor=4.0, original_max_position_embeddings=64, attention_factor=0.8),
    ),
    "mistral": ("mistral", {"sliding_window": None}),
    "mistral-tied": ("mistral", {"sliding_window": None, "tie_word_embeddings": True}),
    "mistral-sliding": ("mistral", {"sliding_window": 8}),
    "mistral-wide-heads": ("mistral", {"sliding_window": 8, "head_dim": 16}),
    "olmo2": ("olmo2", {}),
    "olmo2-biases-tied": ("olmo2", {"attention_bias": True, "tie_word_embeddings": True}),
    "olmo2-no-groups": ("olmo2", {"num_key_value_heads": 6}),
    "smollm3": ("smollm3", {"no_rope_layers": [1, 0, 1], "pad_token_id": None}),
    "smollm3-defaults": ("smollm3", {"num_hidden_layers": 5, "pad_token_id": None}),
    "smollm3-sliding-biases": (
        "smollm3",
        {
            "no_rope_layer_interval": 2,
            "use_sliding_window": True,
            "sliding_window": 8,
            "attention_bias": True,
            "mlp_bias": True,
            "tie_word_embeddings": False,
            "pad_token_id": None,
        },
    ),
    "gemma3": ("gemma3_text", GEMMA3),
    "gemma3-scaled": (
        "gemma3_text",
        GEMMA3
        | {
            "query_pre_attn_scalar": 12,
            "attention_bias": True,
            "tie_word_embeddings": False,
            "rope_parameters": {
                "full_attention": {"rope_type": "linear", "rope_theta": 5e4, "factor": 8.0},
                "sliding_attention": {"rope_type": "default", "rope_theta": 500.0},
            },
        },
    ),
    "qwen3-moe": ("qwen3_moe", MOE),
    "qwen3-moe-mixed": (
        "qwen3_moe",
        MOE
        | {
            "mlp_only_layers": [0],
            "norm_topk_prob": True,
            "use_sliding_window": True,
            "sliding_window": 8,
        },
    ),
    "gemma3-pattern": ("gemma3_text", GEMMA3 | {"num_hidden_layers": 7, "layer_types": None}),
}
