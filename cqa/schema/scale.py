"""scale.json, and the lines of runs.csv and curve.csv."""

from __future__ import annotations

from dataclasses import dataclass

from cqa.schema.written import Result


@dataclass(frozen=True, slots=True)
class RunResult(Result):
    """One group of items under the adapter of one run, in one arm."""

    arm: str
    size: int
    seed: int
    group: str
    run: str
    epochs: int
    scored_epoch: int
    steps: int  # up to the scored epoch
    n_items: int
    mean_delta_i_base_nats: float | None
    mean_delta_i_nats: float | None
    mean_ddi_nats: float
    d_z: float | None
    wilcoxon_p: float


@dataclass(frozen=True, slots=True)
class CurvePoint(Result):
    """Means over the seeds of one size, with the t interval."""

    arm: str
    size: int
    group: str
    n_seeds: int
    steps: int
    n_items: int
    mean_ddi_nats: float
    ci95_low_nats: float | None  # None with one seed
    ci95_high_nats: float | None
    mean_d_z: float | None


@dataclass(frozen=True, slots=True)
class Overlong(Result):
    """What was not taken as it stands in the files."""

    policy: str
    samples: tuple[str, ...]  # ids, left out or cut
    items: dict[str, str]  # group by id, left out
    max_positions: int


@dataclass(frozen=True, slots=True)
class ScaleResult(Result):
    """scale.json, but for the settings."""

    unit: str
    n_train: int
    runs: tuple[RunResult, ...]
    curve: tuple[CurvePoint, ...]
    too_long: Overlong
