"""A training run whose adapters all studies are asked with."""

from pathlib import Path

import pytest
from claims.asking import MODEL
from helpers import DEMO, read_lines, write_lines

from cqa.train.config import TrainConfig
from cqa.train.loop import train


@pytest.fixture(scope="session")
def trained(tmp_path_factory) -> Path:
    """The folder of a training run with two epochs."""
    folder = tmp_path_factory.mktemp("training")
    samples = [
        {"prompt": s["prompt"][-40:], "response": s["response"][:40]}
        for s in read_lines(DEMO / "train.jsonl")[:6]
    ]
    data = write_lines(folder / "train.jsonl", samples)
    out = folder / "run"
    train(
        TrainConfig(
            model=str(MODEL), data=(data,), out=out, epochs=2, rank=4, lr=3e-3, validation="0",
            device="cpu",
        )
    )  # fmt: skip
    return out
