"""What may come only once in a file of any length, and is not kept in memory for that."""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Protocol, TypeVar

from cqa.data.jsonl import parse_object, raw_lines, stop_at, take_id
from cqa.errors import DataError

_FULLEST = 0.75  # share of slots in use from which the table doubles


class Fingerprints:
    """A set of texts that keeps 8 bytes of each, not the text.

    Open addressing over 64-bit hashes: 11 to 22 bytes an entry, and up to 33 while the table
    doubles. Two texts are taken for one with probability n² / 2⁶⁵ among n: 3e-8 for a million.
    """

    def __init__(self) -> None:
        self._slots = array("Q", [0]) * 1024
        self._n = 0

    def __len__(self) -> int:
        return self._n

    def __contains__(self, text: str) -> bool:
        return self._slots[self._slot(fingerprint(text))] != 0

    def have(self, texts: Iterable[str]) -> Iterator[bool]:
        """Yield of each of many texts whether it is in the set."""
        slots, mask = self._slots, len(self._slots) - 1
        for value in map(fingerprint, texts):
            slot = value & mask
            while (found := slots[slot]) != value and found:
                slot = slot + 1 & mask
            yield found != 0

    def add(self, text: str) -> bool:
        """Add a text; return whether it was new."""
        value = fingerprint(text)
        slot = self._slot(value)
        if self._slots[slot]:
            return False
        self._slots[slot] = value
        self._n += 1
        if self._n > _FULLEST * len(self._slots):
            self._double()
        return True

    def _slot(self, value: int) -> int:
        """Return where a value is, or the free slot where it belongs."""
        slots, mask = self._slots, len(self._slots) - 1
        slot = value & mask
        while slots[slot] not in (0, value):
            slot = slot + 1 & mask
        return slot

    def _double(self) -> None:
        old = self._slots
        self._slots = array("Q", [0]) * (2 * len(old))
        for value in old:
            if value:
                self._slots[self._slot(value)] = value


def fingerprint(text: str) -> int:
    """Return 64 bits that stand for a text, never 0."""
    digest = hashlib.blake2b(text.encode("utf-8"), digest_size=8).digest()
    return int.from_bytes(digest) or 1  # 0 marks a free slot


class UniqueIds:
    """Refuses an id that comes twice, in memory that does not hold the ids."""

    def __init__(self, name: Callable[[str], str], columns: Sequence[str] = ()) -> None:
        """Make an empty set.

        Args:
            name: Names a record without an id by its `file:line`.
            columns: As the records were read with.
        """
        self._name, self._columns = name, columns
        self._seen = Fingerprints()
        self._files: dict[str, int] = {}  # the last line that each was read to

    def __len__(self) -> int:
        return len(self._seen)

    def add(self, record_id: str, where: str) -> None:
        """Take the id of the record at `file:line`.

        Raises:
            DataError: It came before; the hint says where.
        """
        path, _, number = where.rpartition(":")
        read_before = int(number) <= self._files.get(path, 0)
        self._files[path] = int(number)
        if self._seen.add(record_id):
            return
        first = self._first(record_id, where) or (where if read_before else None)
        if first is not None:
            raise DataError(
                f"expected each id once, got `{record_id:.80}` again",
                where=where,
                hint=f"first seen at {first}",
            )

    def _first(self, record_id: str, where: str) -> str | None:
        """Read the files again up to `where` for a record of this id."""
        for path in self._files:
            for place, line in raw_lines(Path(path), self._columns):
                if place == where:
                    return None
                try:
                    found = take_id(parse_object(line, place), place, self._name(place))
                except DataError:
                    continue
                if found == record_id:
                    return place
        return None


class Named(Protocol):
    """A record of a file of data."""

    @property
    def id(self) -> str:
        """What the record is called."""

    @property
    def where(self) -> str:
        """The `file:line` that it stands at."""


Record = TypeVar("Record", bound=Named)


def each_once(
    records: Iterable[Record],
    refuse: Callable[[DataError], object] = stop_at,
    *,
    name: Callable[[str], str],
    columns: Sequence[str] = (),
) -> Iterator[Record]:
    """Yield records that each have an id of their own.

    Args:
        records: In the order of their files.
        refuse: Takes the error of an id that comes again, whose record is then left out.
        name: Names a record without an id by its `file:line`.
        columns: As the records were read with.
    """
    ids = UniqueIds(name, columns)
    for record in records:
        try:
            ids.add(record.id, record.where)
        except DataError as error:
            refuse(error)
        else:
            yield record


def line_id(where: str) -> str:
    """Name a sample without an id by its line."""
    return f"line-{where.rpartition(':')[2]}"


def file_line_id(where: str) -> str:
    """Name an item without an id by its file, since there may be several, and its line."""
    path, _, number = where.rpartition(":")
    return f"{Path(path).stem}-{number}"
