"""What CI watches: speed as ratios within this run, and counts that have one right value.

A ratio fails when even the upper end of its interval is below its floor: the noise of a shared
machine widens the interval and does not fail it. A count fails when it rises. Floors and counts
stand in floors.json; a better number is written there by hand, with the change that earned it.
"""

import json
from pathlib import Path

import pytest
import torch
from bench_score import real_items
from bench_train import SHAPES
from compare import assert_same_step

from cqa.assets import DEMO
from cqa.bench.peer_process import PeerProcess
from cqa.bench.shapes import folder_settings
from cqa.bench.timing import compare_interleaved
from cqa.data.samples import EncodedSample
from cqa.kernels.backend import native_problem
from cqa.layout import pack_trees
from cqa.model.load import load_model
from cqa.model.lora import LoraSpec, TrainableLora
from cqa.model.projection import MODULES
from cqa.score.prefix_batch import PrefixBatch
from cqa.train.passes import StepConfig
from cqa.train.step import backward_passes

FLOORS = json.loads((Path(__file__).parent / "floors.json").read_text("utf-8"))
MODEL = DEMO / "model"
needs_native = pytest.mark.skipif(native_problem() is not None, reason="no native ops")


def assert_not_slower(name: str, ours, peer) -> None:
    result = compare_interleaved(ours, peer, n=7)
    floor = FLOORS["ratios"][name]
    print(f"{name}: {result.ratio:.2f} [{result.low:.2f}, {result.high:.2f}], floor {floor}")
    assert result.high >= floor, result


@needs_native
@pytest.mark.parametrize("peer", ["reference", "transformers_peft"])
def test_training_window(peer):
    settings = folder_settings(MODEL, window=SHAPES["demo"][1])
    script = "ours_train" if peer == "reference" else peer
    with (
        PeerProcess("ours_train", settings) as ours,
        PeerProcess(script, {**settings, "backend": "reference"}) as theirs,
    ):
        assert_same_step(ours(dropout=0.0), theirs(dropout=0.0))
        assert_not_slower(
            f"train_window_against_{peer}",
            lambda: ours(dropout=0.05),
            lambda: theirs(dropout=0.05),
        )


@needs_native
@pytest.mark.parametrize("peer", ["reference", "lm_eval_hf"])
def test_scoring(peer):
    settings = folder_settings(MODEL, pairs=pairs(), batch_size=8, batch_tokens=10**6)
    script = "ours_score" if peer == "reference" else peer
    with (
        PeerProcess("ours_score", settings) as ours,
        PeerProcess(script, {**settings, "backend": "reference"}) as theirs,
    ):
        assert ours().value == pytest.approx(theirs().value, abs=1e-3)
        assert_not_slower(f"score_against_{peer}", ours, theirs)


def pairs():
    return real_items(DEMO / "literary.jsonl", 16)


def test_counts():
    counted = {**scoring_counts(), "bytes_saved_for_backward": bytes_saved()}
    print(counted)
    for name, most in FLOORS["counts"].items():
        assert counted[name] <= most, name


def scoring_counts() -> dict[str, int]:
    """Tokens through the decoder and rows through the head, for the items of `pairs`."""
    prefixes = PrefixBatch()
    prefixes.add([(tuple(context), tuple(option)) for context, option in pairs()])
    batch, _ = pack_trees(prefixes.trees())
    return {"forward_tokens": batch.n_rows, "head_rows": batch.n_targets}


def bytes_saved() -> int:
    """Bytes of the tensors, weights included, that a training window keeps for its backward."""
    spec = LoraSpec(32, 32.0, True, MODULES)
    base = load_model(
        MODEL, device=torch.device("cpu"), dtype=torch.float32, rank_columns=spec.rank_columns()
    )
    TrainableLora(base.decoder, spec, 0)
    config = StepConfig(neftune_alpha=0.0)
    window = [
        EncodedSample(str(i), tuple(ids), tuple(loss_mask), slice(0, 0), "")
        for i, (ids, loss_mask) in enumerate(SHAPES["demo"][1])
    ]
    saved = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        saved[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        backward_passes(base.decoder, [window], config, step=1)
    return sum(saved.values())
