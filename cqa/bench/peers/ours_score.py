"""Sums of log-probabilities with cqa-fast: the base, or with loading the base and its adapters."""

from __future__ import annotations

from pathlib import Path

from cqa.bench.peers.child import serve, settings
from cqa.bench.shapes import BenchModel
from cqa.model.adapter import read_adapter, read_spec
from cqa.model.decoder import Decoder
from cqa.model.load import load_model
from cqa.model.lora import attach, widest
from cqa.score.decoder_engine import run_prefix_batch
from cqa.score.prefix_batch import PrefixBatch

bench_model = BenchModel.told(settings)
pairs = [(tuple(context), tuple(option)) for context, option in settings["pairs"]]
adapters = [Path(folder) for folder in settings.get("adapters", ())]


def load() -> Decoder:
    """Return the decoder, with room for the adapters."""
    if not adapters:
        return bench_model.decoder()
    return load_model(
        Path(settings["model"]),
        device=bench_model.torch_device,
        dtype=bench_model.dtype,
        rank_columns=widest([read_spec(folder) for folder in adapters]),
        backend=bench_model.backend,
    ).decoder


def scores(decoder: Decoder) -> list[float]:
    """Return S(option | context) of every pair, in passes of the token budget."""
    found: dict[tuple[tuple[int, ...], tuple[int, ...]], float] = {}
    prefixes = PrefixBatch()
    for place, pair in enumerate(pairs):
        prefixes.add([pair])
        if prefixes.n_rows >= settings["batch_tokens"] or place == len(pairs) - 1:
            found |= {
                key: stats.total for key, stats in run_prefix_batch(decoder, prefixes).items()
            }
            prefixes = PrefixBatch()
    return [found[pair] for pair in pairs]


def with_loading() -> list[float]:
    """Score under the base and under each adapter, one load for all."""
    decoder = load()
    values = scores(decoder)
    for folder in adapters:
        attach(decoder, read_adapter(folder, decoder))
        values += scores(decoder)
    return values


if adapters:
    serve(with_loading)
else:
    loaded = load()
    serve(lambda: scores(loaded))
