"""Varentropy of the tokens of a pass, where it is asked for, against transformers in float64."""

import pytest
import torch
from helpers import DEMO
from score.common import fitting, load, load_reference

from cqa.score.decoder_engine import run_prefix_batch
from cqa.score.prefix_batch import passes

ITEMS = DEMO / "literary.jsonl"


@pytest.fixture(scope="module")
def scored():
    """One pass over a few items without varentropy, and one with it."""
    decoder, tokenizer = load(DEMO / "model")
    items = fitting(ITEMS, tokenizer, decoder.config.max_positions, 3)
    (prefixes,) = [prefixes for _, prefixes in passes(items, tokenizer, 4096)]
    return run_prefix_batch(decoder, prefixes), run_prefix_batch(decoder, prefixes, varentropy=True)


@torch.no_grad()
def test_it_is_that_of_transformers_at_every_token(scored):
    model = load_reference(DEMO / "model", torch.float64)
    for (context, option), stats in scored[1].items():
        logits = model(torch.tensor([context + option])).logits[0, len(context) - 1 : -1]
        logp = logits.log_softmax(1)
        entropy = -(logp.exp() * logp).sum(1, keepdim=True)
        truth = (logp.exp() * (-logp - entropy) ** 2).sum(1)
        assert stats.varentropy == pytest.approx(truth.tolist(), rel=1e-4)


def test_the_other_numbers_keep_their_bits(scored):
    without, asked = scored
    assert without.keys() == asked.keys()
    for sequence, stats in without.items():
        assert stats.varentropy is None
        for field in ("logp", "entropy", "rank"):
            assert getattr(stats, field) == getattr(asked[sequence], field)
