"""Settings of a report."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from cqa.config import same_setting, setting
from cqa.stats.config import AnalysisConfig


@dataclass(frozen=True, kw_only=True)
class ReportConfig(AnalysisConfig):
    """One report, made from a folder of scores."""

    run: Path | None = setting(
        "Training run of the adapters, for eval_loss and its settings.",
        None,
        group="Model and data",
        shown="the one that was scored, if it is there",
    )
    study: tuple[Path, ...] = setting(
        "Folder of a study (cqa-fast study) of the same base, which becomes a section.",
        (),
        group="Model and data",
        shown="none",
        repeat=True,
    )
    compare: Path | None = setting(
        "Folder of a comparison (cqa-fast compare) of these scores with others, which becomes a "
        "section.",
        None,
        group="Model and data",
        shown="none",
    )
    choose: Literal["best", "last"] | None = same_setting(  # type: ignore[assignment]
        AnalysisConfig, "choose", default=None, shown="as scored"
    )
    out: Path = setting("Folder for report.html, report.md, tables and figures.", group="Output")
