"""A score's bits do not depend on what else is scored with it, nor in which order."""

import random

import pytest
from helpers import DEMO, shared
from score.common import fitting, load, score_all


@pytest.fixture(scope="module")
def scored():
    """The demo model, some items, and their scores one pass of everything."""
    decoder, tokenizer = load(DEMO / "model")
    items = fitting(DEMO / "literary.jsonl", tokenizer, 1024, 12)
    items += fitting(DEMO / "factual.jsonl", tokenizer, 1024, 12)
    return decoder, tokenizer, items, score_all(decoder, tokenizer, items, 10**6)


def bits(branches):
    return {pair: (tuple(stats.logp), tuple(stats.entropy)) for pair, stats in branches.items()}


@pytest.mark.parametrize("batch_tokens", [1, 300, 1000, 4096])
def test_any_batch_budget_gives_the_same_bits(scored, batch_tokens):
    decoder, tokenizer, items, whole = scored
    assert bits(score_all(decoder, tokenizer, items, batch_tokens)) == bits(whole)


@pytest.mark.parametrize("seed", [1, 2])
def test_any_order_gives_the_same_bits(scored, seed):
    decoder, tokenizer, items, whole = scored
    shuffled = random.Random(seed).sample(items, len(items))
    assert bits(score_all(decoder, tokenizer, shuffled, 1500)) == bits(whole)


def test_odd_widths_give_the_same_bits():
    decoder, tokenizer = load(shared("models/stories260k"))
    path = shared("data/pairs/narrative_hellaswag.jsonl")
    items = fitting(path, tokenizer, decoder.config.max_positions, 20)
    whole = bits(score_all(decoder, tokenizer, items, 10**6))
    assert bits(score_all(decoder, tokenizer, items[::-1], 700)) == whole
