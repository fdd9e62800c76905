"""The settings that all studies share."""

from __future__ import annotations

from dataclasses import MISSING, dataclass
from pathlib import Path
from typing import Literal

from cqa.config import require, same_setting, setting
from cqa.data.tables import parse_columns
from cqa.score.config import ScoreConfig, require_batch


@dataclass(frozen=True, kw_only=True)
class ModelsConfig:
    """The base and the adapters that a study asks, and where its files go."""

    model: str = same_setting(ScoreConfig, "model")
    adapter: tuple[Path, ...] = same_setting(ScoreConfig, "adapter")
    run: tuple[Path, ...] = same_setting(ScoreConfig, "run")
    epochs: tuple[int, ...] = same_setting(ScoreConfig, "epochs")
    other_base: bool = same_setting(ScoreConfig, "other_base")
    out: Path = setting("Folder for rows.jsonl, study.json and the figure.", group="Output")
    null_token: str | None = same_setting(ScoreConfig, "null_token")
    template: str = same_setting(ScoreConfig, "template")
    allow_special: bool = same_setting(ScoreConfig, "allow_special")
    batch_tokens: int | None = same_setting(ScoreConfig, "batch_tokens")
    device: Literal["auto", "cpu", "cuda"] = same_setting(ScoreConfig, "device")
    dtype: Literal["auto", "fp32", "bf16"] = same_setting(ScoreConfig, "dtype")

    def __post_init__(self) -> None:
        """Refuse values out of range."""
        require_batch(self.batch_tokens)
        require(bool(self.run) or not self.epochs, "--run with --epochs", "no --run")
        require(all(e >= 1 for e in self.epochs), "epochs from 1", self.epochs)
        require(len(set(self.epochs)) == len(self.epochs), "each epoch once", self.epochs)


@dataclass(frozen=True, kw_only=True)
class ItemsConfig(ModelsConfig):
    """A study of items that carry more than pairs do."""

    pairs: tuple[Path, ...] = same_setting(ScoreConfig, "pairs", default=MISSING, shown=None)
    columns: tuple[str, ...] = same_setting(ScoreConfig, "columns")

    def __post_init__(self) -> None:
        """Refuse values out of range."""
        super().__post_init__()
        require(bool(self.pairs), "--pairs", "none")
        parse_columns(self.columns)
