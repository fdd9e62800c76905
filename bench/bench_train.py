"""One global batch, forward to optimizer step, against the trainers that people use."""

import shutil
from pathlib import Path

import numpy as np
import pytest
from compare import N_SHORT, assert_same_step, record

from cqa.assets import DEMO
from cqa.bench.peer_process import PeerProcess
from cqa.bench.shapes import folder_settings
from cqa.bench.timing import compare_interleaved

PEERS = Path(__file__).parent / "peers"
FACTORY = PEERS / ".venv-llamafactory" / "bin" / "python"


def window(vocabulary: int, *shapes: tuple[int, int]) -> list[tuple[list[int], list[bool]]]:
    """Samples of random tokens: (tokens, how many of the last are learned)."""
    rng = np.random.default_rng(0)
    return [
        (rng.integers(0, vocabulary, n).tolist(), [i >= n - learned for i in range(n)])
        for n, learned in shapes
    ]


SHAPES = {
    "demo": (lambda _: DEMO / "model", window(4000, (478, 110), (420, 100))),
    "0.5B": (
        lambda request: request.getfixturevalue("half_billion"),
        window(150_000, (300, 200), (420, 260)),
    ),
}


@pytest.mark.parametrize("shape", SHAPES)
def bench_window_against_transformers_and_peft(benchmark, request, shape):
    folder_of, samples = SHAPES[shape]
    settings = folder_settings(folder_of(request), window=samples)
    with (
        PeerProcess("ours_train", settings) as ours,
        PeerProcess("transformers_peft", settings) as peer,
    ):
        assert_same_step(ours(dropout=0.0), peer(dropout=0.0))
        ours(dropout=0.05), peer(dropout=0.05)
        n = N_SHORT if shape == "demo" else 5
        result = compare_interleaved(lambda: ours(dropout=0.05), lambda: peer(dropout=0.05), n)
        memory = {"ours_peak_bytes": ours.peak_bytes, "peer_peak_bytes": peer.peak_bytes}
        record(benchmark, "transformers_peft", result, **memory)
        benchmark.extra_info["n_tokens"] = sum(len(ids) for ids, _ in samples)
        benchmark.pedantic(lambda: ours(dropout=0.05), rounds=3)


@pytest.mark.skipif(not FACTORY.exists(), reason="LLaMA-Factory is not there: make bench-peers")
def bench_paper_recipe_against_llamafactory(benchmark, tmp_path):
    folders = [tmp_path / name for name in ("ours", "peer")]
    for folder in folders:
        folder.mkdir()
    ours_settings, peer_settings = (
        {
            "model": str(DEMO / "model"),
            "data": str(DEMO / "train.jsonl"),
            "folder": str(folder),
        }
        for folder in folders
    )
    with (
        PeerProcess(PEERS / "ours_sft.py", ours_settings) as ours,
        PeerProcess(PEERS / "llamafactory_sft.py", peer_settings, str(FACTORY)) as peer,
    ):
        ours(), peer()
        result = compare_interleaved(ours, peer, N_SHORT)
        memory = {"ours_peak_bytes": ours.peak_bytes, "peer_peak_bytes": peer.peak_bytes}
        record(benchmark, "llamafactory", result, **memory)
        benchmark.pedantic(ours, rounds=3)
    shutil.rmtree(tmp_path)
