"""Settings of the studies; nothing heavy is imported, so that `--help` stays instant."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from cqa.config import option, require, same_option
from cqa.score.config import ScoreConfig
from cqa.train.config import TrainConfig


@dataclass(frozen=True, kw_only=True)
class WatchedTrainConfig(TrainConfig):
    """A training run that may be watched on a task while it trains."""

    dev: Path | None = option(
        "Pairs whose mean ddI is logged after every epoch; selects nothing.", None
    )


@dataclass(frozen=True, kw_only=True)
class PrescreenConfig:
    """Which decision points a base model has yet to learn (§3.3.1)."""

    model: str = same_option(ScoreConfig, "model")
    pairs: tuple[Path, ...] = option(
        "Decision points: JSON Lines of pairs or several options.", (), repeat=True
    )
    out: Path = option("Folder for prescreen.jsonl, selected.jsonl and the scores.")
    budget: int | None = option("How many of the most valuable points selected.jsonl gets.", None)
    high: float = option(
        "Probability among a point's options from which the model counts as decided.", 0.8
    )
    per: Literal["sum", "token", "byte", "char"] = option(
        "What probabilities compare: log-probability summed over tokens, or its mean.", "sum"
    )
    template: str = same_option(ScoreConfig, "template")
    batch_tokens: int = same_option(ScoreConfig, "batch_tokens")
    device: Literal["auto", "cpu", "cuda"] = same_option(ScoreConfig, "device")
    dtype: Literal["auto", "fp32", "bf16"] = same_option(ScoreConfig, "dtype")

    def __post_init__(self) -> None:
        """Refuse values out of range."""
        require(bool(self.pairs), "--pairs", "none")
        require(self.batch_tokens >= 1, "batch-tokens of at least 1", self.batch_tokens)
        require(self.budget is None or self.budget >= 1, "budget of at least 1", self.budget)
        require(0.5 < self.high <= 1, "high above 0.5, up to 1", self.high)
