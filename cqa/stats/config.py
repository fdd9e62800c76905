"""Settings of the statistics."""

from __future__ import annotations

import math
from dataclasses import dataclass

from cqa.config import option, require
from cqa.stats.strata import read_cutoff


@dataclass(frozen=True, kw_only=True)
class AnalysisConfig:
    """What the statistics leave to the reader to fix, before the result is seen."""

    cutoff: str | None = option(
        "Last day of the base's training data, such as 2024-06: lists texts before, after and of "
        "unknown date apart.",
        None,
    )
    margin: float | None = option(
        "Equivalence margin in nats; 0.2 sd of the base's dI, for each group.", None
    )

    def __post_init__(self) -> None:
        """Refuse values out of range."""
        if self.cutoff is not None:
            read_cutoff(self.cutoff)
        if self.margin is not None:
            require(0 < self.margin < math.inf, "margin to be positive and finite", self.margin)
