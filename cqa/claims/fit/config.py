"""Settings of the study of audience fit."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from cqa.claims.config import ModelsConfig
from cqa.config import require, same_setting, setting
from cqa.data.tables import parse_columns
from cqa.score.config import ScoreConfig


@dataclass(frozen=True, kw_only=True)
class FitConfig(ModelsConfig):
    """Whether works fit some readers better than others (section 6.4)."""

    works: tuple[Path, ...] = setting(
        "Works: `work` or `text`, and where there is one the `context` that it follows; JSON Lines "
        "or a table.",
        group="Model and data",
        repeat=True,
    )
    audiences: tuple[Path, ...] = setting(
        "Audiences: `wordings`, three or more texts that each describe the reader; with `nobody` "
        "true they describe nobody. JSON Lines.",
        group="Model and data",
        repeat=True,
    )
    columns: tuple[str, ...] = same_setting(ScoreConfig, "columns")

    def __post_init__(self) -> None:
        """Refuse values out of range."""
        super().__post_init__()
        require(bool(self.works), "--works", "none")
        require(bool(self.audiences), "--audiences", "none")
        parse_columns(self.columns)
