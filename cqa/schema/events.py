"""What train, score, scale and bench say while they run; those of training are lines of log.jsonl.

An event of training is logged if it comes from a step or an epoch: `Step`, `Eval`, `Dev`, `Memory`,
and a `Note` that names its step.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from cqa.schema.record import Record


@dataclass(frozen=True, slots=True, kw_only=True)
class Note(Record):
    """What the user should know and need not mend."""

    event: Literal["note"] = "note"
    step: int | None = None
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainStart(Record):
    """A training run begins, or goes on after `step`."""

    event: Literal["start"] = "start"
    step: int
    total_steps: int
    steps_per_epoch: int
    n_train: int
    n_validation: int
    n_parameters: int
    device: str
    dtype: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Step(Record):
    """One optimizer step."""

    event: Literal["step"] = "step"
    step: int
    epoch: int
    loss_nats: float  # mean over the labels of the global batch
    lr: float
    grad_norm: float
    sample_ids: tuple[str, ...]
    n_tokens: int  # all that were fed, labelled or not
    n_labels: int
    step_s: float
    tokens_per_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Eval(Record):
    """The loss on held-out samples after an epoch: a diagnostic, selecting nothing.

    Epoch 0 is before the first step: of the base, or of the adapter that the run starts from.
    """

    event: Literal["eval"] = "eval"
    step: int  # the last before it
    epoch: int
    eval_loss_nats: float
    n_labels: int
    eval_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Dev(Record):
    """The task's own metric on one group of items after an epoch: a diagnostic too."""

    event: Literal["dev"] = "dev"
    step: int | None = None  # the last before it, which the loop fills in
    epoch: int
    group: str
    n: int
    mean_delta_i_base_nats: float
    mean_delta_i_nats: float
    mean_ddi_nats: float
    ci95_nats: tuple[float, float] | None
    d_z: float | None
    dev_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Memory(Record):
    """Memory ran out; passes are smaller from here."""

    event: Literal["memory"] = "memory"
    step: int
    pass_tokens: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Finished(Record):
    """The run was finished before; nothing is done."""

    event: Literal["finished"] = "finished"
    step: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ScaleRun(Record):
    """A training run of a scale study begins, or was done before."""

    event: Literal["run"] = "run"
    name: str
    k: int  # from 1
    n_runs: int
    n_steps: int
    done: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class ScaleWait(Record):
    """All runs of a scale study are done but those that other processes do."""

    event: Literal["wait"] = "wait"
    names: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoreStart(Record):
    """Scoring begins."""

    event: Literal["start"] = "start"
    n_items: int
    n_models: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelStart(Record):
    """The base (None) or an adapter is scored from here."""

    event: Literal["model"] = "model"
    adapter: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class RowsWritten(Record):
    """The rows of one pass are on disk."""

    event: Literal["rows"] = "rows"
    n: int
    n_tokens: int  # fed in the pass


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelScored(Record):
    """All items are scored under the base (None) or an adapter."""

    event: Literal["scored"] = "scored"
    adapter: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class BenchPart(Record):
    """A part of a benchmark begins."""

    event: Literal["part"] = "part"
    name: str


@dataclass(frozen=True, slots=True, kw_only=True)
class BenchResult(Record):
    """One line was measured, or could not be."""

    event: Literal["result"] = "result"
    level: str
    part: str
    name: str
    unmeasured: str | None = None  # why it was not, if so


LogLine = Step | Eval | Dev | Memory | Note
TrainEvent = TrainStart | Finished | LogLine
ScaleEvent = ScaleRun | ScaleWait | TrainEvent
ScoreEvent = ScoreStart | ModelStart | RowsWritten | ModelScored | Note
BenchEvent = BenchPart | BenchResult
