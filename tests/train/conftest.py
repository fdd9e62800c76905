"""One finished training run for all tests that look at one."""

from pathlib import Path

import pytest
from helpers import write_lines
from train.runs import SAMPLES, config_of

from cqa.schema.events import TrainEvent
from cqa.train.config import TrainConfig
from cqa.train.loop import TrainResult, train


@pytest.fixture(scope="session")
def data(tmp_path_factory) -> Path:
    return write_lines(tmp_path_factory.mktemp("data") / "train.jsonl", SAMPLES)


@pytest.fixture(scope="session")
def finished(data, tmp_path_factory) -> tuple[Path, list[TrainEvent], TrainResult]:
    """The folder of an uninterrupted run, the events it reported and what it returned."""
    out = tmp_path_factory.mktemp("finished") / "run"
    events: list[TrainEvent] = []
    return out, events, train(config_of(data, out), on_event=events.append)


@pytest.fixture
def config(data, tmp_path) -> TrainConfig:
    """The settings of the finished run, for a new folder."""
    return config_of(data, tmp_path / "run")
