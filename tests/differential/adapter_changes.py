"""Settings of PEFT's LoRA drawn at random, and changes to the files of an adapter."""

from __future__ import annotations

import json
import random
import re
import shutil
from pathlib import Path
from typing import Any

import torch
from differential.config_changes import misspelt
from differential.weight_changes import write
from safetensors.torch import load_file
from torch import Tensor

NAMES = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
EXPRESSIONS = (
    r".*self_attn\.(q|v)_proj", r".*\.1\..*_proj", r"model\.layers\.[01]\.mlp\.(up|down)_proj",
    r".*(gate|k)_proj", "all-linear", r"(.*up_proj|lm_head)", r".*norm", "ALL-LINEAR",
)  # fmt: skip
PATHS = ("model.layers.0.self_attn.q_proj", "layers.1.mlp.down_proj", "0.self_attn.v_proj", "proj")
PATTERNS = (
    "q_proj", r".*\.1\..*", "mlp.up_proj", r"layers\.0\.self_attn\.k_proj", "self_attn.*",
    "^model.layers.1.mlp.down_proj", r"(o|v)_proj",
)  # fmt: skip
RENAMES = (
    (r"^base_model\.model\.", "base_model.model._orig_mod."),
    (r"(lora_[AB])\.", r"\1.default."),
    (r"^base_model\.model\.", ""),
    (r"layers\.(\d)\.", r"layers.\1._fsdp_wrapped_module."),
)
EDITS: dict[str, tuple[Any, ...]] = {
    "r": (1, 2, 4, 10**19, 0, None),
    "lora_alpha": (1, 16, 0.5, 0, -4, None, "8"),
    "use_rslora": (True, False, None, "false"),
    "use_dora": (True, False),
    "fan_in_fan_out": (True, False),
    "bias": ("none", "all", "lora_only"),
    "target_modules": (["q_proj"], ["q_proj", "v_proj"], "all-linear", list(NAMES), None, []),
    "exclude_modules": (None, ["q_proj"], r".*\.0\..*"),
    "rank_pattern": ({}, {"q_proj": 2}, {"q_proj": 0}, None),
    "alpha_pattern": ({}, {"q_proj": 2}, {"mlp.*": 3.5}, {r".*\.1\..*": 1}, None),
    "layers_to_transform": (None, 0, [0], [1], [0, 1], [7], []),
    "layers_pattern": (None, "layers", ["layers"], "blocks"),
    "init_lora_weights": (True, False, "gaussian", "pissa", "olora"),
    "task_type": ("CAUSAL_LM", None, "SEQ_CLS"),
    "peft_type": ("LORA", "IA3", "ADALORA"),
    "lora_dropout": (0.0, 0.3),
    "lora_bias": (False, True),
    "modules_to_save": (None, ["lm_head"], ["norm"]),
    "use_qalora": (False, True),
    "inference_mode": (True, False),
    "auto_mapping": (None, {"parent_library": "transformers"}),
    "base_model_name_or_path": ("x/y", None),
    "peft_version": ("0.1",),
}


def random_settings(rng: random.Random) -> dict[str, Any]:
    """Return settings of LoraConfig: some plain, some with what the decoder lacks."""
    kind = rng.choice(["list"] * 4 + ["expression", "expression", "paths", "layers", "layers"])
    targets: Any = rng.sample(NAMES, rng.randint(1, 7))
    settings: dict[str, Any] = {}
    if kind == "expression":
        targets = rng.choice(EXPRESSIONS)
    elif kind == "paths":
        targets = rng.sample([*PATHS, *NAMES], rng.randint(1, 3))
    elif kind == "layers":
        settings["layers_to_transform"] = rng.choice([0, [1], [0, 1]])
        settings["layers_pattern"] = rng.choice([None, "layers", ["layers"]])
    settings |= {
        "target_modules": targets,
        "r": rng.randint(1, 6),
        "lora_alpha": rng.choice([1, 4, 8, 7.5]),
        "use_rslora": rng.random() < 0.5,
    }
    if rng.random() < 0.4:
        keys = rng.sample(PATTERNS, rng.randint(1, 2))
        settings["rank_pattern"] = {key: rng.randint(1, 9) for key in keys}
    if rng.random() < 0.4:
        keys = rng.sample(PATTERNS, rng.randint(1, 2))
        settings["alpha_pattern"] = {key: rng.choice([1, 2.5, 20]) for key in keys}
    if rng.random() < 0.15:
        settings["exclude_modules"] = rng.choice([["k_proj"], r".*\.0\..*", ["o_proj", "lm_head"]])
    if rng.random() < 0.25:
        settings |= rng.choice(
            [
                {"use_dora": True}, {"bias": "all"}, {"bias": "lora_only"}, {"lora_bias": True},
                {"modules_to_save": ["lm_head"]}, {"modules_to_save": ["embed_tokens"]},
                {"modules_to_save": ["norm"]}, {"trainable_token_indices": [1, 2]},
                {"target_modules": ["q_proj", "lm_head"]}, {"init_lora_weights": "orthogonal"},
                {"target_modules": ["v_proj", "embed_tokens"]}, {"init_lora_weights": "pissa"},
            ]
        )  # fmt: skip
    return settings


def change_adapter(rng: random.Random, folder: Path, plain: Path) -> bool:
    """Change an adapter's files; True if `plain` is left with names that PEFT understands."""
    if rng.random() < 0.45:
        return False
    if rng.random() < 0.4:
        change_settings(rng, folder / "adapter_config.json")
    path = folder / "adapter_model.safetensors"
    if rng.random() < 0.5:
        write(change_tensors(rng, load_file(path)), path)
    if rng.random() < 0.3:
        shutil.copytree(folder, plain)
        pattern, by = rng.choice(RENAMES)
        write({re.sub(pattern, by, name): t for name, t in load_file(path).items()}, path)
        return True
    return False


def change_settings(rng: random.Random, path: Path) -> None:
    """Set, drop, double or misspell one or two settings of adapter_config.json."""
    pairs = list(json.loads(path.read_text()).items())
    for _ in range(rng.choice([1, 1, 2])):
        key = rng.choice(list(EDITS))
        value = rng.choice(EDITS[key])
        at = next((i for i, (name, _) in enumerate(pairs) if name == key), None)
        kind = rng.choice(["set"] * 5 + ["drop", "double", "misspell"])
        if kind == "drop" and at is not None:
            del pairs[at]
        elif kind == "misspell" and at is not None:
            pairs[at] = (misspelt(rng, key), pairs[at][1])
        elif kind == "double":
            pairs.append((key, value))
        else:
            pairs = [pair for pair in pairs if pair[0] != key] + [(key, value)]
    members = ", ".join(f"{json.dumps(key)}: {json.dumps(value)}" for key, value in pairs)
    path.write_text(f"{{{members}}}")


def change_tensors(rng: random.Random, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Change dtype, drop, empty or add tensors of an adapter."""
    if not tensors:
        return tensors
    name = rng.choice(sorted(tensors))
    match rng.randrange(7):
        case 0 | 1:
            dtype = rng.choice([torch.float16, torch.bfloat16, torch.float64])
            return {n: t.to(dtype) for n, t in tensors.items()}
        case 2:
            return {n: t for n, t in tensors.items() if n != name}
        case 3:
            return tensors | {name: tensors[name][:0]}
        case 4:
            return tensors | {name.replace("layers.0", "layers.5"): tensors[name]}
        case 5:
            return tensors | {name: tensors[name].movedim(0, -1)}
        case _:
            return tensors | {"base_model.model.model.norm.weight": torch.ones(16)}
