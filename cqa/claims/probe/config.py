"""Settings of the study of probes."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from cqa.claims.config import ItemsConfig
from cqa.config import require, same_setting, setting

FEWEST_SWAPS, MOST_SWAPS = 99, 100_000  # p of 0.01 and of 0.00001


@dataclass(frozen=True, kw_only=True)
class ProbeConfig(ItemsConfig):
    """Whether the states of a model tell the good option from the bad (section 6.4)."""

    pairs: tuple[Path, ...] = same_setting(
        ItemsConfig, "pairs", more="Each of two options; of four sources or more."
    )
    swaps: int = setting(
        "How often the labels are swapped at random and every probe is trained anew.", 199,
        group="Statistics",
    )  # fmt: skip

    def __post_init__(self) -> None:
        """Refuse values out of range."""
        super().__post_init__()
        expected = f"--swaps from {FEWEST_SWAPS} to {MOST_SWAPS:,}"
        require(FEWEST_SWAPS <= self.swaps <= MOST_SWAPS, expected, self.swaps)
