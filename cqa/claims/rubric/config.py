"""Settings of the study of the rubric's gap."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from cqa.claims.config import ItemsConfig
from cqa.config import same_setting


@dataclass(frozen=True, kw_only=True)
class RubricConfig(ItemsConfig):
    """Whether constraints together say more than the sum of what each says alone (section 1.1)."""

    pairs: tuple[Path, ...] = same_setting(
        ItemsConfig,
        "pairs",
        more="Each with `constraints`: 2 to 4 texts that stand before the context; and, where "
        "there is one, `paraphrase`: the first of them in other words.",
    )
