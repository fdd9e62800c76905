"""What is done about actors that are lost or fail, on a Ray of one process that loses them."""

import signal
import sys
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from cqa.errors import CqaError, DataError, ModelError, ResourceError
from cqa.interrupt import Interrupt, Interrupted
from cqa.score.config import ScoreConfig
from cqa.score.ray_cluster import MOST_LOSSES, Actors, Worker, cluster

TASKS = {"a": "shard 1/3", "b": "shard 2/3", "c": "shard 3/3"}


class RayError(Exception):
    """As Ray's own are."""


class RayTaskError(RayError):
    """An error that a task raised, and that nobody expected."""


@dataclass(frozen=True)
class Asked:
    """Stands for what will come of a task."""

    task: str
    worker: Worker


@dataclass
class Cluster:
    """Stands for Ray: a task is done when it is asked for."""

    losses: dict[str, int] = field(default_factory=dict)  # how often a task loses its actor
    begun: int = 0
    killed: int = 0
    exceptions: Any = field(
        default_factory=lambda: SimpleNamespace(RayError=RayError, RayTaskError=RayTaskError)
    )

    def remote(self, **_: object) -> Any:
        return lambda kind: SimpleNamespace(remote=lambda *given: self._actor(kind(*given)))

    def _actor(self, worker: Worker) -> Any:
        self.begun += 1
        return SimpleNamespace(
            prepare=SimpleNamespace(remote=worker.prepare),
            do=SimpleNamespace(remote=lambda task: Asked(task, worker)),
        )

    def wait(self, references: list[Any], timeout: float) -> tuple[list[Any], list[Any]]:
        return references[:1], references[1:]

    def get(self, reference: Any) -> Any:
        if self.losses.get(reference.task, 0):
            self.losses[reference.task] -= 1
            raise RayError("The node is low on memory.\nand more")
        return reference.worker.do(reference.task)

    def kill(self, _: object) -> None:
        self.killed += 1


@dataclass(frozen=True)
class Letters:
    """A job."""

    error: type[Exception] | None = None

    def load(self) -> None:
        return None

    def do(self, base: object, task: str) -> str:
        if self.error is not None and task == "b":
            raise self.error("expected b, got none")
        return task.upper()


def done(ray: Cluster, job: Any = None) -> dict[str, str]:
    config = ScoreConfig(model="m", pairs=(Path("p"),), out=Path("o"), device="cpu", ray="local")
    with Interrupt() as interrupt:
        actors = Actors(ray, config, job or Letters(), len(TASKS))
        return actors.do_all(TASKS, interrupt)


def test_lost_actors_are_replaced_and_not_left_with_the_task():
    ray = Cluster({"b": MOST_LOSSES - 1, "c": 1})
    assert done(ray) == {"a": "A", "b": "B", "c": "C"}
    assert (ray.begun, ray.killed) == (2 + MOST_LOSSES, MOST_LOSSES)


def test_task_that_always_loses_its_actor_ends_the_job_by_name_and_reason():
    with pytest.raises(ResourceError) as caught:
        done(Cluster({"b": MOST_LOSSES}))
    assert caught.value.message == (
        "expected shard 2/3 to be done, got 3 actors lost at it, the last by: The node is low on "
        "memory."
    )


def test_errors_of_a_task_are_told_as_here():
    with pytest.raises(CqaError, match="expected b, got none") as caught:
        done(Cluster(), Letters(DataError))
    assert caught.value.exit_code == DataError.exit_code


def test_a_base_that_cannot_be_loaded_is_told_of_the_first_task():
    class Without(Letters):
        def load(self) -> None:
            raise ModelError("expected a model, got none")

    with pytest.raises(CqaError, match="expected a model, got none") as caught:
        done(Cluster(), Without())
    assert caught.value.exit_code == ModelError.exit_code


def test_ray_leaves_sigterm_as_it_was(monkeypatch):
    def init(**_: object) -> None:
        if threading.current_thread() is threading.main_thread():  # as Ray does
            signal.signal(signal.SIGTERM, lambda *_: sys.exit(15))

    ray = SimpleNamespace(init=init, shutdown=lambda: None, cluster_resources=lambda: {"CPU": 2.0})
    monkeypatch.setitem(sys.modules, "ray", ray)
    config = ScoreConfig(model="m", pairs=(Path("p"),), out=Path("o"), device="cpu", ray="local")
    before = signal.getsignal(signal.SIGTERM)
    with cluster(config) as joined:
        assert joined is ray
        assert signal.getsignal(signal.SIGTERM) == before


def test_a_signal_while_ray_is_started_ends_it_and_the_command(monkeypatch):
    ended = []

    def init(**_: object) -> None:
        signal.raise_signal(signal.SIGTERM)
        time.sleep(0.1)

    ray = SimpleNamespace(init=init, shutdown=lambda: ended.append("shutdown"))
    monkeypatch.setitem(sys.modules, "ray", ray)
    config = ScoreConfig(model="m", pairs=(Path("p"),), out=Path("o"), device="cpu", ray="local")
    with pytest.raises(Interrupted) as caught, cluster(config):
        pytest.fail("there is no cluster")
    assert caught.value.exit_code == 128 + signal.SIGTERM
    assert ended == ["shutdown"]


def test_what_nobody_expected_is_not_tried_again():
    class Raises(Cluster):
        def get(self, reference: Any) -> Any:
            raise RayTaskError("a fault")

    ray = Raises()
    with pytest.raises(RayTaskError):
        done(ray)
    assert ray.begun == 2


def test_machine_that_does_not_see_the_folder_is_named(tmp_path, monkeypatch):
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    monkeypatch.setattr("socket.gethostname", lambda: "node-7")
    worker = Worker(Letters(), str(tmp_path / "elsewhere"))
    told = worker.do("a").error
    assert told is not None
    assert told[0] == ResourceError.exit_code
    assert told[1].endswith("the command, got on node-7: No such file or directory")
    assert told[2] == str(tmp_path / "elsewhere")
