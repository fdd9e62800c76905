"""Scoring and prescreening on a Ray cluster: shards are tasks of actors, and then they are merged.

Items are read and checked once, here, while actors load the base. An actor then does what `--shard`
does, in a folder beside the output, which all machines have to see. The shard of one that is lost
goes on from the rows that it left.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

from cqa.config import command_line, given_settings, input_paths
from cqa.errors import ConfigError
from cqa.files import discard, discard_lock, inside, locked, refuse_held
from cqa.interrupt import Interrupt, continued_by, stopped_at_once
from cqa.model.checkpoint import locate
from cqa.model.load import BaseModel, open_model
from cqa.output_folder import Kind, check_output
from cqa.schema.events import Note, RowsWritten, ScoreEvent, ScoreStart
from cqa.schema.prescreen import PrescreenSummary
from cqa.score.adapters import columns_of, find_adapters
from cqa.score.checked import Checked
from cqa.score.config import PrescreenConfig, ScoreConfig
from cqa.score.engines import engine_of
from cqa.score.merge import Merged, merge
from cqa.score.prescreen import check_points, prescreen, scoring_of
from cqa.score.ray_cluster import Actors, Job, cluster
from cqa.score.run import ScoreResult, checked_items, score
from cqa.score_folder import META

SHARDS_AN_ACTOR = 4  # so that little is waited for at the end, and little is lost with an actor
ON_EVENT = Callable[[ScoreEvent], None]


@dataclass(frozen=True, slots=True)
class _Count:
    """What an actor says of a shard: rows and tokens."""

    n_rows: int
    n_tokens: int


@dataclass(slots=True)
class _Counter:
    """Counts rows and tokens of a shard as they are written."""

    n_rows: int = 0
    n_tokens: int = 0

    def __call__(self, event: ScoreEvent) -> None:
        if isinstance(event, RowsWritten):
            self.n_rows, self.n_tokens = self.n_rows + event.n, self.n_tokens + event.n_tokens

    @property
    def counted(self) -> _Count:
        return _Count(self.n_rows, self.n_tokens)


@dataclass(frozen=True, slots=True, eq=False)
class _Shard:
    """A task: a shard, its folder, and what the check has told of its items."""

    shard: str
    out: Path
    checked: Checked


@dataclass(frozen=True, slots=True)
class ShardsOfScores:
    """What actors do of a scoring run: a task is a shard."""

    config: ScoreConfig

    def load(self) -> BaseModel | None:
        """Return the base, with room for the widest of the adapters."""
        config = self.config
        if config.engine != "cqa":
            return None
        columns = columns_of(find_adapters(config))
        return open_model(locate(config.model), config.device, config.dtype, rank_columns=columns)

    def do(self, base: BaseModel | None, task: _Shard) -> _Count:
        """Score a shard into its folder."""
        config, count = replace(self.config, shard=task.shard, out=task.out), _Counter()
        score(config, base=base, checked=task.checked, on_event=count)
        return count.counted


@dataclass(frozen=True, slots=True)
class ShardsOfPoints:
    """What actors do of a prescreening; see `ShardsOfScores`."""

    config: PrescreenConfig

    def load(self) -> BaseModel | None:
        """Return the base."""
        return ShardsOfScores(scoring_of(self.config)).load()

    def do(self, base: BaseModel | None, task: _Shard) -> _Count:
        """Score a shard of the points into its folder."""
        config, count = replace(self.config, shard=task.shard, out=task.out), _Counter()
        prescreen(config, base=base, checked=task.checked, on_event=count)
        return count.counted


def score_on_ray(config: ScoreConfig, *, on_event: ON_EVENT = lambda _: None) -> ScoreResult:
    """Score items on `config.ray`; the folder has the bytes of one process's.

    Args:
        config: The settings; `ray` is `local`, `auto` or the address of a cluster.
        on_event: Called with what happens; with rows as shards are done.

    Raises:
        CqaError: Anything that the user can mend; see cqa.errors.
    """
    plain = replace(config, ray=None, ray_actors=ScoreConfig.ray_actors)
    again = command_line(ScoreConfig, "score", given_settings(config))
    with continued_by(again):
        return _merged(config, plain, ShardsOfScores(plain), "scores", on_event).scores


def prescreen_anywhere(
    config: PrescreenConfig, *, on_event: ON_EVENT = lambda _: None
) -> PrescreenSummary | None:
    """Rank decision points, scored in this process or where the settings say; see `prescreen`.

    Raises:
        CqaError: Anything that the user can mend; see cqa.errors.
    """
    if config.ray is None:
        return prescreen(config, on_event=on_event)
    plain = replace(config, ray=None, ray_actors=PrescreenConfig.ray_actors)
    check_points(plain)
    again = command_line(PrescreenConfig, "prescreen", given_settings(config))
    with continued_by(again):
        job = ShardsOfPoints(plain)
        return _merged(config, scoring_of(plain), job, "prescreen", on_event).points


def _merged(
    config: ScoreConfig | PrescreenConfig,
    scoring: ScoreConfig,
    job: Job,
    kind: Kind,
    on_event: ON_EVENT,
) -> Merged:
    """Have the shards of a job done, and merge them."""
    check_output(config.out, kind, input_paths(config))
    _refuse_done(config.out)
    shards = config.out.with_name(f"{config.out.name}.shards")
    refuse_held(shards)
    folder, adapters = locate(config.model), find_adapters(scoring)
    count = SHARDS_AN_ACTOR * config.ray_actors
    engine = engine_of(scoring, folder, adapters)

    def done(counted: _Count) -> None:
        on_event(RowsWritten(n=counted.n_rows, n_tokens=counted.n_tokens))

    with cluster(config) as ray:
        with stopped_at_once("stopped before anything was scored"):
            actors = Actors(ray, config, job, count)
            items = checked_items(scoring, folder, engine, n_shards=count)
        tasks = {
            _Shard(f"{k}/{count}", shards / str(k), part): f"shard {k}/{count}"
            for k, part in enumerate(items.dealt(), start=1)
        }
        with Interrupt() as interrupt, locked(shards):
            _refuse_done(config.out)  # by another one of these commands, meanwhile
            on_event(ScoreStart(n_items=items.part.n_items, n_models=1 + len(adapters)))
            for text in items.notes():
                on_event(Note(text=text))
            actors.do_all(tasks, interrupt, on_done=done)
            merged = merge(config.out, [task.out for task in tasks])
            for task in tasks:
                discard(task.out)
    discard_lock(shards)
    with suppress(OSError):  # something else is in it, and stays
        shards.rmdir()
    return merged


def _refuse_done(out: Path) -> None:
    """Refuse a folder that has scores already.

    Raises:
        ConfigError: It has.
    """
    if inside(out, META).exists():
        raise ConfigError(
            "expected a new folder with --ray, got one with scores", where=str(out),
            hint="without --ray the same command adds to it, and computes nothing again",
        )  # fmt: skip
