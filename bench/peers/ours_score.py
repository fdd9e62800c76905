"""Sums of log-probabilities with cqa-fast: the base, or with loading the base and its adapters."""

from pathlib import Path

import torch
from child import serve, settings

from cqa.model.load import load_model
from cqa.model.lora import attach, read_adapter, read_spec, widest
from cqa.score.forest import Forest
from cqa.score.scorer import run_forest

pairs = [(tuple(context), tuple(option)) for context, option in settings["pairs"]]
adapters = [Path(folder) for folder in settings.get("adapters", ())]


def load():
    """Return the decoder."""
    return load_model(
        Path(settings["model"]), device=torch.device("cpu"), dtype=torch.float32,
        rank_columns=widest([read_spec(folder) for folder in adapters]),
        backend=settings.get("backend"),
    ).decoder  # fmt: skip


def scores(decoder) -> list[float]:
    """Return S(option | context) of every pair."""
    forest = Forest()
    forest.add(pairs)
    branches = run_forest(decoder, forest)
    return [branches[pair].total for pair in pairs]


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
