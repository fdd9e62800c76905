"""Settings of the study of attention."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from cqa.claims.config import ItemsConfig
from cqa.config import same_setting


@dataclass(frozen=True, kw_only=True)
class AttentionConfig(ItemsConfig):
    """How much of a good option's attention is on its context (section 6.4)."""

    pairs: tuple[Path, ...] = same_setting(
        ItemsConfig, "pairs", more="The context is the y that attention is measured on."
    )
