"""The config of a GGUF file: what transformers reads of it, and what it leaves out.

transformers builds config and tokenizer of the file's metadata; both are taken from it. It passes
over some settings that change what a model computes: those are read here, or refused.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from cqa.convert.gguf_file import GgufFile, Length
from cqa.convert.gguf_gemma import GEMMA, attention_scalar, check_named, local_rotation
from cqa.errors import ModelError
from cqa.model.rope import Rope, inverse_frequencies

ARCHITECTURES = ("llama", "qwen2", "qwen3", GEMMA)  # as GGUF calls them; Mistral's say llama
FREQUENCIES = "rope_freqs.weight"
NEUTRAL = {  # keys that change what is computed, and where they do not
    "expert_count": (0,),
    "attention.sliding_window": (0,),
    "attention.sliding_window_pattern": (6,),
    "attention.scale": (0.0,),
    "attention.max_alibi_bias": (0.0,),
    "attention.clamp_kqv": (0.0,),
    "attention.causal": (True,),
    "attn_logit_softcapping": (0.0,),
    "final_logit_softcapping": (0.0,),
    "logit_scale": (0.0, 1.0),
    "embedding_scale": (0.0, 1.0),
    "residual_scale": (0.0, 1.0),
    "rope.scale_linear": (0.0, 1.0),
    "rope.scaling.attn_factor": (0.0, 1.0),
    "use_parallel_residual": (False,),
}


@dataclass(frozen=True, slots=True)
class HfReading:
    """What transformers reads of a GGUF file, its weights left out."""

    config: dict[str, Any]  # of config.json
    generation: Any  # GenerationConfig
    tokenizer: Any  # PreTrainedTokenizerFast


def read_hf(file: GgufFile) -> HfReading:
    """Read config, generation defaults and tokenizer.

    Raises:
        ModelError: The decoder lacks the architecture, or transformers or this package cannot read
            a setting.
    """
    if file.architecture not in ARCHITECTURES:
        raise ModelError(
            f"expected a GGUF file of {', '.join(ARCHITECTURES)} (Mistral's is llama), "
            f"got architecture: {file.architecture!r:.80}",
            where=str(file.path),
        )
    _refuse_what_is_dropped(file)
    if file.architecture == GEMMA:
        check_named(file)
    from transformers import AutoConfig, AutoTokenizer, GenerationConfig
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
    from transformers.utils import logging

    logging.set_verbosity_error()
    with _alone(file.path) as folder:
        try:
            config = AutoConfig.from_pretrained(folder, gguf_file=file.path.name)
            tokenizer = AutoTokenizer.from_pretrained(folder, gguf_file=file.path.name)
        except Exception as error:
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise ModelError(
                f"expected config and tokenizer that transformers reads, got: {reason:.200}",
                where=str(file.path),
            ) from error
    raw = config.to_diff_dict()
    raw.pop("_model_name_or_path", None)
    raw["architectures"] = [MODEL_FOR_CAUSAL_LM_MAPPING_NAMES[config.model_type]]
    per_head = config.hidden_size // config.num_attention_heads
    head_dim = file.fields.get(f"{file.architecture}.attention.key_length")
    head_dim = head_dim or getattr(config, "head_dim", None) or per_head
    if hasattr(config, "head_dim") or head_dim != per_head:
        raw["head_dim"] = head_dim
    raw["rope_parameters"] = _rope(file, _read_rope(config), int(head_dim))
    if file.architecture == GEMMA:
        raw["query_pre_attn_scalar"] = attention_scalar(file, raw)
        raw["rope_parameters"] = {
            "full_attention": raw["rope_parameters"],
            "sliding_attention": local_rotation(file),
        }
    _drop_tokens_of_none(tokenizer, file)
    return HfReading(raw, GenerationConfig.from_model_config(config), tokenizer)


def _drop_tokens_of_none(tokenizer: Any, file: GgufFile) -> None:
    """Drop tokens that transformers' classes add to every tokenizer and this model does not have.

    Such as <|endoftext|> of GPT-2, which would get an id beyond the model's vocabulary.
    """
    from tokenizers import Tokenizer

    state = json.loads(tokenizer.backend_tokenizer.to_str())
    n_tokens = file.fields.get("tokenizer.ggml.tokens", 0)
    kept = [token for token in state["added_tokens"] if token["id"] < n_tokens]
    if len(kept) < len(state["added_tokens"]):
        state["added_tokens"] = kept
        tokenizer._tokenizer = Tokenizer.from_str(json.dumps(state))


def _read_rope(config: Any) -> dict[str, Any]:
    """Return the rotation as transformers reads it; of a Gemma that of layers without a window."""
    read = dict(config.rope_parameters)
    return dict(read.get("full_attention", read))


@contextmanager
def _alone(path: Path) -> Iterator[str]:
    """Show transformers the file in a folder of its own: it reads what else lies beside one."""
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / path.name).symlink_to(path.resolve())
        yield folder


def _refuse_what_is_dropped(file: GgufFile) -> None:
    for key, neutral in NEUTRAL.items():
        if key == "attention.sliding_window" and file.architecture == GEMMA:
            continue
        value = file.fields.get(f"{file.architecture}.{key}", neutral[0])
        if isinstance(value, Length) or value not in neutral:
            shown = f"{value} values" if isinstance(value, Length) else f"{value!r:.80}"
            raise ModelError(
                f"expected a plain decoder, got {file.architecture}.{key}: {shown}",
                where=str(file.path),
            )


def _rope(file: GgufFile, rope: dict[str, Any], head_dim: int) -> dict[str, Any]:
    """Return the rotation that the file asks for; transformers passes over its scaling.

    Raises:
        ModelError: It is of a kind that has no name in a config.json.
    """
    prefix = f"{file.architecture}.rope.scaling"
    kind = file.fields.get(f"{prefix}.type", "none")
    if kind != "none" and FREQUENCIES not in file.tensors:
        rope["rope_type"] = kind
        for key, name in (
            ("factor", "factor"),
            ("original_context_length", "original_max_position_embeddings"),
        ):
            if (value := file.fields.get(f"{prefix}.{key}")) is not None:
                rope[name] = value
        return rope
    if FREQUENCIES not in file.tensors:
        return rope
    return _llama3(file, rope, head_dim)


def _llama3(file: GgufFile, rope: dict[str, Any], head_dim: int) -> dict[str, Any]:
    """Return the settings of Llama 3's rotation that give the factors which the file holds."""
    divisors = np.asarray(file.tensors[FREQUENCIES].read(), dtype=np.float64)
    given = f"{file.architecture}.rope.scaling.original_context_length"
    scaled = rope | {
        "rope_type": "llama3",
        "factor": float(divisors.max()),
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": file.fields.get(given, 8192),
    }
    plain, _ = inverse_frequencies(Rope.of(rope | {"rope_type": "default"}), head_dim)
    expected, _ = inverse_frequencies(Rope.of(scaled), head_dim)
    found = plain.double() / torch.from_numpy(divisors)
    if divisors.shape != (head_dim // 2,) or not torch.allclose(
        expected.double(), found, rtol=1e-5, atol=0
    ):
        raise ModelError(
            f"expected the frequencies of Llama 3 in {FREQUENCIES}, got others, which no "
            "config.json can say",
            where=str(file.path),
        )
    return scaled
