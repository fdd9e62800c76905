"""A real language model: scores equal transformers in float64, training PEFT, choices lm-eval.

`make real-model` brings it; without it these tests are skipped. `make real-test` takes 100 items a
file and 200 a task.
"""

import os

import pytest
import torch
from helpers import DEMO, ROOT, read_lines, shared, write_lines
from score.common import (
    fitting,
    lm_eval_model,
    load,
    load_reference,
    naive_logps,
    rounding_spread,
    score_all,
)
from train.test_parity_with_peft import RECIPE, Reference

from cqa.score.decoder_engine import run_prefix_batch
from cqa.score.prefix_batch import passes
from cqa.train.config import TrainConfig
from cqa.train.loop import train

FOLDER = ROOT / ".models" / "smollm2-135m-instruct"
N_ITEMS = int(os.environ.get("CQA_REAL_ITEMS", "2"))  # a file
N_CHOICES = 2 * N_ITEMS  # a task
FILES = [
    "factual_arc_easy", "factual_openbookqa", "factual_piqa", "factual_true_continuation",
    "literary_expert_edits", "literary_figurative", "literary_true_continuation",
    "narrative_copa", "narrative_hellaswag", "zh_xcopa",
]  # fmt: skip
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not FOLDER.exists(), reason="make real-model brings the model"),
]


@pytest.fixture(scope="module")
def model():
    """Our decoder in fp32, and the tokenizer."""
    return load(FOLDER)


@pytest.fixture(scope="module")
def exact():
    """The same checkpoint in transformers, float64."""
    return load_reference(FOLDER, torch.float64)


def items_of(model, file: str, n: int):
    """The first items of a file that fit the model."""
    decoder, tokenizer = model
    return fitting(shared(f"data/pairs/{file}.jsonl"), tokenizer, decoder.config.max_positions, n)


@pytest.mark.parametrize("file", FILES)
def test_scores_equal_transformers_in_float64(model, exact, file):
    decoder, tokenizer = model
    items = items_of(model, file, N_ITEMS)
    assert items
    ours = score_all(decoder, tokenizer, items)
    pairs = list(dict.fromkeys(pair for item in items for pair in item.sequences(tokenizer)))
    off = {
        pair: abs(ours[pair].total - float(logp.sum()))
        for pair, logp in zip(pairs, naive_logps(exact, pairs), strict=True)
    }
    apart = [pair for pair in pairs if not off[pair] <= 1e-4 + 1e-6 * len(pair[1])]
    assert len(apart) <= len(pairs) / 20
    # The model is that steep there: float64's own sum moves as far when its modules round as fp32.
    for pair, spread in zip(apart, rounding_spread(exact, apart), strict=True):
        assert off[pair] <= 4 * spread, pair


def test_rows_are_the_same_bits_for_any_budget_and_number_of_threads(model):
    decoder, tokenizer = model
    items = [
        item for file in ("narrative_hellaswag", "zh_xcopa") for item in items_of(model, file, 3)
    ]
    found = []
    threads = torch.get_num_threads()
    for budget, n_threads in ((4096, 1), (64, 1), (700, 2)):
        torch.set_num_threads(n_threads)
        scores = {}
        for _, prefixes in passes(items, tokenizer, budget):
            scores |= run_prefix_batch(decoder, prefixes)
        found.append({pair: (stats.logp, stats.entropy) for pair, stats in scores.items()})
    torch.set_num_threads(threads)
    assert found[0] == found[1] == found[2]


def accuracy(scores, items, tokenizer) -> list[bool]:
    """Whether the right option has the largest log-probability, item by item."""
    hits = []
    for item in items:
        sums = [scores[o.context_ids, o.option_ids].total for o in item.options]
        hits.append(sums.index(max(sums)) == item.item.answer)
    return hits


@pytest.mark.parametrize("file", ["narrative_hellaswag", "factual_arc_easy"])
def test_choices_are_those_of_lm_eval(model, file):
    huggingface = pytest.importorskip("lm_eval.models.huggingface", reason="lm-eval not installed")
    from lm_eval.api.instance import Instance

    decoder, tokenizer = model
    items = items_of(model, file, N_CHOICES)
    requests = [
        Instance("loglikelihood", {}, (item.item.context, text), i)
        for i, item in enumerate(items)
        for text in item.item.options
    ]
    lm = lm_eval_model(huggingface, FOLDER, tokenizer)
    theirs = iter(lm.loglikelihood(requests, disable_tqdm=True))
    picked = []
    for item in items:
        sums = [next(theirs)[0] for _ in item.item.options]
        picked.append(sums.index(max(sums)) == item.item.answer)
    assert accuracy(score_all(decoder, tokenizer, items), items, tokenizer) == picked


def test_it_knows_more_than_the_demo_model(model):
    decoder, tokenizer = model
    demo, demo_tokenizer = load(DEMO / "model")
    n = max(20, N_CHOICES)
    path = shared("data/pairs/factual_arc_easy.jsonl")
    small = fitting(path, demo_tokenizer, demo.config.max_positions, n)
    names = {item.item.id for item in small}
    large = [i for i in items_of(model, "factual_arc_easy", n) if i.item.id in names]
    ours = accuracy(score_all(decoder, tokenizer, large), large, tokenizer)
    theirs = accuracy(score_all(demo, demo_tokenizer, small), small, demo_tokenizer)
    assert sum(ours) / len(ours) > sum(theirs) / len(theirs)


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")
def test_twenty_steps_of_training_equal_peft(tmp_path):
    samples = [
        {"id": s["id"], "prompt": s["prompt"][-160:], "response": s["response"][:80]}
        for s in read_lines(shared("data/train/expert_explanations_105.jsonl"))[:40]
    ]
    data = write_lines(tmp_path / "train.jsonl", samples)
    settings = RECIPE | {"epochs": 1, "lr": 2e-4, "model": str(FOLDER)}
    config = TrainConfig(data=(data,), out=tmp_path / "run", **settings)
    train(config)
    steps = [e for e in read_lines(config.out / "log.jsonl") if e["event"] == "step"]
    theirs = Reference(config, samples, steps).steps
    assert len(steps) == 20
    for field, tolerance in (("loss_nats", 1e-5), ("grad_norm", 1e-4)):
        ours = [step[field] for step in steps]
        assert ours == pytest.approx([step[field] for step in theirs], rel=tolerance)
