"""Scoring on a Ray cluster: shards are tasks of actors that hold the base; then they are merged.

An actor runs what `--shard` runs, in a folder beside the output, which all machines have to see.
One that is lost is replaced, and its shard goes on from the rows that it left.
"""

from __future__ import annotations

import importlib
import os
from collections import Counter, deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from cqa.config import command_line, given_settings, input_paths
from cqa.errors import ConfigError, CqaError, ResourceError
from cqa.files import discard, inside
from cqa.interrupt import Interrupt, continued_by
from cqa.model.adapter import read_spec
from cqa.model.checkpoint import locate
from cqa.model.load import BaseModel, open_model
from cqa.model.lora import widest
from cqa.output_folder import check_output
from cqa.schema.events import RowsWritten, ScoreEvent, ScoreStart
from cqa.score.adapters import find_adapters
from cqa.score.config import ScoreConfig
from cqa.score.engines import engine_of
from cqa.score.merge import merge
from cqa.score.run import ScoreResult, checked_items, score
from cqa.score_folder import META

SHARDS_AN_ACTOR = 4  # so that little is waited for at the end, and little is lost with an actor
MOST_LOSSES = 3  # of actors at one shard, after which the shard is at fault
_LOOK_S = 1.0  # between two looks at signals


@dataclass(frozen=True, slots=True)
class _Done:
    """What an actor says of a shard: rows and tokens, or the error that ended it."""

    n_rows: int = 0
    n_tokens: int = 0
    error: tuple[int, str, str | None, str | None] | None = None  # exit code, message, where, hint


class ShardScorer:
    """What an actor is: the base, loaded once, and one shard after the other."""

    def __init__(self, config: ScoreConfig, folder: str) -> None:
        os.chdir(folder)  # paths are as the user wrote them
        self._config = config
        self._base: BaseModel | None = None

    def score(self, shard: str, out: str) -> _Done:
        """Score one shard into a folder."""
        n_rows = n_tokens = 0

        def count(event: ScoreEvent) -> None:
            nonlocal n_rows, n_tokens
            if isinstance(event, RowsWritten):
                n_rows, n_tokens = n_rows + event.n, n_tokens + event.n_tokens

        try:
            if self._base is None and self._config.engine == "cqa":
                self._base = _loaded(self._config)
            config = replace(self._config, shard=shard, out=Path(out))
            score(config, base=self._base, on_event=count)
        except CqaError as error:
            return _Done(error=(error.exit_code, error.message, error.where, error.hint))
        return _Done(n_rows, n_tokens)


def _loaded(config: ScoreConfig) -> BaseModel:
    """Load the base, with room for the widest of the adapters."""
    columns = widest([read_spec(adapter.folder) for adapter in find_adapters(config)])
    return open_model(locate(config.model), config.device, config.dtype, rank_columns=columns)


def score_on_ray(
    config: ScoreConfig, *, on_event: Callable[[ScoreEvent], None] = lambda _: None
) -> ScoreResult:
    """Score items on `config.ray`; the folder has the bytes of one process's.

    Args:
        config: The settings; `ray` is `local`, `auto` or the address of a cluster.
        on_event: Called with what happens; with rows as shards are done.

    Raises:
        CqaError: Anything that the user can mend; see cqa.errors.
    """
    plain = replace(config, ray=None, ray_actors=ScoreConfig.ray_actors)
    check_output(config.out, "scores", input_paths(config))
    if inside(config.out, META).exists():
        raise ConfigError(
            "expected a new folder with --ray, got one with scores", where=str(config.out),
            hint="without --ray the same command adds to it, and computes nothing again",
        )  # fmt: skip
    folder, adapters = locate(config.model), find_adapters(config)
    _, n_items = checked_items(plain, folder, engine_of(plain, folder, adapters))
    shards = config.out.with_name(f"{config.out.name}.shards")
    count = SHARDS_AN_ACTOR * config.ray_actors
    folders = {f"{k}/{count}": shards / str(k) for k in range(1, count + 1)}
    again = command_line(ScoreConfig, "score", given_settings(config))
    with continued_by(again), Interrupt() as interrupt, _cluster(config) as ray:
        on_event(ScoreStart(n_items=n_items, n_models=1 + len(adapters)))
        _score_all(ray, plain, config.ray_actors, folders, interrupt, on_event)
    merged = merge(config.out, list(folders.values()))
    discard(shards)
    return merged.scores


@contextmanager
def _cluster(config: ScoreConfig) -> Iterator[Any]:
    try:
        ray: Any = importlib.import_module("ray")
    except ImportError:
        raise ConfigError(
            "expected Ray for --ray, got none", hint="pip install 'cqa-fast[ray]'"
        ) from None
    where: dict[str, Any] = {"address": config.ray}
    if config.ray == "local":
        where = {"address": "local", "num_cpus": config.ray_actors, "include_dashboard": False}
    try:
        ray.init(**where, log_to_driver=False, logging_level="error")
    except (ConnectionError, ValueError, RuntimeError) as error:
        raise ResourceError(
            f"expected a Ray cluster at {config.ray}, got: {error}", hint="--ray local starts one"
        ) from None
    try:
        kind = "GPU" if _on_cuda(config) else "CPU"
        held = int(ray.cluster_resources().get(kind, 0))
        if held < config.ray_actors:
            raise ResourceError(
                f"expected {config.ray_actors} {kind}s in the cluster, one for each actor, got "
                f"{held}", hint="--ray-actors",
            )  # fmt: skip
        yield ray
    finally:
        ray.shutdown()


def _on_cuda(config: ScoreConfig) -> bool:
    """Whether actors are to have a GPU each: this machine stands for the others."""
    return config.device != "cpu" and torch.cuda.is_available()


def _score_all(
    ray: Any,
    config: ScoreConfig,
    n_actors: int,
    folders: dict[str, Path],
    interrupt: Interrupt,
    on_event: Callable[[ScoreEvent], None],
) -> None:
    """Have every shard scored, each by whichever actor is free."""
    each = {"num_gpus": 1} if _on_cuda(config) else {"num_cpus": 1}
    actor = ray.remote(**each)(ShardScorer)
    waiting, lost = deque(folders), Counter[str]()
    running: dict[Any, tuple[str, Any]] = {}
    free = [actor.remote(config, str(Path.cwd())) for _ in range(n_actors)]
    n_done = 0
    while waiting or running:
        while waiting and free:
            shard, scorer = waiting.popleft(), free.pop()
            running[scorer.score.remote(shard, str(folders[shard]))] = shard, scorer
        ready, _ = ray.wait(list(running), timeout=_LOOK_S)
        for task in ready:
            shard, scorer = running.pop(task)
            try:
                done = ray.get(task)
            except ray.exceptions.RayActorError:
                lost[shard] += 1
                if lost[shard] >= MOST_LOSSES:
                    raise ResourceError(
                        f"expected shard {shard} to be scored, got {MOST_LOSSES} actors lost at it",
                        where=str(folders[shard]),
                        hint="see Ray's log for the reason; memory is a common one",
                    ) from None
                waiting.append(shard)
                scorer = actor.remote(config, str(Path.cwd()))
            else:
                if done.error is not None:
                    raise _told(*done.error)
                n_done += 1
                on_event(RowsWritten(n=done.n_rows, n_tokens=done.n_tokens))
            free.append(scorer)
        if interrupt.requested:
            interrupt.stop(f"stopped with {n_done} of {len(folders)} shards done")


def _told(exit_code: int, message: str, where: str | None, hint: str | None) -> CqaError:
    error = CqaError(message, where=where, hint=hint)
    error.exit_code = exit_code
    return error
