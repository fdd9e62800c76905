"""What the study of probes writes: a row for each item, and a table of layers in study.json."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from cqa.schema.claims import StudyResult, StudyRow
from cqa.schema.record import Record
from cqa.schema.result import Interval

Position = Literal["mean", "last"]
POSITIONS: tuple[Position, Position] = ("mean", "last")


@dataclass(frozen=True, slots=True, kw_only=True)
class ProbeRow(StudyRow):
    """One item under one model; pairs of numbers are of the good and the bad option."""

    logp_nats: tuple[float, float]  # S(x|y)
    n_tokens: tuple[int, int]
    n_bytes: tuple[int, int]
    first_tokens: tuple[int, int]  # ids
    states_sha256: str  # of the item's file of states


@dataclass(frozen=True, slots=True, kw_only=True)
class ProbedLayer(Record):
    """How well one layer's states tell the good options, out of fold."""

    adapter: str | None
    layer: int  # 0 is the embeddings
    position: Position  # of the option's tokens
    auc: float
    null_mean: float  # of the AUC with labels swapped
    null95: Interval  # where 95 % of those lie
    control_auc: float  # of labels that are random for each first token
    change: float | None  # of the AUC from the base, both in one scale; None of the base itself
    change_ci95: Interval | None  # simultaneous over layers and adapters, from exchanged states


@dataclass(frozen=True, slots=True, kw_only=True)
class ProbeResult(StudyResult):
    """study.json with its layers."""

    layers: tuple[ProbedLayer, ...] = ()
