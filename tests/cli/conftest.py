"""Short files of samples and of items."""

from pathlib import Path

import pytest
from helpers import DEMO, read_lines, write_lines


@pytest.fixture
def samples(tmp_path) -> Path:
    """A training file of six short samples."""
    records = [
        {"id": s["id"], "prompt": s["prompt"][-60:], "response": s["response"][:40]}
        for s in read_lines(DEMO / "train.jsonl")[:6]
    ]
    return write_lines(tmp_path / "train.jsonl", records)


@pytest.fixture
def pairs(tmp_path) -> Path:
    """An item file of one pair and one text with three options."""
    return write_lines(
        tmp_path / "pairs.jsonl",
        [
            {"id": "a", "context": "It rained.", "good": " She ran.", "bad": " She sat down."},
            {"id": "b", "context": "So", "options": [" it is.", " he.", " no"], "answer": 1},
        ],
    )
