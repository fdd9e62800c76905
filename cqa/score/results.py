"""The result folder: rows appended a pass at a time, and found again when a run is resumed."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from cqa.data.items import Item
from cqa.data.jsonl import read_jsonl
from cqa.data.unique import Fingerprints
from cqa.errors import DataError
from cqa.files import reported

SCORES, ITEMS, META, SUMMARY = "scores.jsonl", "items.jsonl", "meta.json", "summary.json"
Row = dict[str, Any]


def digest_json(value: Any) -> str:
    """Return a short sha256 of a JSON value: 16 hexadecimal digits."""
    text = json.dumps(value, sort_keys=True, ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def item_key(item: Item) -> str:
    """Identify an item by texts and labels, so that a changed one is never taken for the old."""
    return digest_json([item.kind, item.context, item.options, item.answer, item.labels])


def known_as(item: Item) -> str:
    """Return what a folder knows an item by: its key and its id."""
    return item_key(item) + item.id


class Results:
    """scores.jsonl and items.jsonl of one folder, append-only.

    A row is known by (item id, item key, model key): by texts and labels, not by name alone. A
    partial last line, left by a kill, is cut off. What is kept in memory of the rows of a folder
    that is resumed is 11 to 21 bytes each, one model at a time, and twice that while the items are
    compared; of new rows nothing is kept.
    """

    def __init__(self, folder: Path, *, with_tokens: bool = False) -> None:
        """Open the folder.

        Args:
            folder: Where the files are or will be.
            with_tokens: Whether a row counts only if it has per-token values; of two rows of an
                item under one model the later counts.
        """
        self._scores, self._items = folder / SCORES, folder / ITEMS
        for path in (self._scores, self._items):
            _cut_partial_line(path)
        self._with_tokens = with_tokens
        self._n_held = _count_lines(self._scores)
        with reported(folder):
            self._file = self._scores.open("ab")

    def done(self, model_key: str) -> Fingerprints:
        """Return `known_as` of the items whose row under a model was there when this was opened.

        Raises:
            DataError: A complete line of an earlier run is damaged.
        """
        found = Fingerprints()
        for row in islice(_rows(self._scores), self._n_held):
            counts = not self._with_tokens or "token_ids" in row["options"][0]
            if counts and row["model_key"] == model_key:
                found.add(row["item_key"] + row["id"])
        return found

    def write_items(self, items: Iterable[Item]) -> None:
        """Append the texts of items that are not there yet: all of them, or none.

        Raises:
            DataError: An id is there with another text, or a line of an earlier run is damaged.
        """
        ids, keyed = Fingerprints(), Fingerprints()
        for row in _rows(self._items):
            ids.add(row["id"])
            keyed.add(row["item_key"] + row["id"])
        with reported(self._items), self._items.open("ab") as file:
            size = file.tell()
            try:
                for item in items:
                    if known_as(item) in keyed:
                        continue
                    if item.id in ids:
                        raise _changed(item)
                    file.write(_line(_item_record(item)))
            except BaseException:
                file.truncate(size)
                raise
            _flush(file)

    def append(self, rows: Iterable[Row]) -> None:
        """Append the rows of one pass, all of them on disk when this returns."""
        with reported(self._scores):
            self._file.write(b"".join(map(_line, rows)))
            _flush(self._file)

    def rows(self, model_keys: set[str], items: Iterable[Item]) -> Iterator[Row]:
        """Yield the rows of some items under some models, in the order of writing."""
        asked = Fingerprints()
        for item in items:
            asked.add(known_as(item))
        for row in _rows(self._scores):
            if row["model_key"] in model_keys and row["item_key"] + row["id"] in asked:
                yield row

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def _item_record(item: Item) -> Row:
    return {
        **item.extra,
        "id": item.id,
        "item_key": item_key(item),
        "kind": item.kind,
        "context": item.context,
        "options": list(item.options),
        "answer": item.answer,
        **item.labels,
    }


def _changed(item: Item) -> DataError:
    return DataError(
        f"expected item `{item.id}` as this folder holds it, got other texts or labels",
        where=item.where,
        hint="name another --out",
    )


def _count_lines(path: Path) -> int:
    if not path.exists():
        return 0
    with path.open("rb") as file:
        return sum(block.count(b"\n") for block in iter(lambda: file.read(1 << 16), b""))


def _rows(path: Path) -> Iterator[Row]:
    return (row for _, row in read_jsonl(path)) if path.exists() else iter(())


def _line(record: Row) -> bytes:
    return json.dumps(record, ensure_ascii=False, allow_nan=False).encode() + b"\n"


def _flush(file: Any) -> None:
    file.flush()
    os.fsync(file.fileno())


def _cut_partial_line(path: Path) -> None:
    if not path.exists():
        return
    with reported(path), path.open("rb+") as file:
        size = file.seek(0, os.SEEK_END)
        keep, step = size, 1 << 16
        while keep > 0:
            start = max(0, keep - step)
            file.seek(start)
            newline = file.read(keep - start).rfind(b"\n")
            if newline >= 0:
                keep = start + newline + 1
                break
            keep = start
        file.truncate(keep)
