"""Files that a failure leaves whole, and folders that one process holds at a time."""

import errno
import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
import torch
from faults import failing_at, files_of_at_most, leftovers, no_space
from helpers import ROOT
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from cqa.errors import ConfigError, DataError, ResourceError
from cqa.files import (
    AppendedFile,
    check_room,
    inside,
    locked,
    new_file,
    new_folder,
    read_json,
    refuse_held,
    reported,
    write_json,
)

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


def test_failure_at_any_change_leaves_the_old_json_or_the_new_and_is_reported(tmp_path):
    path = tmp_path / "x.json"
    message = f"^{path}: expected to write, got: No space left on device\nhint: free some space"
    seen = []
    for number in range(1, 6):  # discard, write, sync, rename, sync of the folder
        write_json(path, {"old": 1})
        with (
            failing_at(number, no_space) as changes,
            pytest.raises(ResourceError, match=message) as caught,
        ):
            write_json(path, {"new": 2})
        assert caught.value.exit_code == 6
        assert read_json(path) == ({"old": 1} if number < 5 else {"new": 2})
        assert names_in(tmp_path) == ["x.json"]
        seen.append(changes[number - 1])
    assert seen == ["discard", "write", "sync", "rename", "sync"]


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


@pytest.mark.parametrize("error", [no_space, KeyboardInterrupt], ids=["full-disk", "interrupt"])
def test_failure_at_any_change_leaves_one_whole_folder_or_none(tmp_path, error):
    with failing_at(0, error) as changes:
        fill(tmp_path / "x", "old")
        n_new = len(changes)
        fill(tmp_path / "x", "new")
    for number in range(1, len(changes) - n_new + 1):
        path = tmp_path / str(number)
        fill(path, "old")
        with failing_at(number, error), pytest.raises((ResourceError, KeyboardInterrupt)):
            fill(path, "new")
        if path.exists():  # not so between the two renames
            assert (path / "a.txt").read_text() in ("old", "new")
        fill(path, "last")
        assert (path / "a.txt").read_text() == "last"
        assert not leftovers(tmp_path)


def test_folder_whose_new_one_cannot_take_its_place_stays(tmp_path):
    path = tmp_path / "x"
    fill(path, "old")
    with failing_at(6, no_space) as changes, pytest.raises(ResourceError):
        fill(path, "new")
    assert changes[4:] == ["rename", "rename", "rename", "discard"]  # away, fails, back
    assert (path / "a.txt").read_text() == "old"


def test_full_disk_while_filling_is_reported_and_leaves_the_old_folder(tmp_path):
    path = tmp_path / "x"
    fill(path, "old")
    with (
        pytest.raises(ResourceError, match=f"^{path}: .*No space left") as caught,
        new_folder(path),
    ):
        raise no_space()
    assert caught.value.exit_code == 6
    assert (path / "a.txt").read_text() == "old"


@pytest.mark.parametrize(
    ("number", "hint"),
    [
        (errno.ENOSPC, "free some space"), (errno.EDQUOT, "free some space"),
        (errno.EFBIG, "a limit on the size"), (errno.EROFS, "a place that you may write to"),
        (errno.EACCES, "a place that you may write to"),
    ],
)  # fmt: skip
def test_a_refused_write_says_what_to_do(number, hint):
    said = os.strerror(number)
    for error in (OSError(number, said), SafetensorError(f"I/O error: {said} (os error {number})")):
        with (
            pytest.raises(ResourceError, match=f"got: .*{said}.*\nhint: .*{hint}"),
            reported(Path("x")),
        ):
            raise error
    with pytest.raises(ResourceError) as caught, reported(Path("x")):
        raise OSError(errno.EIO, os.strerror(errno.EIO))
    assert caught.value.hint is None


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


def test_folder_in_use_is_refused_by_pid_host_and_time_before_anything_slow(tmp_path, holder):
    since = r"since 20\d\d-\d\d-\d\d \d\d:\d\d:\d\d[+-]\d\d:\d\d"
    message = f"held by process {holder.pid} on {socket.gethostname()} {since}\nhint: wait"
    with pytest.raises(ResourceError, match=message) as caught:
        refuse_held(tmp_path / "run")
    assert caught.value.exit_code == 6


def test_folder_that_nobody_uses_is_not_refused_and_not_made(tmp_path):
    refuse_held(tmp_path / "new")
    assert names_in(tmp_path) == []
    hold(tmp_path / "used")
    refuse_held(tmp_path / "used")


def test_lock_that_cannot_be_made_is_reported(tmp_path):
    (tmp_path / "run" / ".lock").mkdir(parents=True)
    with pytest.raises(ResourceError, match="run: expected to write, got: Is a directory"):
        hold(tmp_path / "run")


def test_appended_lines_are_whole_whatever_fails(tmp_path):
    path = tmp_path / "x.jsonl"
    with AppendedFile(path) as file:
        file.append(b"one\n")
        with failing_at(1, no_space), pytest.raises(ResourceError, match=f"^{path}: .*No space"):
            file.append(b"second\n")
        assert path.read_bytes() == b"one\n"
        with failing_at(1, KeyboardInterrupt), pytest.raises(KeyboardInterrupt):
            file.append(b"third\n")
        file.append(b"two\n")
        file.sync()
    assert path.read_bytes() == b"one\ntwo\n"


@pytest.mark.parametrize(
    ("held", "kept"),
    [
        (b"", b""),
        (b"one", b""),
        (b"one\n", b"one\n"),
        (b"one\ntw", b"one\n"),
        (b"one\n" + b"\0" * 4096, b"one\n"),
        (b"one\n" + b"x" * 200_000, b"one\n"),
        (b"x" * 200_000, b""),
    ],
    ids=["empty", "no-line", "whole", "torn", "zeros-after-power-cut", "long", "only-long"],
)
def test_partial_last_line_is_cut(tmp_path, held, kept):
    path = tmp_path / "x.jsonl"
    path.write_bytes(held)
    with AppendedFile(path) as file:
        file.cut_partial_line()
        file.append(b"next\n")
    assert path.read_bytes() == kept + b"next\n"


def test_file_taken_away_during_the_work_is_reported(tmp_path):
    path = tmp_path / "x.jsonl"
    with AppendedFile(path) as file:
        path.unlink()
        with pytest.raises(ResourceError, match="No such file"):
            file.sync()


@pytest.mark.parametrize(
    "name",
    ["", ".", "..", "../x", "/etc/passwd", "a/b", "a\0b", "a" * 300, "在" * 100, "a\ud800" * 90],
    ids=ascii,
)
def test_name_that_leaves_the_folder_is_refused(tmp_path, name):
    with pytest.raises(ConfigError, match="expected a name within the folder") as caught:
        inside(tmp_path, name)
    assert len(str(caught.value)) < 300


@pytest.mark.parametrize("name", ["x", "..x", "epoch-01", "在", "a" * 255])
def test_plain_name_is_taken(tmp_path, name):
    assert inside(tmp_path, name) == tmp_path / name


@pytest.mark.parametrize("target", ["file", "nothing"])
def test_symbolic_link_in_the_place_of_a_file_is_refused_and_not_followed(tmp_path, target):
    (tmp_path / "file").write_text("mine")
    folder = tmp_path / "out"
    folder.mkdir()
    (folder / "x").symlink_to(tmp_path / target)
    with pytest.raises(ConfigError, match="out/x: expected a file of this folder, got a symbolic"):
        inside(folder, "x")
    with pytest.raises(ResourceError):
        AppendedFile(folder / "x")
    assert (tmp_path / "file").read_text() == "mine"
    assert names_in(tmp_path) == ["file", "out"]


@pytest.mark.parametrize("name", [".x.tmp", ".x.old"])
def test_planted_link_under_a_temporary_name_is_not_followed(tmp_path, name):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "text").write_text("mine")
    out = tmp_path / "out"
    out.mkdir()
    (out / name).symlink_to(tmp_path / "mine")
    for _ in range(2):
        fill(out / "x", "ours")
    with new_file(out / "y") as temporary:
        temporary.write_text("ours")
    assert (tmp_path / "mine" / "text").read_text() == "mine"
    assert names_in(out) == ["x", "y"]


def test_planted_link_in_the_place_of_the_lock_or_its_holder_is_not_followed(tmp_path):
    (tmp_path / "mine").write_text("mine")
    for name in (".lock", ".lock-holder"):
        out = tmp_path / f"out{name}"
        out.mkdir()
        (out / name).symlink_to(tmp_path / "mine")
        with suppress(ResourceError):
            hold(out)
        assert (tmp_path / "mine").read_text() == "mine"


def test_file_that_is_mapped_into_memory_keeps_its_content_when_it_is_replaced(tmp_path):
    path = tmp_path / "a.safetensors"
    save_file({"a": torch.zeros(4096)}, path)
    with safe_open(path, "pt") as mapped:
        with new_file(path) as temporary:
            save_file({"a": torch.ones(4096)}, temporary)
        assert not mapped.get_tensor("a").any()
    with safe_open(path, "pt") as mapped:
        assert mapped.get_tensor("a").all()


def test_too_little_room_is_refused_before_the_work(tmp_path):
    free = shutil.disk_usage(tmp_path).free
    check_room(tmp_path, free // 2)
    with pytest.raises(
        ResourceError, match=r"expected .* GB of free disk .*\nhint: free some space"
    ):
        check_room(tmp_path, 2 * free)


@pytest.mark.parametrize("umask", [0o000, 0o022, 0o027, 0o077])
def test_new_files_have_the_mode_that_the_umask_leaves(tmp_path, umask):
    """Libraries write weights for the owner alone, whom a colleague that shares a group is not."""
    before = os.umask(umask)
    try:
        write_json(tmp_path / "a.json", {})
        with new_file(tmp_path / "b") as file:
            file.touch(0o600)
        with new_folder(tmp_path / "c") as folder:
            (folder / "weights").touch(0o600)
        AppendedFile(tmp_path / "d").close()
    finally:
        os.umask(before)
    modes = {(tmp_path / name).stat().st_mode & 0o777 for name in ("a.json", "b", "c/weights", "d")}
    assert modes == {0o666 & ~umask}


def test_a_pipe_is_not_waited_for_where_lines_are_appended(tmp_path):
    os.mkfifo(tmp_path / "log")
    with pytest.raises(ResourceError, match="log: expected a regular file, got a pipe"):
        AppendedFile(tmp_path / "log")
    with pytest.raises(ResourceError, match="log"):
        AppendedFile(Path("/dev/null/log"))
