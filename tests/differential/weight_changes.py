"""Changes to the weights of a model folder: split, doubled, renamed, tied anew, in other dtypes."""

from __future__ import annotations

import json
import random
import re
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
TABLE, HEAD = "model.embed_tokens.weight", "lm_head.weight"
Tensors = dict[str, Tensor]


def noise(rng: random.Random, tensor: Tensor) -> Tensor:
    """Return a tensor that differs a little."""
    generator = torch.Generator().manual_seed(rng.randrange(2**31))
    return tensor + 0.1 * torch.randn(tensor.shape, generator=generator)


def write(tensors: Tensors, path: Path) -> None:
    """Write a file of tensors, none of which shares memory with another."""
    save_file({name: t.contiguous().clone() for name, t in tensors.items()}, path)


def other_dtype(rng: random.Random, tensors: Tensors) -> Tensors:
    dtype = rng.choice([torch.float16, torch.bfloat16, torch.float64, torch.int32])
    share = rng.choice([1.0, 0.3])
    return {n: t.to(dtype) if rng.random() < share else t for n, t in tensors.items()}


def head(rng: random.Random, tensors: Tensors) -> Tensors:
    kind = rng.choice(["equal", "near", "other", "none", "short"])
    rest = {n: t for n, t in tensors.items() if n != HEAD}
    table = tensors[TABLE]
    heads = {"equal": table, "near": table + 1e-6, "other": noise(rng, table), "short": table[:-1]}
    return rest if kind == "none" else rest | {HEAD: heads[kind]}


def drop(rng: random.Random, tensors: Tensors) -> Tensors:
    gone = rng.choice([TABLE, *tensors])
    return {n: t for n, t in tensors.items() if n != gone}


def rename(rng: random.Random, tensors: Tensors) -> Tensors:
    pattern, by = rng.choice(
        [("^model\\.", ""), ("^", "base."), ("q_proj", "query"), ("^model\\.", "_orig_mod.model."),
         ("layernorm", "norm"), ("layers.1", "layers.2")]
    )  # fmt: skip
    return {re.sub(pattern, by, name): tensor for name, tensor in tensors.items()}


def add(rng: random.Random, tensors: Tensors) -> Tensors:
    names = (
        "model.layers.0.self_attn.rotary_emb.inv_freq", "model.rotary_emb.inv_freq",
        "model.layers.2.mlp.up_proj.weight", "score.weight", "model.layers.0.self_attn.o_proj.bias",
    )  # fmt: skip
    return tensors | {rng.choice(names): torch.ones(rng.choice([2, 3, 16]))}


def reshape(rng: random.Random, tensors: Tensors) -> Tensors:
    name = rng.choice(sorted(tensors))
    t = tensors[name]
    return tensors | {name: rng.choice([t[:1], t[None], t.flatten(), t[:0], t.movedim(0, -1)])}


CHANGES: list[Callable[[random.Random, Tensors], Tensors]] = [
    other_dtype, other_dtype, head, head, head, drop, rename, add, reshape,
]  # fmt: skip


def change_weights(rng: random.Random, folder: Path) -> None:
    """Change the tensors, the files they are in, or both."""
    tensors = load_file(folder / WEIGHTS)
    if rng.random() < 0.6:
        tensors = rng.choice(CHANGES)(rng, tensors)
        write(tensors, folder / WEIGHTS)
    if rng.random() < 0.6:
        split(rng, folder, tensors)
    if rng.random() < 0.2:
        extra = {name: noise(rng, t.float()).to(t.dtype) for name, t in tensors.items()}
        write(extra, folder / rng.choice(["other.safetensors", "consolidated.safetensors"]))
    if rng.random() < 0.1:
        settings = {"temperature": 0.1, "do_sample": True, "eos_token_id": 3}
        (folder / "generation_config.json").write_text(json.dumps(settings))
    if rng.random() < 0.03:
        (folder / "adapter_config.json").write_text("{}")


def split(rng: random.Random, folder: Path, tensors: Tensors) -> None:
    """Spread the tensors over two files and an index, which at times tells something else."""
    places = {name: f"part-{rng.randrange(2)}.safetensors" for name in tensors}
    parts: dict[str, Tensors] = {file: {} for file in sorted(set(places.values()))}
    for name, file in places.items():
        parts[file][name] = tensors[name]
    name = rng.choice(sorted(tensors))
    match rng.randrange(8):
        case 0:  # a tensor twice, with two values
            other = rng.choice(sorted(parts))
            parts[other][name] = noise(rng, tensors[name].float())
        case 1:  # one that the index does not list
            del places[name]
        case 2:  # one that it lists elsewhere
            places[name] = rng.choice(sorted(parts))
        case 3:  # one that no file holds
            places["model.layers.0.none"] = rng.choice(sorted(parts))
    if rng.random() < 0.75:
        (folder / WEIGHTS).unlink()
    for file, part in parts.items():
        write(part, folder / file)
    (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": places}))
