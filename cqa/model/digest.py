"""What stands for the bytes of model and adapter files."""

from __future__ import annotations

import hashlib
import os
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

from cqa.errors import ModelError

MOST_THREADS = 8  # a disk gains nothing from more
_BLOCK_BYTES = 1 << 20
_SETTLED_AFTER_NS = 2_000_000_000  # the coarsest clock of a file system

Stamps = tuple[tuple[int, ...], ...]


def digest_files(paths: Iterable[Path]) -> str:
    """Return one sha256 over the names and bytes of files.

    Raises:
        ModelError: A file cannot be read, or was written to meanwhile.
    """
    with hashing(paths) as digest:
        return digest()


@contextmanager
def hashing(paths: Iterable[Path]) -> Iterator[Callable[[], str]]:
    """Hash files in threads while the body runs; call what is yielded for the digest of all.

    Files are begun in the order of their paths. A body that reads them in that order too finds
    in memory what was read for the digest, or the other way round. A body that fails ends the
    hashing at once.

    Raises:
        ModelError: Called for the digest: a file cannot be read, or was written to since the body
            began, so that the digest may not be of what the body read.
    """
    ordered = sorted(paths)
    with _readable():
        before = stamps(ordered)
    ended = threading.Event()
    n_threads = min(len(ordered), os.cpu_count() or 1, MOST_THREADS)
    with ThreadPoolExecutor(max_workers=max(1, n_threads)) as pool:
        parts = [pool.submit(_sha256, path, ended) for path in ordered]

        def digest() -> str:
            total = hashlib.sha256()
            with _readable():
                for path, part in zip(ordered, parts, strict=True):
                    total.update(path.name.encode() + b"\0" + part.result())
                after = stamps(ordered)
            for path, was, is_now in zip(ordered, before, after, strict=True):
                if was != is_now:
                    raise ModelError(
                        "expected a file that stays as it is while it is read, got one that was "
                        "written to",
                        where=str(path),
                        hint="give the same command again once it is complete",
                    )
            return total.hexdigest()

        try:
            yield digest
        finally:
            ended.set()
            pool.shutdown(cancel_futures=True)


def stamps(paths: Iterable[Path]) -> Stamps:
    """Return what changes when a file is written to or replaced, for each of some files."""
    found = [path.stat() for path in paths]
    return tuple((s.st_dev, s.st_ino, s.st_size, s.st_mtime_ns) for s in found)


def settled_stamps(paths: Iterable[Path]) -> Stamps | None:
    """Return the stamps of files by which a later change is told, or None where it is not sure.

    A file written to a moment ago can be written to again without another time of change.
    """
    try:
        found = stamps(paths)
    except OSError:
        return None
    latest_ns = max(written_ns for *_, written_ns in found)
    return found if time.time_ns() - latest_ns > _SETTLED_AFTER_NS else None


def _sha256(path: Path, ended: threading.Event) -> bytes:
    total, block = hashlib.sha256(), memoryview(bytearray(_BLOCK_BYTES))
    with path.open("rb", buffering=0) as file:
        while not ended.is_set() and (n_bytes := file.readinto(block)):
            total.update(block[:n_bytes])
    return total.digest()


@contextmanager
def _readable() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise ModelError(
            f"expected a file that can be read, got: {error.strerror}", where=str(error.filename)
        ) from error
