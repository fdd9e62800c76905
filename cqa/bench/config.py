"""Settings of a benchmark; nothing heavy is imported, so that `--help` stays instant."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from cqa.config import require, same_setting, setting
from cqa.errors import ConfigError
from cqa.score.config import ScoreConfig, require_batch
from cqa.train.config import TrainConfig

LEVELS = ("kernel", "step", "score")


@dataclass(frozen=True, kw_only=True)
class BenchConfig:
    """What is measured."""

    shape: Literal["qwen2.5-7b", "qwen2.5-0.5b", "demo"] = setting(
        "Model of random weights in these sizes; nothing is downloaded.",
        "demo",
        group="Model and data",
    )
    model: str | None = setting(
        "Model to measure instead: a folder, or a hub id.",
        None,
        group="Model and data",
        path_unless=(),
        shown="random weights in the sizes of --shape",
    )
    levels: tuple[str, ...] = setting(
        "kernel: each op; step: a training step; score: contexts and options.",
        LEVELS,
        group="Study",
    )
    window: tuple[str, ...] = setting(
        "Global batch of a training step, as prompt+response tokens of its samples, such as "
        "0+700,0+700.",
        (),
        group="Study",
        shown="the shape's own",
        repeat=True,
    )
    job: tuple[str, ...] = setting(
        "Scoring job as ITEMSxCONTEXT+OPTIONSxTOKENS, with *MODELS for a base and its adapters, "
        "such as 40x800+2x100*8.",
        (),
        group="Study",
        shown="the shape's own",
        repeat=True,
    )
    peers: bool = setting(
        "Compare with transformers + PEFT, Liger, Unsloth and lm-eval, where installed.",
        False,
        group="Study",
    )
    seconds: float = setting(
        "Time to spend on each measurement; short ones are repeated.", 1.0, group="Study"
    )
    steps: int | None = setting(
        "Training steps to time.", None, group="Study", shown="as many as fit into --seconds"
    )
    rank: int = same_setting(TrainConfig, "rank")
    dropout: float = same_setting(TrainConfig, "dropout")
    recompute: bool = same_setting(TrainConfig, "recompute")
    cuda_graphs: bool = same_setting(TrainConfig, "cuda_graphs")
    batch_tokens: int | None = same_setting(ScoreConfig, "batch_tokens")
    device: Literal["auto", "cpu", "cuda"] = same_setting(TrainConfig, "device")
    dtype: Literal["auto", "fp32", "bf16"] = same_setting(TrainConfig, "dtype")
    out: Path | None = setting(
        "File for everything measured, JSON; written with each result.",
        None,
        group="Output",
        shown="none",
    )

    def __post_init__(self) -> None:
        """Refuse values out of range."""
        known = bool(self.levels) and set(self.levels) <= set(LEVELS)
        require(known, f"levels among {','.join(LEVELS)}", ",".join(self.levels))
        require(0 < self.seconds <= 3600, "seconds above 0, up to 3600", self.seconds)
        require(self.steps is None or self.steps >= 1, "steps of at least 1", self.steps)
        require(self.rank >= 1, "rank of at least 1", self.rank)
        require(0 <= self.dropout <= 0.99, "dropout from 0 to 0.99", self.dropout)
        require_batch(self.batch_tokens)
        for text in self.window:
            Window.parse(text)
        for text in self.job:
            Job.parse(text)


@dataclass(frozen=True, slots=True)
class Window:
    """An accumulation window: prompt and response tokens of each sample."""

    samples: tuple[tuple[int, int], ...]

    @classmethod
    def parse(cls, text: str) -> Window:
        """Read "0+700,1884+112".

        Raises:
            ConfigError: It is not of this form, or a sample has nothing to learn.
        """
        pairs = [part.split("+") for part in text.split(",")]
        if not all(len(pair) == 2 and all(n.strip().isdecimal() for n in pair) for pair in pairs):
            raise ConfigError(f"expected a window such as 0+700,1884+112, got: {text}")
        samples = tuple((int(prompt), int(response)) for prompt, response in pairs)
        require(
            all(response >= 1 and sum((prompt, response)) >= 2 for prompt, response in samples),
            "samples of at least 2 tokens with a response",
            text,
        )
        return cls(samples)

    def __str__(self) -> str:
        return ",".join(f"{prompt}+{response}" for prompt, response in self.samples)


@dataclass(frozen=True, slots=True)
class Job:
    """Items of one shape, scored under a base and adapters: all lengths in tokens."""

    items: int
    context: int
    options: int
    option: int
    models: int = 1

    @classmethod
    def parse(cls, text: str) -> Job:
        """Read "40x800+2x100*8".

        Raises:
            ConfigError: It is not of this form.
        """
        body, star, models = text.partition("*")
        parts = [part.split("x") for part in body.split("+")]
        numbers = [number.strip() for part in parts for number in part]
        if star:
            numbers.append(models.strip())
        if [len(part) for part in parts] != [2, 2] or not all(n.isdecimal() for n in numbers):
            raise ConfigError(f"expected a job such as 40x800+2x100*8, got: {text}")
        job = cls(*map(int, numbers))
        require(min(map(int, numbers)) >= 1, "numbers of at least 1 in a job", text)
        return job

    def __str__(self) -> str:
        text = f"{self.items}x{self.context}+{self.options}x{self.option}"
        return f"{text}*{self.models}" if self.models > 1 else text
