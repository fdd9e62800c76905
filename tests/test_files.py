"""Files that a failure leaves whole, and folders that one process holds at a time."""

import errno
import os
import resource
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from helpers import ROOT
from safetensors.torch import save_file

from cqa.errors import DataError, ResourceError
from cqa.files import locked, new_folder, read_json, write_json

HOLD = """
import sys
from pathlib import Path
from cqa.files import locked
with locked(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


def names_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def full_disk(*_: object, **__: object) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def hold(folder: Path) -> None:
    with locked(folder):
        assert folder.is_dir()


def fill(path: Path, text: str) -> None:
    with new_folder(path) as folder:
        (folder / "a.txt").write_text(text)


def test_json_is_read_as_it_was_written_and_nothing_else_is_left(tmp_path):
    value = {"ä": [1, 2.5, None], "b": {"c": "\u2028"}}
    write_json(tmp_path / "x.json", {"old": 1})
    write_json(tmp_path / "x.json", value)
    assert read_json(tmp_path / "x.json") == value
    assert names_in(tmp_path) == ["x.json"]


@pytest.mark.parametrize("operation", ["write_text", "replace"])
def test_full_disk_leaves_the_old_json_and_is_reported(tmp_path, monkeypatch, operation):
    path = tmp_path / "x.json"
    write_json(path, {"old": 1})
    monkeypatch.setattr(Path, operation, full_disk)
    message = f"^{path}: expected to write, got: No space left on device\nhint: free some space"
    with pytest.raises(ResourceError, match=message) as caught:
        write_json(path, {"new": 2})
    assert caught.value.exit_code == 6
    assert read_json(path) == {"old": 1}


def test_json_that_cannot_be_told_leaves_the_old_one(tmp_path):
    path = tmp_path / "x.json"
    write_json(path, {"old": 1})
    with pytest.raises(ValueError, match="JSON compliant"):
        write_json(path, {"new": float("nan")})
    assert read_json(path) == {"old": 1}


@pytest.mark.parametrize("text", [None, "", '{"a": 1', "[1]", "\udcff"], ids=repr)
def test_missing_or_damaged_json_is_refused(tmp_path, text):
    path = tmp_path / "x.json"
    if text is not None:
        path.write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(DataError, match=f"^{path}: expected a JSON object"):
        read_json(path)


def test_folder_appears_when_it_is_complete(tmp_path):
    path = tmp_path / "deep" / "x"
    with new_folder(path) as folder:
        (folder / "a.txt").write_text("a")
        assert not path.exists()
    assert names_in(path) == ["a.txt"]
    assert names_in(path.parent) == ["x"]


def test_folder_is_replaced_as_a_whole(tmp_path):
    path = tmp_path / "x"
    fill(path, "old")
    with new_folder(path) as folder:
        (folder / "b.txt").write_text("new")
        assert (path / "a.txt").read_text() == "old"
    assert names_in(path) == ["b.txt"]
    assert names_in(tmp_path) == ["x"]


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_failure_while_filling_leaves_the_old_folder(tmp_path, error):
    path = tmp_path / "x"
    fill(path, "old")

    def fail() -> None:
        with new_folder(path) as folder:
            (folder / "a.txt").write_text("half")
            raise error

    with pytest.raises(error):
        fail()
    assert (path / "a.txt").read_text() == "old"


def test_failure_while_filling_leaves_no_new_folder_and_the_next_try_starts_clean(tmp_path):
    path = tmp_path / "x"

    def fail() -> None:
        with new_folder(path) as folder:
            (folder / "half.txt").write_text("half")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert not path.exists()
    fill(path, "whole")
    assert names_in(path) == ["a.txt"]


def test_old_folder_stays_where_the_new_one_cannot_take_its_place(tmp_path, monkeypatch):
    path = tmp_path / "x"
    fill(path, "old")
    rename = Path.rename

    def refuse_new(self: Path, target: Path) -> Path:
        if self.name.endswith(".tmp"):
            full_disk()
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", refuse_new)
    with pytest.raises(ResourceError):
        fill(path, "new")
    assert (path / "a.txt").read_text() == "old"


def test_full_disk_while_filling_is_reported_and_leaves_the_old_folder(tmp_path):
    path = tmp_path / "x"
    fill(path, "old")
    with (
        pytest.raises(ResourceError, match=f"^{path}: .*No space left") as caught,
        new_folder(path),
    ):
        full_disk()
    assert caught.value.exit_code == 6
    assert (path / "a.txt").read_text() == "old"


@contextmanager
def files_of_at_most(n_bytes: int) -> Iterator[None]:
    """Let the kernel refuse to write more than this to any file."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (n_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_refused_write_of_tensors_is_reported_too(tmp_path):
    path = tmp_path / "x"
    with (
        pytest.raises(ResourceError, match=f"^{path}: expected to write, got: "),
        new_folder(path) as folder,
        files_of_at_most(2**20),
    ):
        save_file({"a": torch.zeros(2**20)}, folder / "a.safetensors")
    assert not path.exists()


@pytest.fixture
def holder(tmp_path) -> Iterator[subprocess.Popen]:
    """Another process that holds `tmp_path / "run"`."""
    command = [sys.executable, "-c", HOLD, str(tmp_path / "run")]
    with subprocess.Popen(
        command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout.readline() == "held\n"
        yield process
        process.kill()


def test_folder_held_by_another_process_is_refused_and_the_holder_named(tmp_path, holder):
    folder = tmp_path / "run"
    for _ in range(2):  # a refusal must not set the folder free
        with pytest.raises(ResourceError, match=f"^{folder}: .* process {holder.pid} on "):
            hold(folder)


def test_folder_is_free_after_its_holder_ended(tmp_path, holder):
    holder.communicate("")
    assert holder.returncode == 0
    hold(tmp_path / "run")


def test_folder_is_free_after_its_holder_was_killed(tmp_path, holder):
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    with (
        locked(tmp_path / "run"),
        pytest.raises(ResourceError, match=f"process {os.getpid()} on "),
    ):
        hold(tmp_path / "run")


def test_folder_is_free_after_a_failure_inside(tmp_path):
    def fail() -> None:
        with locked(tmp_path / "run"):
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    hold(tmp_path / "run")


def test_folder_that_cannot_be_made_is_reported(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(ResourceError, match="file/run: expected to write, got: Not a directory"):
        hold(tmp_path / "file" / "run")
