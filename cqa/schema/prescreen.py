"""prescreen.json, and the lines of prescreen.jsonl."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from cqa.schema.written import Result, merged, stored_as

PointClass = Literal["wrong", "flat", "internalised"]


@dataclass(frozen=True, slots=True)
class Point(Result):
    """A decision point under the base."""

    id: str
    group: str
    class_: PointClass = field(metadata=stored_as("class"))
    class_per_byte: PointClass
    value_nats: float  # KL(expert || p)
    p_right: float
    p_best_wrong: float
    h_cand_nats: float  # entropy of p
    n_options: int
    p_right_per: dict[str, float]  # by what log-probabilities are divided by


@dataclass(frozen=True, slots=True)
class RankedPoint(Result):
    """A line of prescreen.jsonl."""

    rank: int  # from 1, the most valuable first
    point: Point = field(metadata=merged())


@dataclass(frozen=True, slots=True)
class PrescreenSummary(Result):
    """prescreen.json, but for the settings."""

    per: str
    high: float
    n: int
    classes: dict[PointClass, int]
    groups: dict[str, dict[PointClass, int]]
    mean_value_nats: float
    budget: int | None
    selected: tuple[str, ...]  # ids, the most valuable first
    value_share_selected: float | None  # None where nothing is selected or nothing of value
    most_valuable: tuple[RankedPoint, ...]
    n_other_class_per_byte: int
    max_positions: int
    too_long: dict[str, str]  # group by id of the points that are left out
