"""Model folders and adapters changed at random, read here and by transformers and PEFT.

A case is a function of its number and seed. What is read here must give the log-probabilities that
the other gives within `TOLERANCE_NATS`, or be refused with exit code 4 and a message; where the
other refuses, this must too.
"""

from __future__ import annotations

import copy
import json
import logging
import random
import shutil
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from differential.config_changes import change_config
from differential.weight_changes import change_weights
from helpers import tiny_checkpoint
from model.common import CPU, our_logprobs, their_logprobs
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForCausalLM

from cqa.errors import ModelError
from cqa.model.adapter import read_adapter, read_spec
from cqa.model.load import load_model
from cqa.model.lora import attach
from cqa.model.projection import MODULES

TOLERANCE_NATS = 1e-4
SIZES = {
    "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "vocab_size": 61, "max_position_embeddings": 64,
}  # fmt: skip
PLAIN_IDS = {"pad_token_id": None, "bos_token_id": 1, "eos_token_id": 2}
BASES: dict[str, tuple[str, dict[str, Any]]] = {
    "qwen2": ("qwen2", {}),
    "qwen2-tied": ("qwen2", {"tie_word_embeddings": True}),
    "qwen2-sliding": (
        "qwen2", {"use_sliding_window": True, "sliding_window": 6, "max_window_layers": 1},
    ),
    "qwen3": ("qwen3", {"head_dim": 6}),
    "qwen3-biases": ("qwen3", {"head_dim": 4, "attention_bias": True}),
    "llama": ("llama", {}),
    "llama-tied": ("llama", {"tie_word_embeddings": True}),
    "llama-biases": ("llama", {"attention_bias": True, "mlp_bias": True, "head_dim": 6}),
    "mistral": ("mistral", {"sliding_window": None}),
    "mistral-sliding": ("mistral", {"sliding_window": 7}),
    "qwen3-moe": (
        "qwen3_moe",
        {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 12, "head_dim": 4,
         "mlp_only_layers": [1]},
    ),
    "olmo2": ("olmo2", PLAIN_IDS),
    "olmo2-biases": ("olmo2", PLAIN_IDS | {"attention_bias": True, "tie_word_embeddings": True}),
    "smollm3": ("smollm3", PLAIN_IDS | {"no_rope_layers": [1, 0]}),
    "smollm3-sliding": (
        "smollm3",
        PLAIN_IDS | {"no_rope_layer_interval": 2, "use_sliding_window": True, "sliding_window": 6},
    ),
    "gemma3": (
        "gemma3_text",
        PLAIN_IDS | {"head_dim": 6, "sliding_window": 7, "query_pre_attn_scalar": 6,
        "layer_types": ["sliding_attention", "full_attention"]},
    ),
    "gemma3-pattern": (
        "gemma3_text", PLAIN_IDS | {"head_dim": 4, "sliding_window": 5, "attention_bias": True},
    ),
}  # fmt: skip
TEXT = [[(7 * i * i + 3 * i + 5) % 61 for i in range(44)]]
ROOM = 16  # of LoRA columns


@contextmanager
def quiet() -> Iterator[None]:
    """Silence what transformers and PEFT say of damaged folders."""
    logging.disable(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(logging.NOTSET)


class Folders:
    """Sound folders of every architecture, and the models in them on both sides."""

    def __init__(self, folder: Path) -> None:
        """Write and load them."""
        self.bases = {
            name: tiny_checkpoint(folder / name, architecture, **SIZES, **changes)
            for name, (architecture, changes) in BASES.items()
        }
        self.ours = {
            name: load_model(
                path, device=CPU, dtype=torch.float32, rank_columns=dict.fromkeys(MODULES, ROOM)
            ).decoder
            for name, path in self.bases.items()
        }
        self.theirs = {name: hugging_face(path) for name, path in self.bases.items()}


def hugging_face(folder: Path) -> torch.nn.Module:
    """Load a folder with transformers, in fp32."""
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


Outcome = tuple[str, str | None]  # what happened, and what is wrong with it


def compare(ours: Callable[[], Tensor], theirs: Callable[[], Tensor]) -> Outcome:
    """Compare what both make of a folder."""
    try:
        here = ours()
    except ModelError as error:
        return "refused", _unclear(error)
    except Exception as error:  # what else comes out is the fault to find
        return "failed", f"{type(error).__name__}: {error!s:.300}"
    try:
        with quiet():
            there = theirs()
    except Exception as error:
        return "failed", f"taken, where the other says {type(error).__name__}: {error!s:.300}"
    difference = (here - there).abs().max().item()
    if difference <= TOLERANCE_NATS:
        return "equal", None
    if here.isnan().all() and there.isnan().all():
        return "equal", None
    return "failed", f"another result: {difference:.2e} nats"


def _unclear(error: ModelError) -> str | None:
    text = str(error)
    if "expected" not in text or error.exit_code != 4 or error.where is None:
        return f"an unclear message: {text:.200}"
    return f"a message of {len(text)} characters" if len(text) > 1000 else None


def model_case(folders: Folders, rng: random.Random, folder: Path) -> Outcome:
    """Change a model folder and compare the models."""
    base = folders.bases[rng.choice(list(BASES))]
    shutil.copytree(base, folder)
    if rng.random() < 0.75:
        change_config(rng, folder)
    if rng.random() < 0.5:
        change_weights(rng, folder)
    return compare(
        lambda: our_logprobs(load_model(folder, device=CPU, dtype=torch.float32).decoder, TEXT),
        lambda: their_logprobs(hugging_face(folder), TEXT),
    )


def adapter_case(folders: Folders, rng: random.Random, folder: Path) -> Outcome:
    """Save an adapter with PEFT, change its files, and compare the adapted models."""
    from differential.adapter_changes import change_adapter, random_settings

    name = rng.choice(list(BASES))
    base = folders.theirs[name]
    with quiet():
        try:
            config = LoraConfig(task_type="CAUSAL_LM", **random_settings(rng))
            model = get_peft_model(copy.deepcopy(base), config)
        except (ValueError, KeyError, TypeError, RuntimeError, AttributeError):
            return "no adapter", None  # PEFT has none of such settings
        generator = torch.Generator().manual_seed(rng.randrange(2**31))
        for parameter_name, parameter in model.named_parameters():
            if "lora_" in parameter_name:
                parameter.data = torch.randn(parameter.shape, generator=generator) / 4
        model.save_pretrained(str(folder))
    plain = folder.with_name("plain")  # what PEFT is to read, where names have one plain meaning
    renamed = change_adapter(rng, folder, plain)
    decoder = folders.ours[name]

    def ours() -> Tensor:
        if read_spec(folder).rank > ROOM:
            raise AssertionError("a rank beyond the tensors' own")
        attach(decoder, read_adapter(folder, decoder))
        return our_logprobs(decoder, TEXT)

    def theirs() -> Tensor:
        source = plain if renamed else folder
        return their_logprobs(
            PeftModel.from_pretrained(copy.deepcopy(base), str(source)).eval(), TEXT
        )

    return compare(ours, theirs)


KINDS = {"model": model_case, "adapter": adapter_case}


def run_case(folders: Folders, kind: str, name: str, folder: Path) -> Outcome:
    """Run one case, named by seed and number, in a folder that is emptied before."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    return KINDS[kind](folders, random.Random(f"{kind}/{name}"), folder / "case")


def run_cases(n_cases: int, seed: int, folder: Path) -> tuple[Counter[str], list[str]]:
    """Run cases of both kinds; return the outcomes, and the failures with their folders."""
    folders = Folders(folder / "sound")
    outcomes: Counter[str] = Counter()
    failures = []
    for number in range(n_cases):
        kind = "adapter" if number % 5 > 2 else "model"
        outcome, failure = run_case(folders, kind, f"{seed}/{number}", folder / "case")
        outcomes[f"{kind} {outcome}"] += 1
        if failure:
            kept = folder / f"differs-{kind}-{seed}-{number}"
            shutil.rmtree(kept, ignore_errors=True)
            shutil.copytree(folder / "case", kept)
            failures.append(f"{kind} {seed}/{number}: {failure}; kept as {kept}")
    return outcomes, failures


def write_json(path: Path, value: object) -> None:
    """Write a JSON file."""
    path.write_text(json.dumps(value))


def edit_file(path: Path, edit: Callable[[dict[str, Tensor]], None]) -> None:
    """Change the tensors of a file."""
    tensors = load_file(path)
    edit(tensors)
    save_file({name: t.contiguous().clone() for name, t in tensors.items()}, path)
