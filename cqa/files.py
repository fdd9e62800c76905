"""Writing that a kill cannot tear: temporary name, fsync, rename; and one run per folder."""

from __future__ import annotations

import errno
import json
import os
import shutil
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from safetensors import SafetensorError

from cqa.errors import ConfigError, DataError, ResourceError


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object that this package wrote.

    Raises:
        DataError: It is missing or damaged.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"expected a JSON object, got: {error}", where=str(path)) from None
    if not isinstance(value, dict):
        raise DataError("expected a JSON object", where=str(path))
    return value


def write_json(path: Path, value: Any) -> None:
    """Replace a JSON file in one step."""
    text = json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    with new_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


@contextmanager
def new_file(path: Path) -> Iterator[Path]:
    """Fill a temporary file, then let it take the place of `path` in one step."""
    temporary = path.with_name(f".{path.name}.tmp")
    with reported(path):
        yield temporary
        _sync(temporary)
        temporary.replace(path)
        _sync(path.parent)


@contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """Fill a temporary folder, then let it take the place of `path` in one step."""
    temporary = path.with_name(f".{path.name}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    with reported(path):
        temporary.mkdir(parents=True)
        yield temporary
        for file in temporary.iterdir():
            _sync(file)
        _sync(temporary)
        if path.exists():
            old = path.with_name(f".{path.name}.old")
            shutil.rmtree(old, ignore_errors=True)
            path.rename(old)
            try:
                temporary.rename(path)
            except OSError:
                old.rename(path)
                raise
            shutil.rmtree(old)
        else:
            temporary.rename(path)
        _sync(path.parent)


@contextmanager
def reported(path: Path) -> Iterator[None]:
    """Turn a full disk or a refused write into a `ResourceError` that names the path."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        full = getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT) or "No space" in reason
        hint = "free some space; what was complete before is intact" if full else None
        raise ResourceError(
            f"expected to write, got: {reason}", where=str(path), hint=hint
        ) from error


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold a folder for this process; the lock of a killed process is free at once.

    Raises:
        ResourceError: Another process holds it, which the message names.
    """
    if folder.exists() and not folder.is_dir():
        raise ConfigError("expected --out to be a folder, got a file", where=str(folder))
    with reported(folder):
        folder.mkdir(parents=True, exist_ok=True)
    holder = folder / ".lock-holder"
    lock = FileLock(folder / ".lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        who = holder.read_text(encoding="utf-8").strip() if holder.exists() else "another process"
        raise ResourceError(
            f"expected a folder that no other run uses, got one held by {who}", where=str(folder)
        ) from None
    try:
        with reported(holder):
            who = f"process {os.getpid()} on {socket.gethostname()}\n"
            holder.write_text(who, encoding="utf-8")
        yield
    finally:
        holder.unlink(missing_ok=True)
        lock.release()


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
