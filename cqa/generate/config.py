"""Settings of generation; nothing heavy is imported, so that `--help` stays instant."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from cqa.config import require, same_setting, setting
from cqa.data.tables import parse_columns
from cqa.score.config import ScoreConfig, require_sampling


@dataclass(frozen=True, kw_only=True)
class GenerateConfig:
    """Texts that are drawn after prompts under a base or an adapter."""

    model: str = same_setting(
        ScoreConfig, "model", help="Base model: a folder in Hugging Face format, or a hub id."
    )
    adapter: Path | None = setting(
        "PEFT adapter to draw with.", None, group="Model and data", shown="the base"
    )
    prompt: str | None = setting(
        "A prompt; - reads it from standard input.", None, group="Model and data", shown="none"
    )
    prompts: Path | None = setting(
        "Prompts: JSON Lines or a table, with a `prompt` or else a `context`, and perhaps an `id`.",
        None,
        group="Model and data",
        shown="none; --prompt or --prompts is needed",
    )
    columns: tuple[str, ...] = same_setting(ScoreConfig, "columns", group="Model and data")
    out: Path | None = setting(
        "JSON Lines file for the texts, their tokens and log-probabilities.",
        None,
        group="Output",
        shown="none is written",
    )
    template: str = same_setting(ScoreConfig, "template")
    allow_special: bool = same_setting(ScoreConfig, "allow_special")
    samples: int = setting("Texts after each prompt.", 1, group="Text")
    max_tokens: int = setting(
        "Most tokens of a text; it ends before, at an end token of the model or tokenizer, or at "
        "the model's last position.",
        256,
        group="Text",
    )
    temperature: float = setting(
        "Logits are divided by it; 0 takes the most probable token.", 1.0, group="Text"
    )
    top_p: float = setting(
        "Draw from the smallest set of tokens of this probability together.", 1.0, group="Text"
    )
    seed: int = setting(
        "Seed; a text follows from it, the prompt and its number alone.", 0, group="Text"
    )
    device: Literal["auto", "cpu", "cuda"] = same_setting(ScoreConfig, "device")
    dtype: Literal["auto", "fp32", "bf16"] = same_setting(ScoreConfig, "dtype")

    def __post_init__(self) -> None:
        """Refuse values out of range."""
        got = "neither" if self.prompt is None else "both"
        require((self.prompt is None) != (self.prompts is None), "--prompt or --prompts", got)
        require(self.prompt != "", "--prompt to be a text", "an empty one")
        parse_columns(self.columns)
        require_sampling(
            n_samples=self.samples, max_tokens=self.max_tokens, temperature=self.temperature,
            top_p=self.top_p, seed=self.seed,
        )  # fmt: skip
