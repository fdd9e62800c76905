"""Settings of the studies; nothing heavy is imported, so that `--help` stays instant."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from cqa.config import option
from cqa.train.config import TrainConfig


@dataclass(frozen=True, kw_only=True)
class WatchedTrainConfig(TrainConfig):
    """A training run that may be watched on a task while it trains."""

    dev: Path | None = option(
        "Pairs whose mean ddI is logged after every epoch; selects nothing.", None
    )
