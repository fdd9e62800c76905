"""How far sums of log-probabilities in fp32 are from float64's, ours and transformers'.

    python bench/fp32_errors.py .models/smollm2-135m-instruct ../shared/data/pairs/zh_xcopa.jsonl

Where a model turns one rounding into a large change, a single comparison says little. So the
texts of which ours is furthest off are computed again under copies of the weights whose hidden and
intermediate dimensions are permuted: the same function, other roundings. For Llamas alone.
"""

from __future__ import annotations

import argparse
import math
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM

from cqa.data.items import read_items
from cqa.data.tokenizer import Ids, Tokenizer
from cqa.model.decoder import Decoder
from cqa.model.load import load_model
from cqa.score.decoder_engine import run_prefix_batch
from cqa.score.prefix_batch import PrefixBatch, encode_item, passes

Pair = tuple[Ids, Ids]
CPU = torch.device("cpu")


def load_ours(folder: Path) -> Decoder:
    """Return our decoder in fp32."""
    return load_model(folder, device=CPU, dtype=torch.float32).decoder


def load_theirs(folder: Path, dtype: torch.dtype) -> Any:
    """Return transformers' model."""
    return AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).eval()


@torch.no_grad()
def their_sums(model: Any, pairs: Sequence[Pair]) -> list[float]:
    """Return the sum of every option's log-probabilities after its context, a text at a time."""
    sums = []
    for context, option in pairs:
        logits = model(torch.tensor([context + option])).logits[0, len(context) - 1 : -1]
        logp = logits.log_softmax(-1).gather(1, torch.tensor(option)[:, None])
        sums.append(float(logp.double().sum()))
    return sums


@torch.no_grad()
def save_permuted(model: Any, seed: int, folder: Path) -> None:
    """Put the model's hidden and intermediate dimensions in another order, and save it."""
    generator = torch.Generator().manual_seed(seed)
    hidden = torch.randperm(model.config.hidden_size, generator=generator)
    body = model.model
    reads = [body.embed_tokens]
    if not model.config.tie_word_embeddings:
        reads.append(model.lm_head)
    writes, norms = [], [body.norm]
    for layer in body.layers:
        own = torch.randperm(model.config.intermediate_size, generator=generator)
        attention, mlp = layer.self_attn, layer.mlp
        for part in (mlp.gate_proj, mlp.up_proj):
            part.weight.copy_(part.weight[own])
        mlp.down_proj.weight.copy_(mlp.down_proj.weight[:, own])
        reads += [attention.q_proj, attention.k_proj, attention.v_proj, mlp.gate_proj, mlp.up_proj]
        writes += [attention.o_proj, mlp.down_proj]
        norms += [layer.input_layernorm, layer.post_attention_layernorm]
    for part in reads:
        part.weight.copy_(part.weight[:, hidden])
    for part in writes + norms:
        part.weight.copy_(part.weight[hidden])
    model.save_pretrained(folder)


def rms(errors: Sequence[float]) -> float:
    """Return the root of the mean square."""
    return math.sqrt(sum(e * e for e in errors) / len(errors))


def print_errors(name: str, off: Sequence[float], pairs: Sequence[Pair]) -> None:
    """Print how large errors are, and how many are beyond 1e-4 nats and 1e-6 a token."""
    beyond = sum(abs(e) > 1e-4 + 1e-6 * len(pair[1]) for e, pair in zip(off, pairs, strict=True))
    median = sorted(map(abs, off))[len(off) // 2]
    print(f"{name}: rms {rms(off):.1e}, median {median:.1e}, largest {max(map(abs, off)):.1e}, "
          f"beyond the bound {beyond} of {len(off)}", flush=True)  # fmt: skip


def minus(a: Sequence[float], b: Sequence[float]) -> list[float]:
    """Return the differences."""
    return [x - y for x, y in zip(a, b, strict=True)]


def main() -> None:
    """Read the command line, and print a line for each reading and for each of the worst texts."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", type=Path)
    parser.add_argument("pairs", type=Path)
    parser.add_argument("--items", type=int, default=100)
    parser.add_argument("--worst", type=int, default=5)
    parser.add_argument("--copies", type=int, default=12)
    given = parser.parse_args()

    decoder, tokenizer = load_ours(given.model), Tokenizer(given.model)
    room = decoder.config.max_positions
    items = [
        encode_item(item, tokenizer, "split", score_eos=False, max_positions=room)
        for item, _ in zip(read_items([given.pairs]), range(given.items), strict=False)
    ]
    scores = {}
    for _, prefixes in passes(items, tokenizer, 4096):
        scores.update(run_prefix_batch(decoder, prefixes))
    pairs = list(scores)
    exact = their_sums(load_theirs(given.model, torch.float64), pairs)
    off = minus([scores[pair].total for pair in pairs], exact)
    theirs = their_sums(load_theirs(given.model, torch.float32), pairs)
    print_errors("ours", off, pairs)
    print_errors("transformers", minus(theirs, exact), pairs)

    worst = sorted(range(len(pairs)), key=lambda i: -abs(off[i]))[: given.worst]
    chosen, sums = [pairs[i] for i in worst], [exact[i] for i in worst]
    batch = PrefixBatch()
    batch.add(chosen)
    ours_off, theirs_off = [], []
    for seed in range(given.copies):
        with tempfile.TemporaryDirectory() as folder:
            copy = Path(folder)
            permuted = load_theirs(given.model, torch.float32)
            save_permuted(permuted, seed, copy)
            found = run_prefix_batch(load_ours(copy), batch)
            ours_off.append(minus([found[pair].total for pair in chosen], sums))
            theirs_off.append(minus(their_sums(permuted, chosen), sums))
    for n, i in enumerate(worst):
        print(f"option {list(pairs[i][1][:3])}... of {len(pairs[i][1])} tokens, off by "
              f"{off[i]:.1e}; over copies, rms: ours {rms([c[n] for c in ours_off]):.1e}, "
              f"transformers {rms([c[n] for c in theirs_off]):.1e}", flush=True)  # fmt: skip


if __name__ == "__main__":
    main()
