"""The runs of a scale study as tasks of a Ray cluster's actors, and their scores as the last task.

The folder of the study has to be seen by all machines. An actor claims a run as any process of the
study does, so others may share it; the run of an actor that is lost goes on from its last state.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

from cqa.interrupt import Interrupt
from cqa.model.checkpoint import locate
from cqa.model.load import BaseModel, open_model
from cqa.schema.comparison import Comparison
from cqa.schema.events import ScaleEvent, ScaleRun, ScoreEvent
from cqa.score.ray_cluster import Actors, cluster
from cqa.study.config import ScaleConfig
from cqa.study.scale_runs import Cell, steps_of, train_all
from cqa.study.scale_scores import score_runs
from cqa.train.config import TrainConfig

Scored = Callable[[], dict[Cell, dict[str, Comparison]]]  # by run and group
SCORES = "scores"  # the last task


@dataclass(frozen=True, slots=True)
class Runs:
    """The runs of a study, and the columns that their adapters need; what actors do."""

    config: ScaleConfig
    settings: Mapping[Cell, TrainConfig]
    columns: dict[str, int]

    def load(self) -> BaseModel:
        """Return the base."""
        config = self.config
        folder = locate(config.model)
        return open_model(folder, config.device, config.dtype, rank_columns=self.columns)

    def do(
        self, base: BaseModel | None, task: Cell | str
    ) -> dict[Cell, dict[str, Comparison]] | None:
        """Train a run, unless it is trained already; or score all of them."""
        assert base is not None
        if isinstance(task, Cell):
            train_all(self.config, {task: self.settings[task]}, base, lambda _: None)
            return None
        return score_runs(self.config, self.settings, base, lambda _: None)


@contextmanager
def done_on_ray(
    config: ScaleConfig,
    runs: Runs,
    on_train: Callable[[ScaleEvent], None],
    _: Callable[[ScoreEvent], None],
) -> Iterator[Scored]:
    """Have every run trained on `config.ray`; yield what has them scored there.

    Raises:
        CqaError: Anything that the user can mend; see cqa.errors.
    """
    numbers = {cell: k for k, cell in enumerate(runs.settings, start=1)}

    def begun(cell: Cell) -> None:
        steps = steps_of(runs.config, cell.size, cell.scored_epoch)
        n_runs, name = len(numbers), cell.name
        on_train(ScaleRun(name=name, k=numbers[cell], n_runs=n_runs, n_steps=steps, done=False))

    with Interrupt() as interrupt, cluster(config) as ray:
        tasks = {cell: f"run {cell.name}" for cell in runs.settings}
        actors = Actors(ray, config, runs, len(tasks))
        actors.do_all(tasks, interrupt, on_begin=begun)

        def scored() -> dict[Cell, dict[str, Comparison]]:
            last = {SCORES: "the scores of all runs"}
            found: dict[Cell, dict[str, Comparison]]
            found = actors.do_all(last, interrupt)[SCORES]
            return found

        yield scored
