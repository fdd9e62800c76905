"""meta.json: what made the rows of a folder of scores."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Literal

from cqa.schema.record import Record
from cqa.schema.written import stored_as

SAME_IN_A_FAMILY = (  # all but the adapter that decides a score's digits
    "model", "tokenizer", "template", "boundary", "null_ids", "null2_ids", "null2_digest",
    "score_eos", "code", "engine", "device", "dtype", "backend",
)  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoredModel(Record):
    """A model, and everything but it that decides a score's digits; `model_key` stands for all."""

    model_key: str
    adapter: str | None  # its name in the rows; None is the base
    tokenizer: str  # digests, as are code, model and adapter_digest
    template: str | None
    boundary: str
    null_ids: tuple[int, ...]
    null2_ids: tuple[int, ...] | None  # None with --nulls 1, or with contexts of other items
    null2_digest: str | None = None  # of those contexts
    score_eos: bool
    code: str
    model: str
    device: str
    dtype: str
    backend: str  # what computes, with its version where it is not this package
    engine: str = "cqa"  # our decoder
    batch_invariant: bool = True  # the same to the last bit whatever shares a pass
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

    def differs_from(self, other: ScoredModel) -> tuple[str, ...]:
        """Name what of the two is not the same, so that their scores do not compare."""
        return tuple(
            name for name in SAME_IN_A_FAMILY if getattr(self, name) != getattr(other, name)
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Unscored(Record):
    """An item that an engine could not score under the base or an adapter."""

    group: str
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Meta(Record):
    """The settings, the items and the models of the command that wrote last."""

    settings: dict[str, Any]
    device: str
    n_threads: int
    versions: dict[str, str]
    digest: str  # of settings of the statistics, items and models; in summary.json too
    given_digest: str  # of all items, in their order, those left out too; as a plan has it
    items_digest: str  # of the items that are scored, in any order
    item_lines: tuple[tuple[int, int], ...]  # first and last, from 1: which ones of items.jsonl
    n_options: int
    n_boundary_merges: int
    n_contexts_ending_in_space: int  # items; as is the next
    n_options_lacking_space: int
    max_positions: int
    too_long: dict[str, str]  # id: group of the items that are left out
    unscored: dict[str, Unscored]  # by id; they are not among the items that are scored
    plan: dict[str, Any] | None  # as it stood in its file, with that file's digest
    planned_first: bool  # whether the plan was there before any row was
    models: tuple[ScoredModel, ...]  # the base first
    earlier_models: tuple[dict[str, Any], ...]  # of other rows in the folder, as they stood
    n_rejected: int = 0  # lines left out because something is wrong with them
    conversion: dict[str, Any] | None = None  # what the base was converted from, if it was
    capabilities: str | None = None  # digest of capabilities.json, where a server scored

    def problem(self) -> str | None:
        """Say what whoever reads the rows would stumble over."""
        n_base = sum(model.adapter is None for model in self.models)
        if n_base != 1 or self.models[0].adapter is not None:
            return "expected the base first among the models, and once"
        ends = [end for pair in self.item_lines for end in pair]
        if ends != sorted(ends) or (ends and ends[0] < 1):
            return "expected `item_lines` to rise from 1"
        return None

    def lines(self) -> Iterator[int]:
        """Yield the number, from 1, of every line of items.jsonl whose item is scored."""
        for first, last in self.item_lines:
            yield from range(first, last + 1)


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoreSettings(Record):
    """What a report needs of the settings in meta.json."""

    model: str
    run: tuple[str, ...] = ()
    adapter: tuple[str, ...] = ()
    score_eos: bool = field(metadata=stored_as("score-eos"), default=False)
    cutoff: str | None = None
    margin: float | None = None
    choose: Literal["best", "last"] = "best"
    primary: str | None = None
    control: str | None = None
    null2: str = "newline"


@dataclass(frozen=True, slots=True, kw_only=True)
class AnyModel(Record):
    """What a model in the meta.json of any version has."""

    model_key: str
    adapter: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoredWith(Record):
    """What of a model in the meta.json of any version a folder of scores has one of."""

    model: str | None = None
    tokenizer: str | None = None
    template: str | None = None
    engine: str = "cqa"


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
