"""The result folder: rows appended a pass at a time, and found again when a run is resumed."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from cqa.data.items import Item
from cqa.data.unique import Fingerprints
from cqa.errors import DataError
from cqa.files import AppendedFile, inside
from cqa.schema.rows import ItemRow, ItemText
from cqa.score_folder import (
    ITEMS,
    SCORES,
    ItemsDigest,
    full_key,
    item_key,
    read_rows,
    read_texts,
    with_checksum,
)


@dataclass(frozen=True, slots=True)
class ItemsHeld:
    """The items of a command, as places in items.jsonl."""

    lines: tuple[tuple[int, int], ...]  # first and last of each run of lines, from 1
    digest: str

    @property
    def n_items(self) -> int:
        """How many they are."""
        return sum(last - first + 1 for first, last in self.lines)


class Results:
    """scores.jsonl and items.jsonl of one folder, append-only.

    A row is known by (item id, item key, model key): by texts and labels, not by name alone. A
    partial last line, left by a kill, is cut off. What is kept in memory of the rows of a folder
    that is resumed is one entry of `Fingerprints` each, one model at a time, and two while the
    items are compared; of new rows nothing is kept.
    """

    def __init__(self, folder: Path, *, with_tokens: bool = False) -> None:
        """Open the folder.

        Args:
            folder: Where the files are or will be.
            with_tokens: Whether a row counts only if it has per-token values; of two rows of an
                item under one model the later counts.
        """
        self._with_tokens = with_tokens
        self._scores = AppendedFile(inside(folder, SCORES))
        self._items = AppendedFile(inside(folder, ITEMS))
        self.n_held = 0  # rows that were there when this was opened
        try:
            self._scores.cut_partial_line()
            self._items.cut_partial_line()
            self.n_held = _count_lines(self._scores.path)
        except BaseException:
            self.close()
            raise

    def done(self, model_key: str) -> Fingerprints:
        """Return the items, as `full_key`, whose row under a model was there when this was opened.

        Raises:
            DataError: A complete line of an earlier run is damaged.
        """
        done = Fingerprints()
        for row in islice(read_rows(self._scores.path), self.n_held):
            counts = not self._with_tokens or row.options[0].token_ids is not None
            if counts and row.model_key == model_key:
                done.add(row.full_key)
        return done

    def write_items(self, items: Iterable[Item]) -> ItemsHeld:
        """Append the texts of items that are not there yet: all of them, or none.

        Args:
            items: They are gone through twice.

        Returns:
            Where they are.

        Raises:
            DataError: An id is there with another text, or a line of an earlier run is damaged.
        """
        self._append_items(items)
        return self.held(items)

    def held(self, items: Iterable[Item]) -> ItemsHeld:
        """Return which lines of items.jsonl some items are, in whatever order they come.

        Raises:
            DataError: A line of an earlier run is damaged.
        """
        wanted = Fingerprints()
        for item in items:
            wanted.add(full_key(item))
        digest, lines = ItemsDigest(), list[tuple[int, int]]()
        for number, text in enumerate(read_texts(self._items.path), start=1):
            if text.full_key in wanted:
                digest.add(text.full_key)
                first = lines.pop()[0] if lines and lines[-1][1] == number - 1 else number
                lines.append((first, number))
        return ItemsHeld(tuple(lines), digest.hexdigest())

    def _append_items(self, items: Iterable[Item]) -> None:
        ids, keyed = Fingerprints(), Fingerprints()
        for text in read_texts(self._items.path):
            ids.add(text.id)
            keyed.add(text.full_key)
        with self._items.whole():
            for item in items:
                if full_key(item) in keyed:
                    continue
                if item.id in ids:
                    raise _changed(item)
                self._items.append(_line(_item_record(item)))
            self._items.sync()

    def append(self, rows: Iterable[ItemRow]) -> None:
        """Append the rows of one pass, all of them on disk when this returns."""
        self._scores.append(b"".join(_line(with_checksum(row.to_json())) for row in rows))
        self._scores.sync()

    def close(self) -> None:
        """Close the files."""
        self._scores.close()
        self._items.close()


def _item_record(item: Item) -> dict[str, Any]:
    text = ItemText(
        id=item.id,
        item_key=item_key(item),
        kind=item.kind,
        context=item.context,
        options=item.options,
        answer=item.answer,
        **item.labels,
    )
    return item.extra | text.to_json()


def _changed(item: Item) -> DataError:
    return DataError(
        f"expected item `{item.id}` as this folder holds it, got other texts or labels",
        where=item.where,
        hint="name another --out",
    )


def _count_lines(path: Path) -> int:
    with path.open("rb") as file:
        return sum(block.count(b"\n") for block in iter(lambda: file.read(1 << 16), b""))


def _line(record: dict[str, Any]) -> bytes:
    return json.dumps(record, ensure_ascii=False, allow_nan=False).encode() + b"\n"
