"""meta.json: what made the rows of a folder of scores."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from cqa.schema.record import Record


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoredModel(Record):
    """A model, and everything but it that decides a score's digits; `model_key` stands for all."""

    model_key: str
    adapter: str | None  # its name in the rows; None is the base
    tokenizer: str  # digests, as are code, model and adapter_digest
    template: str | None
    boundary: str
    null_ids: tuple[int, ...]
    null2_ids: tuple[int, ...] | None  # None with --nulls 1
    score_eos: bool
    code: str
    model: str
    device: str
    dtype: str
    backend: str
    adapter_digest: str | None
    adapter_origin: dict[str, str | None] | None  # None where the adapter does not say
    # of this run, when it has ended
    n_tokens: int | None = None
    seconds: float | None = None

    def to_json(self) -> dict[str, Any]:
        """Return the record as `json.dumps` takes it; the base has no origin to speak of."""
        held = Record.to_json(self)
        if self.adapter is None:
            del held["adapter_origin"]
        return held


@dataclass(frozen=True, slots=True, kw_only=True)
class Meta(Record):
    """The settings, the items and the models of the run that wrote last."""

    settings: dict[str, Any]
    device: str
    n_threads: int
    versions: dict[str, str]
    items_digest: str
    n_options: int
    n_boundary_merges: int
    n_contexts_ending_in_space: int  # items; as is the next
    n_options_lacking_space: int
    max_positions: int
    too_long: dict[str, str]  # id: group of the items that are left out
    plan: dict[str, Any] | None  # as it stood in its file, with that file's digest
    planned_first: bool  # whether the plan was there before any row was
    models: tuple[ScoredModel, ...]
    earlier_models: tuple[dict[str, Any], ...]  # of other rows in the folder, as they stood
    conversion: dict[str, Any] | None = None  # what the base was converted from, if it was


@dataclass(frozen=True, slots=True, kw_only=True)
class AnyModel(Record):
    """What a model in the meta.json of any version has."""

    model_key: str


@dataclass(frozen=True, slots=True, kw_only=True)
class KnownModels(Record):
    """The models that a folder's meta.json names."""

    models: tuple[dict[str, Any], ...] = ()
    earlier_models: tuple[dict[str, Any], ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class KnownPlan(Record):
    """What a folder's meta.json says of an analysis plan."""

    plan: dict[str, Any] | None = None
    planned_first: bool = False
