"""run.json: what a training run was asked for, what that came to, and what it is made of."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from cqa.schema.record import Record
from cqa.schema.written import stored_as


@dataclass(frozen=True, slots=True, kw_only=True)
class StartedFrom(Record):
    """The adapter that a run started from."""

    adapter_digest: str
    origin: dict[str, str | None] | None  # what it says of its own training


@dataclass(frozen=True, slots=True, kw_only=True)
class RunRecord(Record):
    """A training run."""

    settings: dict[str, Any]
    format: str  # of the samples; several have a comma between them
    n_train: int
    n_validation: int
    validation_ids: tuple[str, ...]
    too_long_ids: tuple[str, ...]
    steps_per_epoch: int
    total_steps: int
    n_parameters: int
    scaling: float
    dtype: str
    # what it is made of
    model_digest: str
    tokenizer_digest: str
    template_digest: str | None  # None is plain text
    data_digest: str
    # what it is made with: it may change on resume, and the last digits with it
    backend: str
    device: str
    n_threads: int
    n_ranks: int = 1
    versions: dict[str, str]
    code_digest: str
    conversion: dict[str, Any] | None = None  # what the base was converted from, if it was
    from_: StartedFrom | None = field(metadata=stored_as("from"), default=None)
    resumed: tuple[dict[str, Any], ...] = ()  # what it was made with from some step on
