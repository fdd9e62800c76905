"""Settings of the studies; nothing heavy is imported, so that `--help` stays instant."""

from __future__ import annotations

from dataclasses import MISSING, dataclass
from pathlib import Path
from typing import Literal

from cqa.config import require, same_setting, setting
from cqa.data.tables import parse_columns
from cqa.score.config import ScoreConfig, require_ray
from cqa.train.config import TrainConfig


@dataclass(frozen=True, kw_only=True)
class CallbackTrainConfig(TrainConfig):
    """A training run in one process or several, with a metric of the task, and TensorBoard."""

    dev: Path | None = setting(
        "Pairs whose mean ddI is logged after every epoch; selects nothing.",
        None,
        group="Model and data",
        shown="none",
    )
    tensorboard: bool = setting(
        "Write loss, learning rate, norm, eval_loss and the metric of --dev to OUT/tensorboard.",
        False,
        group="Output",
    )
    shard_base: bool = setting(
        "Spread the weights of the base over the processes that torchrun has started: for a base "
        "larger than a card. Each gathers a layer when it needs it.",
        False,
        group="Memory and device",
    )

    def __post_init__(self) -> None:
        """Refuse values out of range."""
        super().__post_init__()
        require(
            not (self.shard_base and self.cuda_graphs), "shard-base without cuda-graphs", "both"
        )

    @property
    def with_columns(self) -> tuple[Path, ...]:
        """The files that are read with `columns`."""
        files = super().with_columns
        return files if self.dev is None else (*files, self.dev)


MOST_SEEDS = 1000
MOST_SWEPT = 1000  # adapters; every simulated study draws all of them
MOST_NATS = 1_000_000  # of an effect; squares of its ratio to a standard deviation stay finite
ARMS = ("epoch", "step")


@dataclass(frozen=True, kw_only=True)
class ScaleConfig(TrainConfig):
    """How the effect grows with the number of training samples (§4.4)."""

    validation: str = same_setting(
        TrainConfig, "validation", more="The same for all sizes.", default="0"
    )
    too_long: Literal["refuse", "drop", "truncate"] = same_setting(
        TrainConfig,
        "too_long",
        more="Pairs over the model's positions are left out by drop, else refused; never cut.",
    )
    out: Path = setting("Folder for the runs, their scores and the curve.", group="Output")
    pairs: tuple[Path, ...] = same_setting(ScoreConfig, "pairs", default=MISSING, shown=None)
    sizes: tuple[int, ...] = setting(
        "Sizes of the nested subsets of --data.", (10, 30, 60, 100), group="Study"
    )
    seeds: int = setting(
        "How many seeds from --seed on; each draws its own subsets.", 5, group="Study"
    )
    arms: tuple[str, ...] = setting(
        "epoch: all sizes get --epochs; step: smaller ones as many steps as the largest.",
        ARMS,
        group="Study",
    )
    ray: str | None = same_setting(ScoreConfig, "ray")
    ray_actors: int = same_setting(ScoreConfig, "ray_actors")
    scored_epoch: int | None = setting(
        "Epoch of the largest subset that is scored, and the matching one of the others.",
        None,
        group="Study",
        shown="the last",
    )

    def __post_init__(self) -> None:
        """Refuse values out of range."""
        super().__post_init__()
        require(bool(self.pairs), "--pairs", "none")
        require_ray(self.ray, self.ray_actors)
        sizes = self.sizes
        ascending = bool(sizes) and sizes[0] >= 1 and list(sizes) == sorted(set(sizes))
        require(ascending, "sizes from 1, each larger than the one before", sizes)
        require(1 <= self.seeds <= MOST_SEEDS, f"seeds from 1 to {MOST_SEEDS:,}", self.seeds)
        last = self.seed + self.seeds - 1
        require(last < 2**64, "every seed below 2^64", last)
        known = bool(self.arms) and set(self.arms) <= set(ARMS)
        require(known, f"arms among {', '.join(ARMS)}", ",".join(self.arms))
        if self.scored_epoch is not None:
            known = 1 <= self.scored_epoch <= self.epochs
            require(known, f"scored-epoch from 1 to {self.epochs}", self.scored_epoch)

    @property
    def with_columns(self) -> tuple[Path, ...]:
        """The files that are read with `columns`."""
        return (*super().with_columns, *self.pairs)


@dataclass(frozen=True, kw_only=True)
class PowerConfig:
    """What a planned study is assumed to look like; a pilot fills what is left open."""

    effect: float | None = setting(
        "True mean ddI of the primary group, nats.", None, group="Study",
        shown="the pilot's, which is too large on average",
    )  # fmt: skip
    sd: float | None = setting(
        "Standard deviation of the items' ddI, nats.", None, group="Study", shown="the pilot's"
    )
    icc: float | None = setting(
        "Share of that variance that items of one source have in common, 0 to 1.",
        None,
        group="Study",
        shown="the pilot's, else 0",
    )
    items_per_source: int | None = setting(
        "Items of each source.", None, group="Study", shown="the pilot's mean, else 1"
    )
    epochs_swept: int | None = setting(
        "Adapters that are scored and one of which is chosen, for which the tests pay.",
        None,
        group="Study",
        shown="the pilot's, else 1",
    )

    def __post_init__(self) -> None:
        """Refuse values out of range."""
        if self.effect is not None:
            expected = f"effect above 0, up to {MOST_NATS:,} nats"
            require(0 < self.effect <= MOST_NATS, expected, self.effect)
        if self.sd is not None:
            expected = f"sd from {1 / MOST_NATS} to {MOST_NATS:,} nats"
            require(1 / MOST_NATS <= self.sd <= MOST_NATS, expected, self.sd)
        if self.icc is not None:
            require(0 <= self.icc <= 1, "icc from 0 to 1", self.icc)
        value = self.items_per_source
        require(value is None or value >= 1, "items-per-source of at least 1", value)
        value = self.epochs_swept
        expected = f"epochs-swept from 1 to {MOST_SWEPT:,}"
        require(value is None or 1 <= value <= MOST_SWEPT, expected, value)


@dataclass(frozen=True, kw_only=True)
class ValidateConfig:
    """What data files are checked for."""

    model: str | None = setting(
        "Base model, a folder or a hub id: every text is encoded as train and score would.",
        None,
        group="Model and data",
        path_unless=(),
        shown="no text is encoded",
    )
    columns: tuple[str, ...] = same_setting(ScoreConfig, "columns")
    template: str = same_setting(ScoreConfig, "template")
    allow_special: bool = same_setting(ScoreConfig, "allow_special")

    def __post_init__(self) -> None:
        """Refuse values that cannot be read."""
        parse_columns(self.columns)
