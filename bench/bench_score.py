"""Scoring pairs with the demo model, conditional and null: ours, against lm-eval's HF backend."""

import pytest
import torch
from compare import record, turn_about

from cqa.data.items import read_items
from cqa.data.tokenizer import Tokenizer
from cqa.model.load import load_model
from cqa.score.forest import encode_item, passes
from cqa.score.scorer import run_forest
from cqa.study.demo import ASSETS


def bench_pairs(benchmark):
    huggingface = pytest.importorskip("lm_eval.models.huggingface")

    folder = ASSETS / "model"
    tokenizer = Tokenizer(folder)
    base = load_model(folder, device=torch.device("cpu"), dtype=torch.float32)
    items = [
        encode_item(item, tokenizer, "split", score_eos=False, max_positions=1024)
        for item in read_items([ASSETS / "literary.jsonl"])
    ]
    pairs = [(option.context_ids, option.option_ids) for item in items for option in item.options]
    pairs += [(tokenizer.null_ids, option) for _, option in pairs]

    def ours():
        scored = {}
        for _, forest in passes(items, tokenizer, 4096):
            scored.update(run_forest(base.decoder, forest))
        return [scored[pair].total for pair in pairs]

    lm = huggingface.HFLM(pretrained=str(folder), device="cpu", dtype="float32", batch_size=8)
    requests = [((None, None), list(context), list(option)) for context, option in pairs]

    def peer():
        return [logp for logp, _ in lm._loglikelihood_tokens(requests, disable_tqdm=True)]

    assert ours() == pytest.approx(peer(), abs=1e-3)
    benchmark.extra_info["n_pairs"] = len(pairs)
    record(benchmark, "lm_eval_hf", turn_about(ours, peer))
    benchmark.pedantic(ours, rounds=3)
