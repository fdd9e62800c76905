"""The folder of a training run: what its files are called, and what others read of them.

run.json            settings, versions, identities          log.jsonl   a line per event
init, epoch-NN      adapters                                state.safetensors   to resume from
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from cqa.config import MOST_EPOCHS
from cqa.data.jsonl import read_jsonl
from cqa.errors import DataError
from cqa.files import read_json
from cqa.model.adapter_files import is_adapter
from cqa.schema.record import Record
from cqa.schema.run import RunRecord

RUN, LOG, STATE, INIT = "run.json", "log.jsonl", "state.safetensors", "init"
_EPOCH = re.compile(r"epoch-([0-9]+)")


def epoch_name(epoch: int) -> str:
    """Name the folder of an epoch's adapter."""
    return f"epoch-{epoch:02d}"


def epoch_of(name: str) -> int | None:
    """Return the epoch whose adapter has a name; None if it is none of a run's."""
    match = _EPOCH.fullmatch(name)
    return int(match[1]) if match else None


def epoch_folders(run: Path) -> dict[int, list[Path]]:
    """Return the adapter folders by epoch, in order; of two of one epoch none is the right one."""
    held: dict[int, list[Path]] = {}
    for path in sorted(run.iterdir()) if run.is_dir() else ():
        epoch = epoch_of(path.name)
        if epoch is not None:
            held.setdefault(epoch, []).append(path)
    return dict(sorted(held.items()))


def missing_epochs(run: Path, epochs: Iterable[int]) -> list[int]:
    """Return those of some epochs that have no adapter in the folder."""
    held = epoch_folders(run)
    return [epoch for epoch in epochs if not any(map(is_adapter, held.get(epoch, ())))]


def read_run(run: Path) -> RunRecord:
    """Read run.json.

    Raises:
        DataError: It is missing or damaged.
    """
    path = run / RUN
    return RunRecord.from_json(read_json(path), str(path))


def planned_epochs(run: Path) -> range:
    """Return the epochs that a run is to have; none where it does not say.

    Raises:
        DataError: run.json is damaged.
    """
    path = run / RUN
    if not path.is_file():
        return range(0)
    settings = _Plan.from_json(read_json(path), str(path)).settings
    total = settings.epochs if settings else None
    if total is not None and not 0 <= total <= MOST_EPOCHS:
        raise DataError(f"expected up to {MOST_EPOCHS:,} epochs, got {total}", where=str(path))
    return range(1, (total or 0) + 1)


@dataclass(frozen=True, slots=True)
class Losses:
    """Mean losses by epoch, nats a token."""

    training: dict[int, float]
    held_out: dict[int, float]


def read_losses(run: Path) -> Losses:
    """Read the losses of log.jsonl.

    Raises:
        DataError: It is missing or damaged.
    """
    steps: dict[int, list[float]] = {}
    held_out: dict[int, float] = {}
    for where, line in read_jsonl(run / LOG):
        kind = _Line.from_json(line, where).event
        if kind == "step":
            step = _StepLoss.from_json(line, where)
            steps.setdefault(step.epoch, []).append(step.loss_nats)
        elif kind == "eval":
            found = _EvalLoss.from_json(line, where)
            held_out[found.epoch] = found.eval_loss_nats
    means = {epoch: sum(values) / len(values) for epoch, values in steps.items()}
    return Losses(means, held_out)


@dataclass(frozen=True, slots=True)
class _Settings(Record):
    epochs: int | None


@dataclass(frozen=True, slots=True)
class _Plan(Record):
    settings: _Settings | None


@dataclass(frozen=True, slots=True)
class _Line(Record):
    event: str


@dataclass(frozen=True, slots=True)
class _StepLoss(Record):
    epoch: int
    loss_nats: float


@dataclass(frozen=True, slots=True)
class _EvalLoss(Record):
    epoch: int
    eval_loss_nats: float
