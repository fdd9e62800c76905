"""One scoring run with its training, for all tests that look at it."""

from pathlib import Path

import pytest
from helpers import DEMO, read_lines, write_lines
from score.scoring import (
    FACTUAL,
    LITERARY,
    MODEL,
    SEVERAL,
    TEXTS,
    config_of,
    few_of,
    rows_of,
)

from cqa.schema.events import ScoreEvent
from cqa.score.config import ScoreConfig
from cqa.score.run import score
from cqa.train.config import TrainConfig
from cqa.train.loop import train


@pytest.fixture(scope="session")
def data(tmp_path_factory) -> Path:
    """A folder of item files."""
    folder = tmp_path_factory.mktemp("items")
    write_lines(folder / "literary.jsonl", LITERARY)
    write_lines(folder / "factual.jsonl", FACTUAL)
    write_lines(folder / "several.jsonl", SEVERAL)
    write_lines(folder / "texts.jsonl", TEXTS)
    write_lines(folder / "few.jsonl", [LITERARY[0], SEVERAL[0], FACTUAL[0], SEVERAL[2]])
    return folder


@pytest.fixture(scope="session")
def run(tmp_path_factory) -> Path:
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


@pytest.fixture(scope="session")
def scored(data, run, tmp_path_factory) -> tuple[ScoreConfig, list[ScoreEvent], dict]:
    """The settings of an uninterrupted run over everything, its events, its summary as JSON."""
    config = config_of(data, tmp_path_factory.mktemp("scored") / "out", run=(run,), tokens=True)
    events: list[ScoreEvent] = []
    return config, events, score(config, on_event=events.append).to_json()


@pytest.fixture(scope="session")
def rows(scored) -> list[dict]:
    return rows_of(scored[0].out)


@pytest.fixture(scope="session")
def few(data, run, tmp_path_factory) -> Path:
    """The folder of an uninterrupted run over a few items under the base and one adapter."""
    config = few_of(data, tmp_path_factory.mktemp("few") / "out", adapter=(run / "epoch-01",))
    score(config)
    return config.out
