"""Blocks of rows on a GPU: full waves, and little padding with the budget that a GPU has."""

from types import SimpleNamespace

import pytest
import torch

from cqa.bench.config import Job
from cqa.bench.score import null_tokenizer, random_items
from cqa.layout import pack_trees
from cqa.model.block_rows import (
    BLOCK_ROWS,
    LARGE_PASS_ROWS,
    block_rows,
    fullest,
    pass_rows,
    wave_fill,
)
from cqa.score.prefix_batch import passes

CARDS = {"A100": 108, "H100": 132, "B200": 148, "A40": 84}  # multiprocessors


def test_a_cpu_has_the_height_of_its_ops():
    for backend, height in BLOCK_ROWS.items():
        assert block_rows(backend, torch.device("cpu"), 3584) == height


@pytest.mark.parametrize(("card", "height"), [("H100", 1152), ("A100", 1920)])
def test_tiles_of_a_block_fill_the_waves_of_a_card(card, height):
    """At 7 B's hidden size: 9 x 14 tiles on 132 multiprocessors, 15 x 14 on 108."""
    assert fullest(3584, CARDS[card]) == height
    assert wave_fill(height, 3584, CARDS[card]) > 0.95
    assert wave_fill(2048, 3584, CARDS[card]) < 0.86


@pytest.mark.parametrize("hidden_size", [896, 2048, 3584, 4096, 8192])
@pytest.mark.parametrize("card", CARDS)
def test_no_height_fills_them_better(card, hidden_size):
    n = CARDS[card]
    best = fullest(hidden_size, n)
    assert best % 128 == 0
    for height in range(1024, 2049, 128):
        assert wave_fill(height, hidden_size, n) <= wave_fill(best, hidden_size, n)


def padding(monkeypatch, card: str, job: str) -> float:
    """Return computed rows over fed ones of a job with what a GPU takes by default."""
    properties = SimpleNamespace(multi_processor_count=CARDS[card])
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: properties)
    device = torch.device("cuda")
    height = block_rows("triton", device, 3584)
    budget = pass_rows("triton", device, 3584)
    assert height == fullest(3584, CARDS[card])
    assert budget % height == 0
    assert LARGE_PASS_ROWS - height < budget <= LARGE_PASS_ROWS
    fed = computed = 0
    for _, prefixes in passes(random_items(Job.parse(job), 1000), null_tokenizer(), budget):
        n_rows = pack_trees(prefixes.trees())[0].n_rows
        fed += n_rows
        computed += -(-n_rows // height) * height
    return computed / fed


@pytest.mark.parametrize("card", CARDS)
@pytest.mark.parametrize("job", ["40x800+2x100", "400x200+4x40", "2000x20+2x10"])
def test_little_of_what_a_gpu_computes_is_padding(monkeypatch, card, job):
    assert padding(monkeypatch, card, job) < 1.05


@pytest.mark.parametrize("job", ["4x4096+2x100", "10x800+4x100"])
def test_little_of_a_job_of_one_pass_is_padding(monkeypatch, job):
    """Of some 19,000 rows a block is 6 to 10 %, so other cards may compute a little more."""
    assert padding(monkeypatch, "H100", job) < 1.05
    for card in CARDS:
        assert padding(monkeypatch, card, job) < 1.07


def test_a_cpu_has_smaller_passes_without_padding():
    assert pass_rows("native", torch.device("cpu"), 3584) == 4096
