"""Settings of a scoring run."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from cqa.config import option, require
from cqa.score.strata import read_cutoff


@dataclass(frozen=True, kw_only=True)
class AnalysisConfig:
    """What the statistics leave to the reader to fix, before the result is seen."""

    cutoff: str | None = option(
        "Last day of the base's training data, such as 2024-06: lists texts before, after and of "
        "unknown date apart.",
        None,
    )
    margin: float | None = option(
        "Equivalence margin in nats; 0.2 sd of the base's dI, for each group.", None
    )

    def __post_init__(self) -> None:
        """Refuse values out of range."""
        if self.cutoff is not None:
            read_cutoff(self.cutoff)
        if self.margin is not None:
            require(0 < self.margin < math.inf, "margin to be positive and finite", self.margin)


@dataclass(frozen=True, kw_only=True)
class ReportConfig(AnalysisConfig):
    """One report, made from a folder of scores."""

    run: Path | None = option("Training run of the adapters, for eval_loss and its settings.", None)
    out: Path = option("Folder for report.html, report.md, tables and figures.")


@dataclass(frozen=True, kw_only=True)
class ScoreConfig(AnalysisConfig):
    """One scoring run: the base once, then every adapter on the same resident base."""

    model: str = option("Base model: a folder in Hugging Face format, or a hub id.")
    out: Path = option("Folder for scores.jsonl, items.jsonl, meta.json and summary.json.")
    adapter: tuple[Path, ...] = option("PEFT adapter to score beside the base.", (), repeat=True)
    run: Path | None = option("Training run whose epochs are scored.", None)
    epochs: tuple[int, ...] = option("Epochs of --run, such as 2,3,5; all of them.", ())
    pairs: tuple[Path, ...] = option("JSON Lines of pairs or several options.", (), repeat=True)
    continuations: tuple[Path, ...] = option("JSON Lines of continuations.", (), repeat=True)
    boundary: Literal["split", "joint"] = option(
        "How context and option meet: encoded separately, or at once (a sensitivity check).",
        "split",
    )
    null_token: str | None = option(
        "Token that stands for no context; BOS, else <|endoftext|>, else EOS.", None
    )
    template: str = option(
        "How contexts become text: plain, chat (the tokenizer's template) or a Jinja file.", "plain"
    )
    other_base: bool = option("Score adapters that were trained on another base too.", False)
    too_long: Literal["refuse", "drop"] = option(
        "What to do with items over the model's positions; those left out are listed.", "refuse"
    )
    score_eos: bool = option("Score the end token after each option too.", False)
    tokens: bool = option("Write each token's id, place in the text and log-probability.", False)
    summary: bool = option(
        "Compute the statistics; without them memory does not grow with the files.", True
    )
    batch_tokens: int = option("Token budget of one pass; changes no digit of a result.", 4096)
    device: Literal["auto", "cpu", "cuda"] = option("Where to compute.", "auto")
    dtype: Literal["auto", "fp32", "bf16"] = option(
        "Weights' dtype; auto is bf16 on CUDA and fp32 on CPU.", "auto"
    )

    def __post_init__(self) -> None:
        """Refuse values out of range."""
        super().__post_init__()
        require(bool(self.pairs or self.continuations), "--pairs or --continuations", "neither")
        require(self.batch_tokens >= 1, "batch-tokens of at least 1", self.batch_tokens)
        require(self.run is not None or not self.epochs, "--run with --epochs", "no --run")
        require(all(e >= 1 for e in self.epochs), "epochs from 1", self.epochs)
        require(len(set(self.epochs)) == len(self.epochs), "each epoch once", self.epochs)
