"""Settings of a training run; the defaults are the paper's recipe (section 3.4)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from cqa.config import MOST_EPOCHS, MOST_TOKENS, require, setting
from cqa.data.tables import parse_columns

TARGETS = ("q", "k", "v", "o", "gate", "up", "down")

PRESETS: dict[str, dict[str, Any]] = {  # recipes; what data is held out is no part of one
    "paper": {
        "epochs": 12,
        "micro_batch": 1,
        "grad_accum": 2,
        "lr": 2e-4,
        "warmup_ratio": 0.1,
        "max_grad_norm": 1.0,
        "weight_decay": 0.0,
        "rank": 32,
        "alpha": 32.0,
        "rslora": True,
        "dropout": 0.05,
        "neftune_alpha": 5.0,
        "targets": TARGETS,
    }
}
_PAPER = PRESETS["paper"]


MOST = {"epochs": MOST_EPOCHS, "rank": 65_536}


def share_of(validation: str) -> float | None:
    """Return the held-out share that a setting names, or None where it names a file."""
    try:
        return float(validation)
    except ValueError:
        return None


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """One training run."""

    model: str = setting(
        "Base model: a folder in Hugging Face format, or a hub id.",
        group="Model and data",
        path_unless=(),
    )
    data: tuple[Path, ...] = setting(
        "Training samples, JSON Lines or a table: prompt/response, alpaca, sharegpt, messages or "
        "dialogue. Several files are read one after the other, each in a format of its own.",
        group="Model and data",
        repeat=True,
    )
    columns: tuple[str, ...] = setting(
        "Keys and the columns of the files they are read from, such as response=answer.",
        (),
        group="Text",
        shown="keys are columns",
    )
    out: Path = setting("Folder of the run: adapters, log and settings.", group="Output")
    validation: str = setting(
        "Held-out share of the samples, or a file of them; 0 holds none out.",
        "0.1",
        group="Model and data",
        path_unless=(),
    )
    placebo: bool = setting(
        "Learn the same prompts with the responses dealt to other prompts: a control beside the "
        "real run, never a candidate.",
        False,
        group="Model and data",
    )
    loss_on: Literal["response", "whole-text"] = setting(
        "Which tokens are learned.", "response", group="Text"
    )
    template: str = setting(
        "How samples become text: plain, chat (the tokenizer's template) or a Jinja file, which "
        "has messages (of role and content), add_generation_prompt, bos_token and eos_token.",
        "plain",
        group="Text",
        path_unless=("plain", "chat"),
    )
    allow_special: bool = setting(
        "Take control tokens that are written in a text as such; else such texts are refused.",
        False,
        group="Text",
    )
    max_tokens: int | None = setting(
        "Longest sample, in tokens.", None, group="Text", shown="the model's positions"
    )
    too_long: Literal["refuse", "drop", "truncate"] = setting(
        "What to do with samples over --max-tokens.", "refuse", group="Text"
    )
    from_: Path | None = setting(
        "Adapter to start from, such as RUN/epoch-05: its weights alone, in a new run. Rank, "
        "alpha, rsLoRA and targets are the adapter's.",
        None,
        group="LoRA",
        shown="a fresh one",
    )
    rank: int = setting("LoRA rank.", _PAPER["rank"], group="LoRA")
    alpha: float = setting("LoRA alpha.", _PAPER["alpha"], group="LoRA")
    rslora: bool = setting(
        "Scale by alpha / sqrt(rank) instead of alpha / rank.", _PAPER["rslora"], group="LoRA"
    )
    dropout: float = setting(
        "LoRA dropout, a mask of its own for each module.", _PAPER["dropout"], group="LoRA"
    )
    targets: tuple[str, ...] = setting("Adapted projections.", _PAPER["targets"], group="LoRA")
    epochs: int = setting(
        "Passes over the samples; every epoch's adapter is kept.",
        _PAPER["epochs"],
        group="Optimizer",
    )
    micro_batch: int = setting("Samples per micro-batch.", _PAPER["micro_batch"], group="Optimizer")
    grad_accum: int = setting(
        "Micro-batches per optimizer step; all of them are packed into one pass.",
        _PAPER["grad_accum"],
        group="Optimizer",
    )
    lr: float = setting(
        "Peak learning rate of the cosine schedule.", _PAPER["lr"], group="Optimizer"
    )
    warmup_ratio: float = setting(
        "Share of the steps in which the learning rate rises.",
        _PAPER["warmup_ratio"],
        group="Optimizer",
    )
    max_grad_norm: float = setting(
        "Norm at which the gradient is clipped; 0 clips nothing.",
        _PAPER["max_grad_norm"],
        group="Optimizer",
    )
    weight_decay: float = setting(
        "AdamW's decoupled weight decay.", _PAPER["weight_decay"], group="Optimizer"
    )
    neftune_alpha: float = setting(
        "Size of NEFTune's noise on the embeddings; 0 adds none.",
        _PAPER["neftune_alpha"],
        group="Optimizer",
    )
    seed: int = setting("Seed of everything random.", 0, group="Optimizer")
    device: Literal["auto", "cpu", "cuda"] = setting(
        "Where to compute; auto is CUDA if a GPU is there.", "auto", group="Memory and device"
    )
    dtype: Literal["auto", "fp32", "bf16"] = setting(
        "Dtype of the weights, and on a GPU of what is computed; auto is bf16 on CUDA and fp32 on "
        "a CPU.",
        "auto",
        group="Memory and device",
    )
    pass_tokens: int = setting(
        "Most tokens in one pass; a larger global batch is split, with the same result.",
        16_384,
        group="Memory and device",
    )
    recompute: bool = setting(
        "Recompute activations in backward, to save memory.", False, group="Memory and device"
    )
    cuda_graphs: bool = setting(
        "Replay passes as CUDA graphs: for models up to about 1 B parameters on a GPU.",
        False,
        group="Memory and device",
    )

    def __post_init__(self) -> None:
        """Refuse values out of range."""
        for name in ("epochs", "micro_batch", "grad_accum", "rank", "pass_tokens"):
            value = getattr(self, name)
            require(value >= 1, f"{name.replace('_', '-')} to be at least 1", value)
            most = MOST.get(name, MOST_TOKENS)
            require(value <= most, f"{name.replace('_', '-')} of at most {most:,}", value)
        require(0 < self.lr < math.inf, "lr to be positive and finite", self.lr)
        require(0 < self.alpha < math.inf, "alpha to be positive and finite", self.alpha)
        require(0 <= self.warmup_ratio < 1, "warmup-ratio from 0 to below 1", self.warmup_ratio)
        require(0 <= self.dropout <= 0.99, "dropout from 0 to 0.99", self.dropout)
        for name in ("max_grad_norm", "weight_decay", "neftune_alpha"):
            value = getattr(self, name)
            expected = f"{name.replace('_', '-')} of at least 0 and finite"
            require(0 <= value < math.inf, expected, value)
        require(0 <= self.seed < 2**64, "seed from 0 to below 2^64", self.seed)
        require(not (self.cuda_graphs and self.recompute), "cuda-graphs without recompute", "both")
        parse_columns(self.columns)
        require(bool(self.data), "--data", "none")
        known = bool(self.targets) and set(self.targets) <= set(TARGETS)
        require(known, f"targets among {','.join(TARGETS)}", ",".join(self.targets))
        if self.max_tokens is not None:
            require(self.max_tokens >= 2, "max-tokens of at least 2", self.max_tokens)
            expected = f"max-tokens of at most {MOST_TOKENS:,}"
            require(self.max_tokens <= MOST_TOKENS, expected, self.max_tokens)
        if self.validation_share is not None:
            require(0 <= self.validation_share < 1, "validation from 0 to below 1", self.validation)

    @property
    def validation_share(self) -> float | None:
        """The held-out share, or None when `validation` names a file."""
        return share_of(self.validation)

    @property
    def with_columns(self) -> tuple[Path, ...]:
        """The files that are read with `columns`."""
        return (
            self.data if self.validation_share is not None else (*self.data, Path(self.validation))
        )

    @property
    def global_batch_size(self) -> int:
        """Samples per optimizer step."""
        return self.micro_batch * self.grad_accum
