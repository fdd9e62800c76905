"""Settings of the study of conditioning."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from cqa.claims.config import ItemsConfig
from cqa.config import same_setting


@dataclass(frozen=True, kw_only=True)
class ConditioningConfig(ItemsConfig):
    """Whether a condition makes the text that follows more certain (section 2.1)."""

    pairs: tuple[Path, ...] = same_setting(
        ItemsConfig, "pairs", more="Each with a `condition`: a text that stands before the context."
    )
