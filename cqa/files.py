"""Writing that a kill cannot tear, and one run per folder.

A file or folder is filled under a temporary name, synced, and then renamed; a file of lines grows
by whole lines. `write`, `sync`, `rename` and `discard` are all that ever changes a result on disk.
"""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path
from typing import Any

from filelock import BaseFileLock, FileLock, Timeout
from safetensors import SafetensorError

from cqa.errors import ConfigError, DataError, ResourceError
from cqa.reading import read_object, refuse_special

LONGEST_NAME_BYTES = 255
_LOCK = ".lock"
_ONE_AT_A_TIME = threading.Lock()
_NO_LOCKS = (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP)
FREE_SPACE = "free some space; what was complete before is intact"
# What to do about a write that the system refused.
_HINTS = {
    errno.ENOSPC: FREE_SPACE,
    errno.EDQUOT: FREE_SPACE,
    errno.EFBIG: "a limit on the size of a file holds here (ulimit -f); raise it",
    **dict.fromkeys((errno.EACCES, errno.EPERM, errno.EROFS), "name a place that you may write to"),
}


def write(descriptor: int, data: bytes) -> None:
    """Write all of some bytes."""
    rest = memoryview(data)
    while rest:
        rest = rest[os.write(descriptor, rest) :]


def sync(path: Path) -> None:
    """Wait until a file or a folder's names are on disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def rename(source: Path, target: Path) -> None:
    """Give a file or folder another name in one step; a file there is replaced."""
    os.replace(source, target)


def discard(path: Path) -> None:
    """Remove a file, a link or a folder, if there is one."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def inside(folder: Path, name: str) -> Path:
    """Return `folder / name`, for a name that stays in the folder.

    Raises:
        ConfigError: The name leads elsewhere (`..`, a path, a symbolic link), or no file can have
            it.
    """
    n_bytes = len(name.encode("utf-8", "surrogatepass"))
    odd = name in ("", ".", "..") or "/" in name or os.sep in name or "\0" in name
    if odd or n_bytes > LONGEST_NAME_BYTES:
        raise ConfigError(
            f"expected a name within the folder, got: {name!r:.80}", where=str(folder)
        )
    if (folder / name).is_symlink():
        raise ConfigError(
            "expected a file of this folder, got a symbolic link", where=str(folder / name)
        )
    return folder / name


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object that this package wrote.

    Raises:
        DataError: It is missing or damaged.
    """
    value = read_object(path, DataError)
    if value is None:
        raise DataError("expected a JSON object, got no such file", where=str(path))
    return value


def write_json(path: Path, value: Any) -> None:
    """Replace a JSON file in one step."""
    text = json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    with new_file(path) as temporary:
        _create(temporary, text.encode())


def _create(path: Path, data: bytes) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
    try:
        write(descriptor, data)
    finally:
        os.close(descriptor)


def _usual_mode() -> int:
    """Return the mode that the umask leaves a new file; libraries may make one the owner's only."""
    return 0o666 & ~_umask()


def _umask() -> int:
    """Return the process's umask without changing it, where it can be read."""
    with suppress(OSError):
        held = re.search(
            r"^Umask:\s*([0-7]+)$", Path("/proc/self/status").read_text(), re.MULTILINE
        )
        if held is not None:
            return int(held[1], 8)
    with _ONE_AT_A_TIME:
        umask = os.umask(0o077)
        os.umask(umask)
    return umask


@contextmanager
def new_file(path: Path) -> Iterator[Path]:
    """Fill a temporary file, then let it take the place of `path` in one step."""
    with _filled(path) as temporary:
        yield temporary
        temporary.chmod(_usual_mode())
        sync(temporary)
        rename(temporary, path)
        sync(path.parent)


@contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """Fill a temporary folder, then let it take the place of `path`.

    A kill while an older folder is replaced can leave neither under that name, never a mixture.
    """
    old = path.with_name(f".{path.name}.old")
    with _filled(path) as temporary:
        temporary.mkdir(parents=True)
        yield temporary
        for file in temporary.iterdir():
            file.chmod(_usual_mode())
            sync(file)
        sync(temporary)
        if path.exists():
            discard(old)
            rename(path, old)
            try:
                rename(temporary, path)
            except OSError:
                rename(old, path)
                raise
        else:
            rename(temporary, path)
        sync(path.parent)
        discard(old)


@contextmanager
def _filled(path: Path) -> Iterator[Path]:
    """Give a free temporary name beside `path`, and leave nothing under it after a failure."""
    temporary = path.with_name(f".{path.name}.tmp")
    with reported(path):
        discard(temporary)
        try:
            yield temporary
        except BaseException:
            with suppress(OSError):
                discard(temporary)
            raise


class AppendedFile:
    """A file that grows by whole lines: what a failed write left of one is cut off at once."""

    def __init__(self, path: Path) -> None:
        """Open a file, or begin one.

        Raises:
            ResourceError: It cannot be written, or is no regular file.
        """
        self.path = path
        with reported(path):
            # non-blocking, since a pipe is waited for otherwise
            flags = os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_NONBLOCK
            self._descriptor = os.open(path, flags | os.O_CLOEXEC, 0o666)
            try:
                refuse_special(path, ResourceError)
            except BaseException:
                os.close(self._descriptor)
                raise
            sync(path.parent)

    def __enter__(self) -> AppendedFile:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def append(self, data: bytes) -> None:
        """Append whole lines."""
        with self.whole(), reported(self.path):
            write(self._descriptor, data)

    @contextmanager
    def whole(self) -> Iterator[None]:
        """Keep all that is appended inside, or, after a failure, nothing of it."""
        size = os.fstat(self._descriptor).st_size
        try:
            yield
        except BaseException:
            with suppress(OSError):
                os.ftruncate(self._descriptor, size)
            raise

    def cut(self, size: int) -> None:
        """Cut off all after the first `size` bytes."""
        with reported(self.path):
            os.ftruncate(self._descriptor, size)

    def cut_partial_line(self) -> None:
        """Cut off what a kill left of a last line."""
        keep, step = os.fstat(self._descriptor).st_size, 1 << 16
        while keep > 0:
            start = max(0, keep - step)
            newline = os.pread(self._descriptor, keep - start, start).rfind(b"\n")
            if newline >= 0:
                keep = start + newline + 1
                break
            keep = start
        self.cut(keep)

    def sync(self) -> None:
        """Wait until what was appended is on disk."""
        flush(self.path)

    def close(self) -> None:
        """Close the file."""
        os.close(self._descriptor)


def flush(path: Path) -> None:
    """Wait until a file that others may be appending to is on disk."""
    with reported(path):
        sync(path)


@contextmanager
def reported(path: Path) -> Iterator[None]:
    """Turn a full disk or a refused write into a `ResourceError` that names the path."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        number = getattr(error, "errno", None)
        if isinstance(error, SafetensorError):  # which only tells what the system said
            number = next((n for n in _HINTS if os.strerror(n) in reason), None)
        raise ResourceError(
            f"expected to write, got: {reason}", where=str(path), hint=_HINTS.get(number or 0)
        ) from error


def check_room(folder: Path, n_bytes: int) -> None:
    """Refuse to begin what the disk cannot hold.

    Raises:
        ResourceError: Fewer bytes are free than will be written.
    """
    with reported(folder):
        free = shutil.disk_usage(folder).free
    if free < n_bytes:
        raise ResourceError(
            f"expected {n_bytes / 1e9:.2f} GB of free disk for this run, got {free / 1e9:.2f} GB",
            where=str(folder),
            hint="free some space, or name another --out",
        )


def refuse_held(folder: Path) -> None:
    """Refuse a folder that a run is using, before anything slow is done.

    Raises:
        ResourceError: Another process holds it, which the message names.
    """
    with reported(folder):
        begun = (folder / _LOCK).exists()
    if begun:
        with locked(folder):
            pass


@contextmanager
def locked(folder: Path, *, wait: bool = False) -> Iterator[None]:
    """Hold a folder for this process; the lock of a killed process is free at once.

    Args:
        folder: The folder; it is made if it is not there.
        wait: Whether to wait for another process that holds it.

    Raises:
        ResourceError: Another process holds it, which the message names.
    """
    holder = folder / ".lock-holder"
    with reported(folder):
        if folder.exists() and not folder.is_dir():
            raise ConfigError("expected --out to be a folder, got a file", where=str(folder))
        folder.mkdir(parents=True, exist_ok=True)
        sync(folder.parent)
        lock = _acquired(folder / _LOCK, wait=wait)
        if lock is None:
            raise ResourceError(
                f"expected a folder that no other run uses, got one held by {_name_of(holder)}",
                where=str(folder), hint=_hint_for(holder),
            )  # fmt: skip
    try:
        with reported(holder):
            discard(holder)
            now = datetime.now().astimezone().isoformat(sep=" ", timespec="seconds")
            who = f"process {os.getpid()} on {socket.gethostname()} since {now}"
            _create(holder, who.encode())
        yield
    finally:
        try:
            with suppress(OSError):
                discard(holder)
        finally:
            lock.release()


def discard_lock(folder: Path) -> None:
    """Remove what `locked` leaves in a folder that is not used again."""
    discard(folder / _LOCK)


@contextmanager
def claimed(path: Path) -> Iterator[bool]:
    """Claim a piece of work that several processes share, by the lock of a file.

    The claim of a process that has died is free at once, and the work can be claimed again.

    Yields:
        Whether it is this process's now; False is that another one has it.
    """
    with reported(path):
        lock = _acquired(path)
    try:
        yield lock is not None
    finally:
        if lock is not None:
            lock.release()


def _acquired(path: Path, *, wait: bool = False) -> BaseFileLock | None:
    """Return the lock of a file, which is made; None where another process has it."""
    lock = FileLock(path, mode=_usual_mode())
    try:
        lock.acquire(timeout=-1 if wait else 0)
    except Timeout:
        return None
    except (NotImplementedError, OSError) as error:
        if isinstance(error, OSError) and error.errno not in _NO_LOCKS:
            raise
        raise ResourceError(
            "expected a file system that has locks, got one without", where=str(path.parent),
            hint="name an --out on another one, and copy it when the run has ended",
        ) from None  # fmt: skip
    return lock


def _hint_for(holder: Path) -> str:
    """Say how a folder becomes free; a machine that died may not have given its lock back."""
    wait = "wait for it to end, or name another --out"
    host = re.search(r" on (\S+) since ", _name_of(holder))
    if host is None or host[1] == socket.gethostname():
        return wait
    return f"{wait}; if {host[1]} has died, delete {holder.with_name(_LOCK)}"


def _name_of(holder: Path) -> str:
    try:
        return holder.read_text(encoding="utf-8") or "another process"
    except (OSError, ValueError):  # it has only just got the lock, or is giving it back
        return "another process"
