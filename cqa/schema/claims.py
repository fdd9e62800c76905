"""Rows and results of the studies of the paper's other claims: rows.jsonl and study.json."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from cqa.schema.meta import ScoredModel
from cqa.schema.record import Record
from cqa.schema.result import Interval
from cqa.schema.verdict import Mark

# What a number is: of the claim, of its null control, of the one minus the other, of an adapter
# minus the base, or none of them (a share, a rank).
Part = Literal["effect", "null", "excess", "change", "description"]


@dataclass(frozen=True, slots=True, kw_only=True)
class StudyRow(Record):
    """What all studies' rows begin with: one item under one model."""

    id: str
    group: str
    source_id: str | None
    task_key: str  # digest of all that the input says of the item
    model_key: str
    adapter: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Effect(Record):
    """A mean over items under one model, or of an adapter minus the base."""

    name: str
    label: str  # in words, with its unit
    part: Part
    adapter: str | None
    group: str | None  # None is all items
    value: float | None
    ci95: Interval | None  # simultaneous over the models of one test
    p: float | None  # one-sided, in the direction of the claim, corrected for all models
    p_against: float | None  # in the other direction
    n: int
    n_sources: int | None
    untested: str | None = None  # why there is no p where one was sought


@dataclass(frozen=True, slots=True, kw_only=True)
class StudyFinding(Record):
    """Whether a claim is shown of one model, against its null control."""

    name: str
    adapter: str | None
    mark: Mark
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class StudyModels(Record):
    """asked.json: whom a folder's study was ever asked, whether or not it came to a result."""

    study: str
    models: tuple[ScoredModel, ...]  # the base first


@dataclass(frozen=True, slots=True, kw_only=True)
class StudyResult(Record):
    """study.json, but for the settings."""

    study: str
    claim: str
    null_control: str
    caution: str  # what the numbers cannot show
    n_items: int
    n_tokens: int  # fed for one model
    effects: tuple[Effect, ...]
    findings: tuple[StudyFinding, ...]
    notes: tuple[str, ...]
    # Names of the measures in each panel of the figure; none: changes in one, the rest in another.
    panels: tuple[tuple[str, ...], ...] = ()
    models: tuple[ScoredModel, ...] = ()
    versions: dict[str, str] | None = None
    settings: dict[str, Any] | None = None
