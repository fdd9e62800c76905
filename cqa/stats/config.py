"""Settings of the statistics."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from cqa.config import require, setting
from cqa.stats.strata import read_cutoff


@dataclass(frozen=True, kw_only=True)
class AnalysisConfig:
    """What the statistics leave to the reader to fix, before the result is seen."""

    cutoff: str | None = setting(
        "Last day of the base's training data, such as 2024-06: texts from before it, from after "
        "it and without a date are listed apart.",
        None,
        group="Statistics",
        shown="not split by date",
    )
    margin: float | None = setting(
        "Equivalence margin in nats: a change of the control group that is smaller than this "
        "counts as none.",
        None,
        group="Statistics",
        shown="d_z of 0.2, in units of the changes' own spread",
    )
    choose: Literal["best", "last"] = setting(
        "Adapter that the verdict is about: the one with the largest studentised ddI, for which "
        "the tests pay, or the last one.",
        "best",
        group="Statistics",
    )
    primary: str | None = setting(
        "Group of pairs that the question is about.",
        None,
        group="Statistics",
        shown="literary, or the first where none is called so",
    )
    control: str | None = setting(
        "Group of pairs that it is compared with.",
        None,
        group="Statistics",
        shown="factual, or none where none is called so",
    )

    def __post_init__(self) -> None:
        """Refuse values out of range."""
        if self.cutoff is not None:
            read_cutoff(self.cutoff)
        if self.margin is not None:
            require(0 < self.margin < math.inf, "margin to be positive and finite", self.margin)
        if self.primary is not None:
            require(self.primary != self.control, "primary and control to differ", self.primary)
