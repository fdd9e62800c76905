"""Scores equal a naive transformers loop on real items, and lm-eval's loglikelihood.

The naive loop runs in fp32. On the longest options it is itself up to 1.3e-4 nats off (how often
depends on the processor), so where the two differ by more than the tolerance, the same loop in
float64 decides.
"""

import pytest
import torch
from helpers import DEMO, shared
from score.common import fitting, lm_eval_model, load, load_reference, naive_logps, score_all

FILES = [
    "factual_arc_easy",
    "factual_openbookqa",
    "factual_piqa",
    "factual_true_continuation",
    "literary_expert_edits",
    "literary_figurative",
    "literary_true_continuation",
    "narrative_copa",
    "narrative_hellaswag",
    "zh_xcopa",
]
TOLERANCE_NATS = 1e-4


@pytest.fixture(scope="module", params=["cqa-demo", "stories260k"])
def models(request):
    """Our decoder and transformers' model of the same checkpoint."""
    folder = DEMO / "model" if request.param == "cqa-demo" else shared("models/stories260k")
    return *load(folder), folder


@pytest.mark.parametrize("file", FILES)
def test_the_first_200_fitting_items_equal_a_naive_loop(models, file):
    decoder, tokenizer, folder = models
    path = shared(f"data/pairs/{file}.jsonl")
    items = fitting(path, tokenizer, decoder.config.max_positions, 200)
    if not items:
        pytest.skip("no item of this file fits the model's positions")
    ours = score_all(decoder, tokenizer, items)
    pairs = list(dict.fromkeys(pair for item in items for pair in item.sequences(tokenizer)))
    naive = naive_logps(load_reference(folder), pairs)
    apart = [
        pair
        for pair, logp in zip(pairs, naive, strict=True)
        if not abs(ours[pair].total - float(logp.sum())) <= TOLERANCE_NATS
    ]
    assert len(apart) <= 2 + len(pairs) / 10  # where fp32 of the other is off itself, as below
    for pair, exact in zip(
        apart, naive_logps(load_reference(folder, torch.float64), apart), strict=True
    ):
        assert abs(ours[pair].total - float(exact.sum())) <= TOLERANCE_NATS, pair


@pytest.mark.parametrize("file", ["narrative_hellaswag", "literary_figurative"])
def test_equals_lm_eval_where_the_boundary_is_unambiguous(models, file):
    huggingface = pytest.importorskip("lm_eval.models.huggingface", reason="lm-eval not installed")
    from lm_eval.api.instance import Instance

    decoder, tokenizer, folder = models
    items = fitting(shared(f"data/pairs/{file}.jsonl"), tokenizer, decoder.config.max_positions, 30)
    clear = [
        (item, k) for item in items for k, o in enumerate(item.options) if not o.boundary_mismatch
    ]
    assert clear
    requests = [
        Instance("loglikelihood", {}, (item.item.context, item.item.options[k]), i)
        for i, (item, k) in enumerate(clear)
    ]
    lm = lm_eval_model(huggingface, folder, tokenizer)
    theirs = lm.loglikelihood(requests, disable_tqdm=True)
    ours = score_all(decoder, tokenizer, items)
    for (item, k), (logp, _) in zip(clear, theirs, strict=True):
        option = item.options[k]
        assert abs(ours[option.context_ids, option.option_ids].total - logp) <= TOLERANCE_NATS
