"""Settings of the study of verdicts."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from cqa.claims.config import ItemsConfig
from cqa.config import same_setting, setting


@dataclass(frozen=True, kw_only=True)
class VerdictConfig(ItemsConfig):
    """What a model says of a pair when asked, beside dI (section 2.3)."""

    pairs: tuple[Path, ...] = same_setting(
        ItemsConfig, "pairs", more="Each with one good and one bad text."
    )
    shots: Literal["auto", "always", "never"] = setting(
        "Four answered questions of the package's own before each question; auto: with --template "
        "plain, and none where a chat template asks.",
        "auto",
        group="Text",
    )
    asked_in: Literal["auto", "en", "zh"] = setting(
        "Language of the question and its answers; auto: Chinese where an item's `lang` is zh.",
        "auto",
        group="Text",
    )
