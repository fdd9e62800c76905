"""A Ray cluster: actors that hold the base, and do the tasks of a job one after the other.

An actor that is lost is replaced, and its task done again by whichever is free; what the lost one
has left of it on the common disk is for the task to go on from.
"""

from __future__ import annotations

import importlib
import logging
import os
import socket
from collections import Counter, deque
from collections.abc import Callable, Hashable, Iterator, Mapping
from concurrent.futures import Executor, ThreadPoolExecutor, wait
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch

from cqa.errors import ConfigError, CqaError, ResourceError
from cqa.interrupt import Interrupt, stopped_at_once
from cqa.model.load import BaseModel

MOST_LOSSES = 3  # of actors at one task, after which the task is at fault
_LOOK_S = 1.0  # between two looks at signals


class OnRay(Protocol):
    """Settings that name a cluster."""

    @property
    def ray(self) -> str | None: ...

    @property
    def ray_actors(self) -> int: ...

    @property
    def device(self) -> str: ...


class Job(Protocol):
    """What actors do; it is sent to each of them."""

    def load(self) -> BaseModel | None:
        """Return the base, which an actor loads before its first task."""

    def do(self, base: BaseModel | None, task: Any) -> Any:
        """Do a task."""


@dataclass(frozen=True, slots=True)
class _Done:
    """What an actor says of a task: what came of it, or the error that ended it."""

    value: Any = None
    error: tuple[int, str, str | None, str | None] | None = None  # exit code, message, where, hint


class Worker:
    """What an actor is: the base, loaded once, and one task after the other."""

    def __init__(self, job: Job, folder: str) -> None:
        self._job, self._folder, self._loaded = job, folder, False
        self._base: BaseModel | None = None

    def prepare(self) -> None:
        """Load the base before there is a task, the first of which tells what is wrong with it."""
        with suppress(CqaError):
            self._load()

    def do(self, task: Any) -> _Done:
        """Do a task."""
        try:
            self._load()
            return _Done(self._job.do(self._base, task))
        except CqaError as error:
            return _Done(error=(error.exit_code, error.message, error.where, error.hint))

    def _load(self) -> None:
        if not self._loaded:
            self._go_there()
            self._base, self._loaded = self._job.load(), True

    def _go_there(self) -> None:
        """Go to the folder in which paths are as the user wrote them."""
        try:
            os.chdir(self._folder)
        except OSError as error:
            raise ResourceError(
                "expected every machine of the cluster to see the folder of the command, "
                f"got on {socket.gethostname()}: {error.strerror}",
                where=self._folder, hint="give the command in a folder that all of them see",
            ) from None  # fmt: skip


@contextmanager
def cluster(config: OnRay) -> Iterator[Any]:
    """Join the cluster that the settings name, or start one here; yield Ray.

    Raises:
        ConfigError: Ray is not installed.
        ResourceError: There is no such cluster, or it is too small.
    """
    try:
        ray: Any = importlib.import_module("ray")
    except ImportError:
        raise ConfigError(
            "expected Ray for --ray, got none", hint="pip install 'cqa-fast[ray]'"
        ) from None
    with ThreadPoolExecutor(1) as thread:  # whose end would be that of the processes it begins
        try:
            _join(ray, config, thread)
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


def _join(ray: Any, config: OnRay, thread: Executor) -> None:
    """Join or start the cluster, in a thread: from the main one Ray would take SIGTERM."""
    where: dict[str, Any] = {"address": config.ray}
    if config.ray == "local":
        where = {"address": "local", "num_cpus": config.ray_actors, "include_dashboard": False}
    logging.getLogger("ray").setLevel(logging.ERROR)  # it warns of the thread
    try:
        with stopped_at_once("stopped while Ray was started"):
            begun = thread.submit(ray.init, log_to_driver=False, logging_level="error", **where)
            try:
                begun.result()
            finally:
                wait([begun])
    except (ConnectionError, ValueError, RuntimeError) as error:
        raise ResourceError(
            f"expected a Ray cluster at {config.ray}, got: {error}", hint="--ray local starts one"
        ) from None


def _on_cuda(config: OnRay) -> bool:
    """Whether actors are to have a GPU each: this machine stands for the others."""
    return config.device != "cpu" and torch.cuda.is_available()


class Actors:
    """Actors that hold the base of a job; they load it while tasks are still made."""

    def __init__(self, ray: Any, config: OnRay, job: Job, n_tasks: int) -> None:
        """Begin them.

        Args:
            ray: What `cluster` yields.
            config: The settings.
            job: What they do.
            n_tasks: How many tasks there will be; no more actors than that are begun.
        """
        each = {"num_gpus": 1} if _on_cuda(config) else {"num_cpus": 1}
        self._ray, self._actor = ray, ray.remote(**each)(Worker)
        self._job, self._folder = job, str(Path.cwd())
        self._free = [self._begun() for _ in range(min(config.ray_actors, n_tasks))]

    def _begun(self) -> Any:
        worker = self._actor.remote(self._job, self._folder)
        worker.prepare.remote()
        return worker

    def do_all(
        self,
        tasks: Mapping[Any, str],
        interrupt: Interrupt,
        *,
        on_begin: Callable[[Any], None] = lambda _: None,
        on_done: Callable[[Any], None] = lambda _: None,
    ) -> dict[Any, Any]:
        """Have every task done, each by whichever actor is free.

        Args:
            tasks: The tasks, in the order in which they are begun, and what errors call them.
            interrupt: Looked at every second.
            on_begin: Called with a task that is given to an actor; once more where one was lost.
            on_done: Called with what came of a task.

        Returns:
            What came of each.

        Raises:
            CqaError: A task failed, or `MOST_LOSSES` actors were lost at it.
        """
        waiting, lost = deque[Hashable](tasks), Counter[Hashable]()
        running: dict[Any, tuple[Any, Any]] = {}
        came: dict[Any, Any] = {}
        while waiting or running:
            while waiting and self._free:
                task, worker = waiting.popleft(), self._free.pop()
                on_begin(task)
                running[worker.do.remote(task)] = task, worker
            ready, _ = self._ray.wait(list(running), timeout=_LOOK_S)
            for reference in ready:
                task, worker = running.pop(reference)
                try:
                    done = self._ray.get(reference)
                except self._ray.exceptions.RayTaskError:  # a fault of this program: nothing lost
                    raise
                except self._ray.exceptions.RayError as error:
                    lost[task] += 1
                    if lost[task] >= MOST_LOSSES:
                        raise _too_many_losses(tasks[task], error) from None
                    waiting.append(task)
                    self._free.append(self._in_place_of(worker))
                    continue
                if done.error is not None:
                    raise _told(*done.error)
                came[task] = done.value
                on_done(done.value)
                self._free.append(worker)
            if interrupt.requested:
                interrupt.stop(f"stopped with {len(came)} of {len(tasks)} parts done")
        return came

    def _in_place_of(self, worker: Any) -> Any:
        """Begin another one; the old may only be out of reach, and would hold the task's folder."""
        with suppress(self._ray.exceptions.RayError):
            self._ray.kill(worker)
        return self._begun()


def _too_many_losses(task: str, error: Exception) -> ResourceError:
    return ResourceError(
        f"expected {task} to be done, got {MOST_LOSSES} actors lost at it, the last by: "
        f"{_first_line(error):.200}",
        hint="see Ray's log for the reason; memory is a common one",
    )


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0] or type(error).__name__


def _told(exit_code: int, message: str, where: str | None, hint: str | None) -> CqaError:
    error = CqaError(message, where=where, hint=hint)
    error.exit_code = exit_code
    return error
