"""Settings of the bridges; nothing heavy is imported, so that `--help` stays instant."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from cqa.config import require, same_setting, setting
from cqa.score.config import ScoreConfig, require_batch


@dataclass(frozen=True, kw_only=True)
class LmEvalConfig:
    """Tasks of lm-eval under a base or an adapter."""

    model: str = same_setting(ScoreConfig, "model")
    adapter: Path | None = setting(
        "PEFT adapter that is evaluated.", None, group="Model and data", shown="the base"
    )
    tasks: tuple[str, ...] = setting("Tasks of lm-eval, such as arc_easy,piqa.", group="Study")
    num_fewshot: int | None = setting(
        "Examples in front of each question.", None, group="Study", shown="the task's own"
    )
    limit: float | None = setting(
        "Documents of each task, or a share of them below 1.", None, group="Study", shown="all"
    )
    include_path: Path | None = setting(
        "Folder of further task files.", None, group="Study", shown="none"
    )
    out: Path | None = setting(
        "JSON file for the results.", None, group="Output", shown="none is written"
    )
    batch_tokens: int | None = same_setting(ScoreConfig, "batch_tokens")
    device: Literal["auto", "cpu", "cuda"] = same_setting(ScoreConfig, "device")
    dtype: Literal["auto", "fp32", "bf16"] = same_setting(ScoreConfig, "dtype")

    def __post_init__(self) -> None:
        """Refuse values out of range."""
        require(bool(self.tasks), "--tasks", "none")
        require_batch(self.batch_tokens)
        few = self.num_fewshot
        require(few is None or few >= 0, "num-fewshot of at least 0", few)
        limit = self.limit
        usable = limit is None or 0 < limit < 1 or (limit >= 1 and limit.is_integer())
        require(usable, "limit as a share below 1 or a whole number", limit)
