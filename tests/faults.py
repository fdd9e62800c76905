"""Faults on purpose at the few functions of cqa/files.py that change a result on disk."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import resource
import shutil
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from unittest.mock import patch

import pytest
import safetensors.torch
from helpers import read_lines
from safetensors.torch import load_file

import cqa.files
import cqa.model.adapter
import cqa.train.checkpoint
from cqa.errors import ResourceError
from cqa.model.checkpoint import opened

CHANGES = [
    *((cqa.files, name) for name in ("write", "sync", "rename", "discard")),
    (cqa.model.adapter, "save_file"),
    (cqa.train.checkpoint, "save_file"),
]
APPENDED = ("log.jsonl", "scores.jsonl", "items.jsonl")


def no_space() -> OSError:
    """What the kernel says of a full disk."""
    return OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@contextmanager
def before_each_change(act: Callable[[str, tuple], None]) -> Iterator[None]:
    """Call `act` with name and arguments before every change of what is on disk.

    Changes of several threads come one after the other, so that `act` finds files that stay.
    """
    one_at_a_time = threading.RLock()
    with ExitStack() as stack:
        for module, name in CHANGES:
            real = getattr(module, name)

            def changed(*args, name=name, real=real, **options):
                with one_at_a_time:
                    act(name, args)
                    return real(*args, **options)

            stack.enter_context(patch.object(module, name, changed))
        yield


def write_half(name: str, args: tuple) -> None:
    """Do half of a `write` or `save_file`."""
    if name == "write":
        os.write(args[0], args[1][: len(args[1]) // 2])
    elif name == "save_file":
        data = safetensors.torch.save(args[0])
        args[1].write_bytes(data[: len(data) // 2])


@contextmanager
def failing_at(number: int, error: Callable[[], BaseException]) -> Iterator[list[str]]:
    """Let the nth change fail, a write after half of its bytes; yield the names of changes made."""
    made: list[str] = []

    def act(name: str, args: tuple) -> None:
        made.append(name)
        if len(made) == number:
            write_half(name, args)
            raise error()

    with before_each_change(act):
        yield made


class Crashes:
    """Copies of a folder as a kill, or a power cut, at any moment would leave it.

    A kill keeps what was written. A power cut keeps of appended files what was synced.
    """

    def __init__(self, folder: Path, copies: Path) -> None:
        """Watch `folder`; copy its states into folders of `copies`."""
        self.folder, self.copies = folder, copies
        self.states: dict[str, Path] = {}
        self._synced: dict[str, int] = {}
        self._n = 0

    @contextmanager
    def watched(self) -> Iterator[None]:
        """Copy every state that the work inside goes through."""
        with before_each_change(self._act):
            yield
        self._keep()

    def _act(self, name: str, args: tuple) -> None:
        self._keep()
        if name == "write":
            size = os.fstat(args[0]).st_size
            write_half(name, args)
            self._keep()
            os.ftruncate(args[0], size)
            os.lseek(args[0], size, os.SEEK_SET)
        elif name == "save_file":
            write_half(name, args)
            self._keep()
        elif name == "sync" and args[0].is_file():
            self._synced[args[0].name] = args[0].stat().st_size
        elif name == "rename" and args[0].is_file():
            assert args[0].name in self._synced, (
                f"{args[0].name} takes its name before it is synced"
            )

    def _keep(self) -> None:
        if not self.folder.exists():
            return
        for cut in (False, True):
            self._n += 1
            copy = self.copies / f"{self._n}"
            shutil.copytree(self.folder, copy)
            if cut:
                for name in APPENDED:
                    if (copy / name).exists():
                        os.truncate(copy / name, self._synced.get(name, 0))
            state = _digest(copy)
            if state in self.states:
                shutil.rmtree(copy)
            else:
                self.states[state] = copy


Work = Callable[[Path], object]  # on a folder
Contents = Callable[[Path], object]  # what a folder must hold in the end


def assert_every_state_is_continued(crashes: Crashes, go_on: Work, contents: Contents) -> None:
    """Continue from every state that work went through: the same contents, nothing beside them."""
    finished = contents(crashes.folder)
    for copy in crashes.states.values():
        for path in copy.glob("[!.]*/*.safetensors"):
            load_file(path)
        go_on(copy)
        assert contents(copy) == finished
        assert not leftovers(copy)


def assert_every_failure_is_continued(
    folder: Path,
    error: Callable[[], BaseException],
    begin: Work,
    go_on: Work,
    contents: Contents,
) -> None:
    """Let every change of the work fail once: a clean end, and the same contents when continued."""
    with failing_at(0, error) as changes:
        begin(folder / "whole")
    finished = contents(folder / "whole")
    for number in range(1, len(changes)):  # the last takes away the note of who holds the folder
        out = folder / f"failed-{number}"
        with failing_at(number, error), pytest.raises((ResourceError, KeyboardInterrupt)) as caught:
            begin(out)
        if error is no_space:
            assert "No space left on device\nhint: free some space" in str(caught.value)
        go_on(out)
        assert contents(out) == finished
        assert not leftovers(out)


def _digest(folder: Path) -> str:
    """Tell states apart by every file that has its final name."""
    total = hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        parts = path.relative_to(folder).parts
        if path.is_file() and not any(part.startswith(".") for part in parts):
            total.update("/".join(parts).encode() + b"\0" + path.read_bytes())
    return total.hexdigest()


def leftovers(folder: Path) -> list[str]:
    """Name what should not be left in a folder when all went well."""
    return [p.name for p in folder.rglob("*") if p.name.endswith((".tmp", ".old"))]


TIMES = {"step_s", "tokens_per_s", "eval_s", "seconds", "n_tokens"}


def run_contents(out: Path) -> dict[str, object]:
    """Everything that a training run leaves, but for the seconds it took."""
    adapters = {str(p.relative_to(out)): p.read_bytes() for p in sorted(out.glob("[!.]*/*"))}
    log = [untimed(event) for event in read_lines(out / "log.jsonl")]
    with opened(out / "state.safetensors") as file:
        state = {name: file.get_tensor(name).tolist() for name in file.keys()}  # noqa: SIM118
        return {**adapters, "log": log, "state": state, "step": file.metadata()["step"]}


def scores_contents(out: Path) -> dict[str, object]:
    """Everything that a scoring run leaves, but for the seconds it took."""
    models = [untimed(model) for model in json.loads((out / "meta.json").read_text())["models"]]
    names = ("scores.jsonl", "items.jsonl", "summary.json")
    return {**{name: (out / name).read_bytes() for name in names}, "models": models}


def untimed(record: dict) -> dict:
    """Leave out of a log line or a model's identity what depends on speed and on interruptions."""
    return {key: value for key, value in record.items() if key not in TIMES}


@contextmanager
def files_of_at_most(n_bytes: int) -> Iterator[None]:
    """Let the kernel refuse to write more than this to any file."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (n_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
