"""Single lines of several files by where they begin, with few files open at a time."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Self

MOST_OPEN = 200  # a process may have 1024 files open, and some systems say 256


class Lines:
    """Files to read lines from; of more than `MOST_OPEN`, those that were read last are open."""

    def __init__(self, paths: Sequence[Path]) -> None:
        self._paths = paths
        self._open: OrderedDict[int, BinaryIO] = OrderedDict()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        while self._open:
            self._open.popitem()[1].close()

    def read(self, number: int, start: int) -> bytes:
        """Return the line of a file, by its number, that begins at a byte."""
        file = self._open.get(number)
        if file is None:
            if len(self._open) == MOST_OPEN:
                self._open.popitem(last=False)[1].close()
            file = self._open[number] = self._paths[number].open("rb")
        else:
            self._open.move_to_end(number)
        if file.tell() != start:
            file.seek(start)
        return file.readline()
