"""Conditional and null log-probabilities of the same items: ours, against lm-eval's HF backend."""

from pathlib import Path

import numpy as np
import pytest
import torch
from compare import N_SHORT, record

from cqa.assets import DEMO
from cqa.bench.peer_process import PeerProcess
from cqa.bench.score import make_adapter
from cqa.bench.shapes import BenchModel, folder_settings
from cqa.bench.timing import compare_interleaved
from cqa.data.items import read_items
from cqa.data.tokenizer import Tokenizer
from cqa.model.adapter import write_adapter
from cqa.score.prefix_batch import encode_item

HELLASWAG = Path(__file__).parents[2] / "shared/data/pairs/narrative_hellaswag.jsonl"
Pairs = list[tuple[list[int], list[int]]]


def random_items(n_items: int, n_options: int, context: int = 400, option: int = 60) -> Pairs:
    """Contexts and options of random tokens, each option after its context and after ∅."""
    rng = np.random.default_rng(0)

    def text(length: int) -> list[int]:
        return rng.integers(0, 150_000, length).tolist()

    pairs: Pairs = []
    for _ in range(n_items):
        before, options = text(context), [text(option) for _ in range(n_options)]
        pairs += [(before, one) for one in options] + [([151_643], one) for one in options]
    return pairs


def real_items(path: Path, n_items: int) -> Pairs:
    """Items of a file, as the demo model's tokenizer has them, after their context and after ∅."""
    tokenizer = Tokenizer(DEMO / "model")
    pairs: Pairs = []
    for item, _ in zip(read_items([path]), range(n_items), strict=False):
        encoded = encode_item(item, tokenizer, "split", score_eos=False, max_positions=1024)
        for option in encoded.options:
            pairs.append((list(option.context_ids), list(option.option_ids)))
            pairs.append((list(tokenizer.null_ids), list(option.option_ids)))
    return pairs


def compare(benchmark, settings: dict, n: int = 5) -> None:
    """Check that the sums agree, then time them interleaved."""
    settings = folder_settings(settings["model"], batch_tokens=10**6) | settings
    with PeerProcess("ours_score", settings) as ours, PeerProcess("lm_eval_hf", settings) as peer:
        expected = peer().value
        assert ours().value == pytest.approx(expected, abs=2e-3, rel=1e-5)
        result = compare_interleaved(ours, peer, n)
        memory = {"ours_peak_bytes": ours.peak_bytes, "peer_peak_bytes": peer.peak_bytes}
        record(benchmark, "lm_eval_hf", result, **memory)
        benchmark.extra_info["n_pairs"] = len(settings["pairs"])
        benchmark.pedantic(ours, rounds=1)


def bench_demo_pairs(benchmark):
    pairs = real_items(DEMO / "literary.jsonl", 40)
    settings = {"model": str(DEMO / "model"), "pairs": pairs, "batch_size": 8}
    compare(benchmark, settings, N_SHORT)


@pytest.mark.parametrize(("n_items", "n_options"), [(2, 2), (1, 4)], ids=["pairs", "four-options"])
def bench_half_billion(benchmark, half_billion, n_items, n_options):
    pairs = random_items(n_items, n_options)
    compare(benchmark, {"model": str(half_billion), "pairs": pairs, "batch_size": 4})


@pytest.mark.skipif(not HELLASWAG.exists(), reason="real data not available: HellaSwag")
def bench_half_billion_hellaswag(benchmark, half_billion):
    pairs = real_items(HELLASWAG, 6)
    compare(benchmark, {"model": str(half_billion), "pairs": pairs, "batch_size": 4})


def bench_half_billion_base_and_seven_adapters(benchmark, half_billion, tmp_path):
    settings = {
        "model": str(half_billion),
        "pairs": random_items(1, 2),
        "batch_size": 4,
        "adapters": [str(folder) for folder in write_adapters(half_billion, tmp_path, 7)],
    }
    compare(benchmark, settings, n=3)


def write_adapters(base: Path, folder: Path, count: int) -> list[Path]:
    """Write adapters of random numbers, small enough to change scores by a little."""
    bench_model = BenchModel("qwen2.5-0.5b", None, 32, "cpu", torch.float32)
    decoder = bench_model.decoder()
    folders = [folder / f"epoch-{seed:02}" for seed in range(1, count + 1)]
    for seed, epoch in enumerate(folders, start=1):
        epoch.mkdir()
        adapter = make_adapter(decoder, bench_model.spec, seed)
        write_adapter(epoch, adapter.spec, adapter.weights, str(base), 0.05)
    return folders
