"""What CI watches: speed as ratios within this run, and counts that have one right value.

A ratio fails when even the upper end of its interval is below its floor: the noise of a shared
machine widens the interval and does not fail it. So does a share, which is the rate of operations
that the result needs over that of a large product, turn about: how many times faster ours is than a
peer depends on how well the peer's libraries know the processor, the share hardly. A count fails
when it rises. Floors and counts stand in floors.json; a better number is written there by hand,
with the change that earned it.
"""

import json
from pathlib import Path

import pytest
import torch
from bench_score import real_items
from bench_train import SHAPES
from compare import assert_same_step

from cqa.assets import DEMO
from cqa.bench.counts import pass_flops
from cqa.bench.peer_process import PeerProcess
from cqa.bench.shapes import folder_settings
from cqa.bench.timing import Stopwatch, compare_interleaved
from cqa.data.samples import EncodedSample
from cqa.kernels.backend import native_problem
from cqa.kernels.matmul import mm
from cqa.layout import pack_documents, pack_trees
from cqa.model.config import read_config
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


PRODUCT = 1024  # rows and columns of the large product


def large_product():
    """A call, the faster of the library's product and our own, and its operations."""
    a, b = (torch.randn(PRODUCT, PRODUCT) for _ in range(2))
    timings = Stopwatch(torch.device("cpu")).measure(
        {"library": lambda: torch.mm(a, b), "own": lambda: mm(a, b)}, seconds=0.3
    )
    own = timings["own"].least_s < timings["library"].least_s
    return (lambda: mm(a, b)) if own else (lambda: torch.mm(a, b)), 2 * PRODUCT**3


def assert_share(name: str, ours, flops: int) -> None:
    product, product_flops = large_product()
    repeats = max(1, round(flops / product_flops))

    def products() -> None:
        for _ in range(repeats):
            product()

    result = compare_interleaved(ours, products, n=7)
    scale, floor = flops / (repeats * product_flops), FLOORS["shares"][name]
    low, high = result.low * scale, result.high * scale
    print(f"{name}: {result.ratio * scale:.2f} [{low:.2f}, {high:.2f}], floor {floor}")
    assert high >= floor, result


@needs_native
def test_share_of_the_product_rate_in_training():
    window = SHAPES["demo"][1]
    batch = pack_documents([(tuple(ids), loss_mask) for ids, loss_mask in window])
    flops = pass_flops(read_config(MODEL), batch, 32, training=True).total
    with PeerProcess("ours_train", folder_settings(MODEL, window=window)) as ours:
        ours(dropout=0.05)
        assert_share("train_window", lambda: ours(dropout=0.05), flops)


@needs_native
def test_share_of_the_product_rate_in_scoring():
    flops = pass_flops(read_config(MODEL), scoring_batch(), 0, training=False).total
    settings = folder_settings(MODEL, pairs=pairs(), batch_tokens=10**6)
    with PeerProcess("ours_score", settings) as ours:
        ours()
        assert_share("score", ours, flops)


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
    batch = scoring_batch()
    return {"forward_tokens": batch.n_rows, "head_rows": batch.n_targets}


def scoring_batch():
    """The items of `pairs` as one batch."""
    prefixes = PrefixBatch()
    prefixes.add([(tuple(context), tuple(option)) for context, option in pairs()])
    return pack_trees(prefixes.trees())[0]


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
