"""What a GPU must do as the CPU does; every body also runs on the CPU, in bf16 too."""

import random

import pytest
import torch
from helpers import ON_DEVICES
from score.common import score_all

from cqa.bench.config import Job, Window
from cqa.bench.score import null_tokenizer, random_items
from cqa.bench.shapes import QWEN25, random_weight
from cqa.bench.step import random_samples
from cqa.kernels.aug_columns import AugColumns
from cqa.kernels.copy_shrink import copy_shrink
from cqa.kernels.philox import Dropout
from cqa.kernels.shrink import Shrink
from cqa.layout import Tree, pack_trees
from cqa.model.config import parse_config
from cqa.model.decoder import Decoder
from cqa.model.load import destinations
from cqa.model.lora import LoraSpec, TrainableLora
from cqa.model.projection import MODULES
from cqa.score.decoder_engine import run_prefix_batch
from cqa.score.prefix_batch import PrefixBatch
from cqa.train.passes import StepConfig
from cqa.train.step import take_step

pytestmark = pytest.mark.parametrize("device", ON_DEVICES)
RAW = QWEN25 | {  # the 0.5 B shape in small, its heads as wide
    "hidden_size": 256, "intermediate_size": 704, "num_hidden_layers": 4,
    "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 4101,
    "tie_word_embeddings": True, "max_position_embeddings": 2048,
}  # fmt: skip
SPEC = LoraSpec(16, 32.0, True, MODULES)


def small_decoder(device: str, dtype: torch.dtype, stored: torch.dtype | None = None) -> Decoder:
    """A random model: the same numbers on every device, rounded to `stored` first."""
    decoder = Decoder(
        parse_config(RAW, "test"),
        rank_columns=SPEC.rank_columns(),
        dtype=dtype,
        device=torch.device(device),
    )
    for name, (shape, put) in destinations(decoder).items():
        weight = random_weight(name, shape, torch.float32, torch.device("cpu"))
        put((weight * 2 if "norm" not in name else weight).to(stored or torch.float32))
    return decoder


@pytest.mark.parametrize("p", [0.05, 0.5])
def test_dropout_masks_are_the_reference_s(device, p):
    k, modules, rows = 128, (3, 17), torch.arange(1000, 1300)
    columns = AugColumns(k, False, 2 * k, 64)
    reference = Dropout(p, 2**63 + 5, 7, rows)
    expected = torch.cat([reference.keep(module, k) for module in modules], dim=1)
    x = torch.ones(len(rows), k, device=device)
    identity = torch.eye(k, device=device).repeat(2, 1)  # S is then the mask itself, scaled
    shrink = Shrink(identity, modules, Dropout(p, 2**63 + 5, 7, rows.to(device)))
    s = copy_shrink(x, columns, shrink)[:, columns.ranks]
    assert torch.equal(s.cpu() != 0, expected)
    torch.testing.assert_close(s.cpu(), expected * reference.scale)


def losses(device: str, dtype: torch.dtype, n: int) -> list[float]:
    samples = random_samples(Window.parse("20+30,35+15"), RAW["vocab_size"])
    lora, config = TrainableLora(small_decoder(device, dtype), SPEC, 0), StepConfig()
    steps = (take_step(lora, samples, config, step=step, lr=1e-3) for step in range(1, n + 1))
    return [took.loss_nats for took in steps]


def test_bf16_losses_follow_fp32_on_the_cpu(device):
    truth = losses("cpu", torch.float32, 12)
    actual = losses(device, torch.bfloat16, 12)
    assert truth[-1] < truth[0] - 0.3
    assert actual == pytest.approx(truth, rel=0.01)


def test_fp32_losses_are_the_cpu_s(device):
    assert losses(device, torch.float32, 4) == pytest.approx(
        losses("cpu", torch.float32, 4), rel=2e-5
    )


def trees() -> list[Tree]:
    rng = random.Random(0)

    def ids(n: int) -> tuple[int, ...]:
        return tuple(rng.randrange(RAW["vocab_size"]) for _ in range(n))

    return [Tree(ids(n), (ids(12), ids(25))) for n in (1, 40, 130)]


@torch.no_grad()
def token_scores(decoder: Decoder) -> torch.Tensor:
    prefixes = PrefixBatch()
    prefixes.add([(tree.context, option) for tree in trees() for option in tree.options])
    sequences = run_prefix_batch(decoder, prefixes)
    ordered = [sequences[tree.context, option] for tree in trees() for option in tree.options]
    return torch.tensor([value for sequence in ordered for value in sequence.logp]).double()


@torch.no_grad()
def transformers_scores(device: str) -> torch.Tensor:
    """The same with transformers in bf16: logits and log_softmax as it gives them."""
    from transformers import AutoConfig, AutoModelForCausalLM

    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(**RAW), dtype=torch.bfloat16)
    for name, parameter in model.named_parameters():
        shape = tuple(parameter.shape)
        drawn = random_weight(name, shape, torch.float32, torch.device("cpu"))
        parameter.copy_(drawn * 2 if "norm" not in name else drawn)
    model.to(device).eval()
    values = []
    for tree in trees():
        for option in tree.options:
            ids = torch.tensor([tree.context + option], device=device)
            logp = model(ids[:, :-1], use_cache=False).logits[0, -len(option) :].log_softmax(-1)
            values += logp.gather(1, ids[0, -len(option) :, None])[:, 0].tolist()
    return torch.tensor(values).double()


def test_bf16_scores_are_nearer_to_float64_than_transformers(device):
    truth = token_scores(small_decoder("cpu", torch.float64, torch.bfloat16))
    error = (token_scores(small_decoder(device, torch.bfloat16)) - truth).abs()
    peer_error = (transformers_scores(device) - truth).abs()
    assert error.mean() <= peer_error.mean()
    assert error.max() <= 2 * peer_error.max()


def test_fp32_scores_agree_with_float64(device):
    truth = token_scores(small_decoder("cpu", torch.float64))
    error = (token_scores(small_decoder(device, torch.float32)) - truth).abs()
    assert error.max() <= 1e-4


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
def test_batch_budget_and_order_change_no_bit(device, dtype):
    decoder, tokenizer = small_decoder(device, dtype), null_tokenizer()
    items = random_items(Job(6, 60, 2, 9), 1000) + random_items(Job(3, 7, 3, 2), 1000)

    def bits(items, budget):
        scored = score_all(decoder, tokenizer, items, budget)
        return {pair: (tuple(s.logp), tuple(s.entropy)) for pair, s in scored.items()}

    whole = bits(items, 10**6)
    for budget in (1, 100, 333):
        assert bits(items, budget) == whole
    assert bits(random.Random(1).sample(items, len(items)), 150) == whole


def test_scoring_holds_no_logits_of_all_tokens(device):
    decoder = small_decoder(device, torch.bfloat16)
    n, vocabulary = 2000, RAW["vocab_size"]
    option = tuple(i % vocabulary for i in range(n))
    batch, _ = pack_trees([Tree((1,), (option,))])
    assert batch.n_targets == n
    prefixes = PrefixBatch()
    prefixes.add([((1,), option)])
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        run_prefix_batch(decoder, prefixes)
        assert torch.cuda.max_memory_allocated() - before < 4 * n * vocabulary * 4
    else:
        assert len(run_prefix_batch(decoder, prefixes)[(1,), option].logp) == n
