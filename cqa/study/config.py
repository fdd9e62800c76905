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
    too_long: Literal["refuse", "drop"] = same_option(ScoreConfig, "too_long")
    batch_tokens: int = same_option(ScoreConfig, "batch_tokens")
    device: Literal["auto", "cpu", "cuda"] = same_option(ScoreConfig, "device")
    dtype: Literal["auto", "fp32", "bf16"] = same_option(ScoreConfig, "dtype")

    def __post_init__(self) -> None:
        """Refuse values out of range."""
        require(bool(self.pairs), "--pairs", "none")
        require(self.batch_tokens >= 1, "batch-tokens of at least 1", self.batch_tokens)
        require(self.budget is None or self.budget >= 1, "budget of at least 1", self.budget)
        require(0.5 < self.high <= 1, "high above 0.5, up to 1", self.high)


ARMS = ("epoch", "step")


@dataclass(frozen=True, kw_only=True)
class ScaleConfig(TrainConfig):
    """How the effect grows with the number of training samples (§4.4)."""

    validation: str = option(
        "Held-out share of the samples, the same for all sizes, or a file of them, or 0.", "0"
    )
    too_long: Literal["refuse", "drop", "truncate"] = same_option(
        TrainConfig,
        "too_long",
        more="Pairs over the model's positions are left out by drop, else refused; never cut.",
    )
    pairs: tuple[Path, ...] = same_option(ScoreConfig, "pairs")
    sizes: tuple[int, ...] = option("Sizes of the nested subsets of --data.", (10, 30, 60, 100))
    seeds: int = option("How many seeds from --seed on; each draws its own subsets.", 5)
    arms: tuple[str, ...] = option(
        "epoch: all sizes get --epochs; step: smaller ones as many steps as the largest.", ARMS
    )
    scored_epoch: int | None = option(
        "Epoch of the largest subset that is scored, and the matching one of others; the last.",
        None,
    )

    def __post_init__(self) -> None:
        """Refuse values out of range."""
        super().__post_init__()
        require(bool(self.pairs), "--pairs", "none")
        sizes = self.sizes
        ascending = bool(sizes) and sizes[0] >= 1 and list(sizes) == sorted(set(sizes))
        require(ascending, "sizes from 1, each larger than the one before", sizes)
        require(self.seeds >= 1, "seeds of at least 1", self.seeds)
        known = bool(self.arms) and set(self.arms) <= set(ARMS)
        require(known, f"arms among {', '.join(ARMS)}", ",".join(self.arms))
        if self.scored_epoch is not None:
            known = 1 <= self.scored_epoch <= self.epochs
            require(known, f"scored-epoch from 1 to {self.epochs}", self.scored_epoch)
