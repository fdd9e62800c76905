"""Items, models and a naive loop for the scoring tests."""

from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
from scipy import stats
from transformers import AutoModelForCausalLM

from cqa.data.items import Item, read_items
from cqa.data.tokenizer import Tokenizer
from cqa.errors import DataError
from cqa.model.decoder import Decoder
from cqa.model.load import load_model
from cqa.score.decoder_engine import run_prefix_batch
from cqa.score.engine import SequenceStats
from cqa.score.prefix_batch import EncodedItem, encode_item, passes

SequenceScores = dict[tuple[tuple[int, ...], tuple[int, ...]], SequenceStats]


def load(folder: Path, device: str = "cpu") -> tuple[Decoder, Tokenizer]:
    """Load our decoder in fp32, and its tokenizer."""
    base = load_model(folder, device=torch.device(device), dtype=torch.float32)
    return base.decoder, Tokenizer(folder)


def load_reference(folder: Path, dtype: torch.dtype = torch.float32) -> AutoModelForCausalLM:
    """Load the same checkpoint in transformers."""
    return AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).eval()


def lm_eval_model(huggingface: ModuleType, folder: Path, tokenizer: Tokenizer) -> Any:
    """Load the same checkpoint as a model of lm-eval, whose module `huggingface` is."""
    return huggingface.HFLM(
        pretrained=load_reference(folder),
        tokenizer=tokenizer.hf,
        device="cpu",
        batch_size=8,
        add_bos_token=bool(tokenizer.bos_ids),
    )


def encode(item: Item, tokenizer: Tokenizer, max_positions: int) -> EncodedItem:
    """Encode with the default conventions."""
    return encode_item(item, tokenizer, "split", score_eos=False, max_positions=max_positions)


def fitting(path: Path, tokenizer: Tokenizer, max_positions: int, n: int) -> list[EncodedItem]:
    """Return the first n items of a file that fit the model."""

    def fits() -> Iterator[EncodedItem]:
        for item in read_items([path]):
            try:
                yield encode(item, tokenizer, max_positions)
            except DataError:
                continue

    return list(islice(fits(), n))


def score_all(
    decoder: Decoder, tokenizer: Tokenizer, items: Iterable[EncodedItem], batch_tokens: int = 4096
) -> SequenceScores:
    """Score every sequence of some items."""
    scored: SequenceScores = {}
    for _, prefixes in passes(items, tokenizer, batch_tokens):
        scored.update(run_prefix_batch(decoder, prefixes))
    return scored


@torch.no_grad()
def naive_logps(model, pairs: list[tuple[tuple[int, ...], tuple[int, ...]]]) -> list[torch.Tensor]:
    """Score each option after its context in a forward pass over whole sequences, padded right."""
    results: dict[int, torch.Tensor] = {}
    order = sorted(range(len(pairs)), key=lambda i: -sum(map(len, pairs[i])))
    for first in range(0, len(order), 16):
        chunk = order[first : first + 16]
        sequences = [torch.tensor(pairs[i][0] + pairs[i][1]) for i in chunk]
        padded = torch.nn.utils.rnn.pad_sequence(sequences, batch_first=True)
        logits = model(padded).logits
        for row, i in enumerate(chunk):
            context, option = pairs[i]
            at = slice(len(context) - 1, len(context) + len(option) - 1)
            logp = logits[row, at].log_softmax(-1)
            results[i] = logp.gather(1, torch.tensor(option)[:, None])[:, 0].double()
    return [results[i] for i in range(len(pairs))]


@torch.no_grad()
def rounding_spread(model, pairs: list[tuple[tuple[int, ...], tuple[int, ...]]]) -> list[float]:
    """Return how far fp32 moves each sum of `naive_logps`: nats, rms of eight draws.

    Monte Carlo arithmetic (Parker 1997): `model` is in float64, and what every norm and product
    but the head puts out is off at random: by up to half a unit in fp32's last place, and in a
    product by what its sums are off that are taken in blocks of 128 terms.
    """
    generator = torch.Generator().manual_seed(0)

    def disturb(module: torch.nn.Module, given: tuple[torch.Tensor], out: torch.Tensor):
        size = out.abs()
        if isinstance(module, torch.nn.Linear):
            walk = torch.nn.functional.linear(given[0] ** 2, module.weight**2).sqrt()
            size = size + 8 * walk  # 64 terms are summed on average when one is added
        noise = 2 * torch.rand(out.shape, generator=generator, dtype=out.dtype) - 1
        return out + 2**-24 * size * noise

    exact = naive_logps(model, pairs)
    exact_ones = (model.get_input_embeddings(), model.get_output_embeddings())
    rounding = [m for m in model.modules() if hasattr(m, "weight") and m not in exact_ones]
    hooks = [module.register_forward_hook(disturb) for module in rounding]
    draws = [naive_logps(model, pairs) for _ in range(8)]
    for hook in hooks:
        hook.remove()
    off = [[float((logp - e).sum()) for logp, e in zip(d, exact, strict=True)] for d in draws]
    return [float(x) for x in np.sqrt(np.mean(np.square(off), axis=0))]


def goodness_of_fit(counts: np.ndarray, expected: np.ndarray) -> float:
    """Return the p-value of chi-square, categories of fewer than 5 expected taken as one."""
    rare = expected < 5
    pooled = [np.append(x[~rare], x[rare].sum()) if rare.any() else x for x in (counts, expected)]
    return float(stats.chisquare(*pooled).pvalue)
