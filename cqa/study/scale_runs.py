"""The training runs of a scale study: which there are, and how processes share them."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from pathlib import Path

from cqa.data.jsonl import held_columns
from cqa.files import claimed, discard
from cqa.interrupt import Interrupt, Interrupted
from cqa.model.load import BaseModel
from cqa.run_folder import STATE, epoch_name
from cqa.schema.events import ScaleEvent, ScaleRun, ScaleWait, TrainEvent
from cqa.study.config import ScaleConfig
from cqa.train.checkpoint import check_same_model, open_run
from cqa.train.config import TrainConfig
from cqa.train.loop import train
from cqa.train.plan import make_plan

RUNS_FOLDER = "runs"
WAIT_S = 1.0  # between two looks at whether they are done


@dataclass(frozen=True, slots=True)
class Cell:
    """One training run: a subset, a seed and a schedule."""

    size: int
    seed: int
    epochs: int
    scored_epoch: int

    @property
    def name(self) -> str:
        """What its folder is called."""
        return f"n{self.size:03d}-seed{self.seed}-epochs{self.epochs}"


def train_all(
    config: ScaleConfig,
    settings: Mapping[Cell, TrainConfig],
    base: BaseModel,
    on_event: Callable[[ScaleEvent], None],
) -> None:
    """Train every run that is not trained, claimed one by one; wait for those of other processes.

    A run whose process has died is free to be claimed, and goes on from its last state.
    """
    waiting = list(enumerate(settings, start=1))
    told = False
    while waiting:
        elsewhere = []
        for k, cell in waiting:
            with claimed(claim_of(config, cell)) as ours:
                if not ours:
                    elsewhere.append((k, cell))
                    continue
                steps = steps_of(config, cell.size, cell.scored_epoch)
                done = _is_trained(settings[cell], cell, base)
                n_runs = len(settings)
                on_event(ScaleRun(name=cell.name, k=k, n_runs=n_runs, n_steps=steps, done=done))
                if not done:
                    _train(settings[cell], cell, base, on_event)
                discard(settings[cell].out / STATE)
        waiting = elsewhere
        if waiting and not told:
            told = True
            on_event(ScaleWait(names=tuple(cell.name for _, cell in waiting)))
        if waiting:
            _pause()


def claim_of(config: ScaleConfig, cell: Cell) -> Path:
    """Return the file whose lock a process has while it does a run."""
    return config.out / RUNS_FOLDER / f".{cell.name}.claim"


def _pause() -> None:
    """Wait a moment for other processes."""
    with Interrupt() as interrupt:
        time.sleep(WAIT_S)
        if interrupt.requested:
            interrupt.stop("stopped while waiting for runs of other processes")


def steps_of(config: ScaleConfig, size: int, epochs: int) -> int:
    """Return the optimizer steps of some epochs over a subset."""
    return math.ceil(size / config.global_batch_size) * epochs


def cells_of(config: ScaleConfig, arm: str) -> list[Cell]:
    """Return the runs of an arm; steps are matched to the nearest whole epoch."""
    scored = config.scored_epoch or config.epochs
    cells = []
    for size in config.sizes:
        longer = 1.0
        if arm == "step":
            longer = steps_of(config, config.sizes[-1], 1) / steps_of(config, size, 1)
        epochs, scored_epoch = (max(1, round(n * longer)) for n in (config.epochs, scored))
        cells += [
            Cell(size, seed, epochs, scored_epoch)
            for seed in range(config.seed, config.seed + config.seeds)
        ]
    return cells


def settings_of(config: ScaleConfig, cell: Cell, validation: str) -> TrainConfig:
    """Return the settings of a run."""
    own = {f.name: getattr(config, f.name) for f in fields(TrainConfig)}
    given = [] if config.validation_share is not None else [Path(config.validation)]
    changed = {
        # of a file that was given: subsets, and samples held out of them, have the keys already
        "columns": held_columns(given, config.columns),
        "data": (subset_of(config, cell.size, cell.seed),),
        "out": config.out / RUNS_FOLDER / cell.name,
        "epochs": cell.epochs,
        "seed": cell.seed,
        "validation": validation,
    }
    return TrainConfig(**{**own, **changed})


def adapter_of(settings: TrainConfig, cell: Cell) -> Path:
    """Return the folder of the adapter that is scored."""
    return settings.out / epoch_name(cell.scored_epoch)


def _is_trained(settings: TrainConfig, cell: Cell, base: BaseModel) -> bool:
    """Whether a run's adapter is there, made with the same settings, data and base."""
    if not adapter_of(settings, cell).is_dir():
        return False
    plan = make_plan(settings)
    open_run(plan, resume=True)
    check_same_model(plan, base.digest, base.decoder.dtype)
    return True


def _train(
    settings: TrainConfig, cell: Cell, base: BaseModel, on_event: Callable[[TrainEvent], None]
) -> None:
    try:
        train(settings, resume=True, base=base, only_epoch=cell.scored_epoch, on_event=on_event)
    except Interrupted as stop:
        raise Interrupted(stop.exit_code - 128, f"stopped in run {cell.name}") from None


def subset_of(config: ScaleConfig, size: int, seed: int) -> Path:
    """Return the file of a subset's samples."""
    return config.out / "data" / f"n{size:03d}-seed{seed}.jsonl"
