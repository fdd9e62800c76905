"""Settings of a comparison."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from cqa.config import setting


@dataclass(frozen=True, kw_only=True)
class CompareConfig:
    """One comparison of folders of scores."""

    models: tuple[str, ...] = setting(
        "Models of each folder: base, and names of adapters such as epoch-05.",
        (),
        group="Model and data",
        shown="all that were scored",
    )
    reference: str | None = setting(
        "Model that the others are compared with, as the table names it.",
        None,
        group="Statistics",
        shown="the first",
    )
    out: Path = setting(
        "Folder for compare.json, compare.md, tables and the figure.", group="Output"
    )
