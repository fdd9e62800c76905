"""The demo's tokenizer, and a file to write samples to."""

from pathlib import Path

import pytest
from helpers import DEMO

from cqa.data.tokenizer import Tokenizer


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer(DEMO / "model")


@pytest.fixture
def file(tmp_path) -> Path:
    return tmp_path / "train.jsonl"
