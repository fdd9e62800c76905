"""The decoder equals transformers on every architecture, and itself in any packing."""

import random
from functools import cached_property
from pathlib import Path

import pytest
import torch
from helpers import assert_as_accurate, tiny_checkpoint
from model.cases import CASES
from torch import Tensor
from transformers import AutoModelForCausalLM

from cqa.kernels.backend import native_problem
from cqa.kernels.embed import Noise
from cqa.kernels.philox import Dropout
from cqa.kernels.token_logprobs import token_logprobs, token_stats
from cqa.layout import PackedBatch, Tree, pack_documents, pack_trees
from cqa.model.block_rows import BLOCK_ROWS
from cqa.model.decoder import Decoder
from cqa.model.load import load_model
from cqa.model.lora import Adapter, LoraSpec, TrainableLora, attach
from cqa.model.projection import MODULES


class Pair:
    """The same checkpoint here and in transformers."""

    def __init__(self, ours: Decoder, theirs: torch.nn.Module) -> None:
        self.ours, self.theirs = ours, theirs

    def random_ids(self, count: int, seed: int) -> tuple[int, ...]:
        return tuple(random.Random(seed).choices(range(self.ours.config.vocab_size), k=count))

    @torch.no_grad()
    def expected(self, ids: tuple[int, ...]) -> Tensor:
        """Log-probability of every token but the first, by transformers."""
        logits = self.theirs(torch.tensor([ids]), use_cache=False).logits[0, :-1]
        logp = logits.float().log_softmax(1).gather(1, torch.tensor(ids[1:])[:, None])
        return logp.squeeze(1).double()

    @torch.no_grad()
    def logp(self, batch: PackedBatch, scoring: bool) -> Tensor:
        hidden = (self.ours.hidden_for_scoring if scoring else self.ours.hidden)(batch)
        return token_stats(hidden, self.ours.head, batch.target).logp

    @cached_property
    def documents(self) -> tuple[PackedBatch, Tensor]:
        """Texts of several lengths, of which all, some or no tokens are asked for."""
        documents, expected = [], []
        for i, count in enumerate((2, 45, 1, 130, 30, 80)):
            ids = self.random_ids(count, i)
            asked = torch.tensor([i != 4 and (i != 3 or 40 < j < 90) for j in range(count)])
            documents.append((ids, asked.tolist()))
            if count > 1:
                expected.append(self.expected(ids)[asked[1:]])
        return pack_documents(documents), torch.cat(expected)

    @cached_property
    def trees(self) -> tuple[PackedBatch, Tensor]:
        """Contexts of several lengths, each with options of several lengths."""
        trees, expected = [], []
        shapes = [(60, (1, 5, 70)), (1, (30, 2)), (90, (20,)), (9, (9, 9))]
        for i, (depth, counts) in enumerate(shapes):
            context = self.random_ids(depth, i)
            options = tuple(self.random_ids(n, 100 * i + j) for j, n in enumerate(counts, 1))
            trees.append(Tree(context, options))
            expected += [self.expected(context + option)[depth - 1 :] for option in options]
        return pack_trees(trees)[0], torch.cat(expected)


def load(folder: Path, dtype: torch.dtype = torch.float32, **settings) -> Decoder:
    return load_model(folder, device=torch.device("cpu"), dtype=dtype, **settings).decoder


def load_pair(folder: Path, dtype: torch.dtype = torch.float32, **settings) -> Pair:
    return Pair(
        load(folder, dtype, **settings), AutoModelForCausalLM.from_pretrained(folder, dtype=dtype)
    )


@pytest.fixture(scope="module", params=["reference", "native"])
def backend(request: pytest.FixtureRequest) -> str:
    if request.param == "native" and (problem := native_problem()):
        pytest.skip(f"no native ops: {problem}")
    return request.param


@pytest.fixture(scope="module", params=CASES)
def pair(
    request: pytest.FixtureRequest, backend: str, tmp_path_factory: pytest.TempPathFactory
) -> Pair:
    architecture, changes = CASES[request.param]
    folder = tiny_checkpoint(tmp_path_factory.mktemp("model"), architecture, **changes)
    return load_pair(folder, backend=backend)


@pytest.fixture(autouse=True)
def _low_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make blocks that even small batches exceed."""
    for name, height in (("reference", 256), ("native", 100)):
        monkeypatch.setitem(BLOCK_ROWS, name, height)


PACKINGS = pytest.mark.parametrize("packing", ["documents", "trees"])
BLOCKS = pytest.mark.parametrize("scoring", [False, True], ids=["whole", "blocks"])


@PACKINGS
@BLOCKS
def test_log_probabilities_equal_those_of_transformers(pair, packing, scoring):
    batch, expected = getattr(pair, packing)
    assert batch.n_rows > 256
    torch.testing.assert_close(pair.logp(batch, scoring), expected, rtol=0, atol=4e-6)


def test_log_probabilities_of_real_models_equal_those_of_transformers(real_model, backend):
    pair = load_pair(real_model, backend=backend)
    in_fp64 = Pair(load(real_model, torch.float64), pair.theirs)
    for batch, expected in (pair.documents, pair.trees):
        truth = in_fp64.logp(batch, False)
        for scoring in (False, True):
            actual = pair.logp(batch, scoring)
            torch.testing.assert_close(actual, expected, rtol=0, atol=2e-5)
            assert (actual - truth).abs().mean() <= 1.2 * (expected - truth).abs().mean()


def test_sharded_checkpoint_gives_the_same_model(tmp_path):
    whole = tiny_checkpoint(tmp_path / "whole", "llama")
    theirs = AutoModelForCausalLM.from_pretrained(whole)
    theirs.save_pretrained(tmp_path / "shards", max_shard_size="50KB")
    assert len(list((tmp_path / "shards").glob("*.safetensors"))) > 2
    assert_same_weights(load(tmp_path / "shards"), load(whole))


def assert_same_weights(a: Decoder, b: Decoder) -> None:
    assert torch.equal(a.table, b.table)
    assert torch.equal(a.head, b.head)
    for one, other in zip(a.projections(), b.projections(), strict=True):
        assert torch.equal(one.weight, other.weight)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_checkpoint(tmp_path_factory.mktemp("model"), "qwen2")


def random_trees(decoder: Decoder, count: int) -> list[Tree]:
    rng = random.Random(0)
    vocabulary = range(decoder.config.vocab_size)

    def text(longest: int) -> tuple[int, ...]:
        return tuple(rng.choices(vocabulary, k=rng.randint(1, longest)))

    return [Tree(text(90), tuple(text(25) for _ in range(rng.randint(1, 4)))) for _ in range(count)]


@torch.no_grad()
def score(decoder: Decoder, trees: list[Tree]) -> dict[Tree, list[Tensor]]:
    """Hidden states of every option, in one pass over these trees."""
    batch, places = pack_trees(trees)
    hidden = decoder.hidden_for_scoring(batch)
    return {
        tree: [hidden[place] for place in slices]
        for tree, slices in zip(trees, places, strict=True)
    }


def assert_bits_do_not_depend_on_packing(decoder: Decoder) -> None:
    trees = random_trees(decoder, 8)
    together = score(decoder, trees)
    assert pack_trees(trees)[0].n_rows > 2 * 256
    groupings = {
        "reversed": [trees[::-1]],
        "shuffled": [random.Random(1).sample(trees, 8)],
        "two passes": [trees[::2], trees[1::2]],
        "uneven passes": [trees[:1], trees[1:5], trees[5:]],
        "alone": [[tree] for tree in trees],
    }
    for name, passes in groupings.items():
        for part in passes:
            for tree, options in score(decoder, part).items():
                for hidden, expected in zip(options, together[tree], strict=True):
                    assert torch.equal(hidden, expected), name
    fewer_options = [Tree(tree.context, tree.options[-1:]) for tree in trees]
    for tree, (hidden,) in zip(trees, score(decoder, fewer_options).values(), strict=True):
        assert torch.equal(hidden, together[tree][-1]), "other options"


@pytest.mark.parametrize(
    "name",
    [
        "qwen2",
        "qwen3-tied-wide-heads",
        "mistral-sliding",
        "olmo2",
        "smollm3",
        "gemma3-scaled",
        "qwen3-moe-mixed",
    ],
)
def test_bits_of_a_tree_do_not_depend_on_the_other_trees(name, tmp_path):
    architecture, changes = CASES[name]
    assert_bits_do_not_depend_on_packing(load(tiny_checkpoint(tmp_path, architecture, **changes)))


def test_bits_of_a_tree_of_a_real_model_do_not_depend_on_the_other_trees(real_model):
    assert_bits_do_not_depend_on_packing(load(real_model))


def test_bits_of_a_tree_under_an_adapter_do_not_depend_on_the_other_trees(tiny):
    spec = LoraSpec(4, 8.0, False, MODULES)
    decoder = load(tiny, rank_columns=spec.rank_columns())
    adapt(decoder, spec)
    assert_bits_do_not_depend_on_packing(decoder)


def adapt(decoder: Decoder, spec: LoraSpec) -> TrainableLora:
    """Attach an adapter whose A and B are both far from zero."""
    lora = TrainableLora(decoder, spec, seed=3)
    lora.state.param.copy_(
        torch.randn(lora.n_params, generator=torch.Generator().manual_seed(0)) / 10
    )
    lora.after_step()
    return lora


ROOMS = pytest.mark.parametrize(
    "spec",
    [LoraSpec(1, 8.0, False, ("q",)), LoraSpec(4, 8.0, True, MODULES)],
    ids=["rank-1-q", "rank-4-all"],
)


@ROOMS
@pytest.mark.parametrize("name", ["qwen2", "llama"])
def test_base_is_the_same_with_room_for_adapters_and_after_one(name, spec, tmp_path):
    folder = tiny_checkpoint(tmp_path, name)
    bare, roomy = load(folder), load(folder, rank_columns=dict.fromkeys(MODULES, 40))
    trees = random_trees(bare, 3)
    expected = score(bare, trees)
    assert_equal_scores(score(roomy, trees), expected)
    adapt(roomy, spec)
    assert not torch.equal(score(roomy, trees)[trees[0]][0], expected[trees[0]][0])
    roomy.detach_adapter()
    assert_equal_scores(score(roomy, trees), expected)


@ROOMS
@pytest.mark.parametrize("name", ["qwen2", "llama"])
def test_an_adapter_is_the_same_with_room_for_a_larger_one_and_after_it(name, spec, tmp_path):
    folder = tiny_checkpoint(tmp_path, name)
    exact = load(folder, rank_columns=spec.rank_columns())
    roomy = load(folder, rank_columns=dict.fromkeys(MODULES, 40))
    adapter = Adapter(spec, adapt(exact, spec).weights)
    trees = random_trees(exact, 3)
    expected = score(exact, trees)
    adapt(roomy, LoraSpec(9, 2.0, False, MODULES))
    attach(roomy, adapter)
    assert_equal_scores(score(roomy, trees), expected)


def assert_equal_scores(a: dict[Tree, list[Tensor]], b: dict[Tree, list[Tensor]]) -> None:
    for tree, options in a.items():
        for one, other in zip(options, b[tree], strict=True):
            assert torch.equal(one, other)


def test_recomputing_layers_keeps_less_and_gives_the_same_gradients(tiny):
    spec = LoraSpec(4, 8.0, False, MODULES)
    decoder = load(tiny, rank_columns=spec.rank_columns())
    lora = adapt(decoder, spec)
    ids = tuple(random.Random(5).choices(range(decoder.config.vocab_size), k=120))
    batch = pack_documents([(ids[:70], [True] * 70), (ids[70:], [False] * 30 + [True] * 20)])
    rows = torch.arange(batch.n_rows)

    def gradient(recompute: bool) -> tuple[Tensor, int]:
        kept_bytes = 0

        def count(tensor: Tensor) -> Tensor:
            nonlocal kept_bytes
            kept_bytes += tensor.nbytes
            return tensor

        lora.state.grad.zero_()
        with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
            hidden = decoder.hidden(
                batch,
                dropout=Dropout(0.3, 1, 2, rows),
                noise=Noise(5.0, 1, 2, rows, torch.tensor([70] * 70 + [50] * 50)),
                recompute=recompute,
            )
            loss = -token_logprobs(hidden, decoder.head, batch.target).mean()
        loss.backward()
        return lora.state.grad.clone(), kept_bytes

    (kept, all_bytes), (recomputed, fewer_bytes) = gradient(False), gradient(True)
    assert kept.abs().max() > 1e-3
    assert torch.equal(kept, recomputed)
    assert fewer_bytes < all_bytes * 0.6


@BLOCKS
@PACKINGS
@pytest.mark.parametrize(
    "name",
    ["qwen2", "qwen3", "llama-biases", "mistral-sliding", "olmo2", "smollm3", "gemma3-scaled"],
)
def test_bf16_is_as_accurate_as_in_transformers(name, packing, scoring, tmp_path):
    architecture, changes = CASES[name]
    pair = load_pair(tiny_checkpoint(tmp_path, architecture, **changes), torch.bfloat16)
    batch, naive = getattr(pair, packing)
    _, truth = getattr(Pair(pair.ours, pair.theirs.float()), packing)
    actual = pair.logp(batch, scoring).double()
    assert_as_accurate("logp", actual, naive, truth)
    assert (actual - truth).abs().mean() <= 1.2 * (naive - truth).abs().mean()


@PACKINGS
def test_scoring_in_bf16_loses_less_over_many_layers_than_transformers(packing, tmp_path):
    folder = tiny_checkpoint(tmp_path, "qwen2", num_hidden_layers=24)
    pair = load_pair(folder, torch.bfloat16)
    batch, naive = getattr(pair, packing)
    _, truth = getattr(Pair(pair.ours, pair.theirs.float()), packing)
    error, naive_error = ((logp - truth).abs().mean() for logp in (pair.logp(batch, True), naive))
    assert error < 0.8 * naive_error
