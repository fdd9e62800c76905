"""What a GGUF file of Gemma 3 means beyond what transformers reads of it.

A setting that the file does not name means what llama.cpp, which wrote it, makes of that: a local
rotation of theta 10,000, every sixth layer without a window, and attention scaled by the size of a
head but in the largest model.
"""

from __future__ import annotations

import math
from typing import Any

from cqa.convert.gguf_file import GgufFile
from cqa.errors import ModelError

GEMMA = "gemma3"
NAMED = ("attention.key_length", "attention.sliding_window", "rope.freq_base")  # by every writer
LOCAL = "rope.freq_base_swa"
LOCAL_THETA = 10_000.0
LARGEST = 62  # layers of the model whose attention is scaled by hidden_size / heads


def check_named(file: GgufFile) -> None:
    """Refuse a Gemma that does not name what transformers and llama.cpp have other defaults of.

    Raises:
        ModelError: A key is missing, or no number above 0.
    """
    for key in (*NAMED, LOCAL):
        value = file.fields.get(f"{GEMMA}.{key}", LOCAL_THETA if key == LOCAL else None)
        if value is None or type(value) not in (int, float) or not 0 < value < math.inf:
            got = "none" if value is None else f"{value!r:.80}"
            raise ModelError(f"expected {GEMMA}.{key} above 0, got {got}", where=str(file.path))


def attention_scalar(file: GgufFile, config: dict[str, Any]) -> int:
    """Return query_pre_attn_scalar, whose root divides the products of queries and keys."""
    if config["num_hidden_layers"] == LARGEST:
        return int(config["hidden_size"] // config["num_attention_heads"])
    return int(file.fields[f"{GEMMA}.attention.key_length"])


def local_rotation(file: GgufFile) -> dict[str, Any]:
    """Return the rotation of layers with a window, which is never scaled."""
    theta = file.fields.get(f"{GEMMA}.{LOCAL}", LOCAL_THETA)
    return {"rope_type": "default", "rope_theta": theta}
