"""A folder of scores: the names of its files, and how their lines are read and checked."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from cqa.data.items import LABELS, UNGROUPED, Item
from cqa.data.jsonl import parse_object, raw_lines
from cqa.errors import DataError
from cqa.schema.rows import ItemRow, ItemText

SCORES, ITEMS, META, SUMMARY = "scores.jsonl", "items.jsonl", "meta.json", "summary.json"
REJECTED = "rejected.jsonl"
LETTERS, LETTERS_META = "letters.jsonl", "letters.json"  # what a chat server chose
SHARD = "shard.json"  # in the folder of a part of a job
CAPABILITIES = "capabilities.json"  # what a server was found to give, where one scored
CHECKSUM = "row_digest"  # of all else in a row of scores.jsonl: a damaged digit is not averaged


_canonical = json.JSONEncoder(sort_keys=True, ensure_ascii=True).encode


def digest_json(value: Any) -> str:
    """Return a short sha256 of a JSON value: 16 hexadecimal digits."""
    return hashlib.sha256(_canonical(value).encode()).hexdigest()[:16]


class ItemsDigest:
    """Which items: the sum of a sha256 of each, modulo 2^256, so in any order."""

    def __init__(self) -> None:
        self._sum = 0

    def add(self, full_key: str) -> None:
        """Take an item by what it and its rows are found again by."""
        self._sum += int.from_bytes(hashlib.sha256(full_key.encode()).digest())

    def hexdigest(self) -> str:
        """Return 64 hexadecimal digits."""
        return f"{self._sum % (1 << 256):064x}"


def item_key(item: Item) -> str:
    """Identify an item by texts and labels, so that a changed one is never taken for the old."""
    return digest_json((item.kind, item.context, item.options, item.answer, item.labels))


def texts_key(item: Item | ItemText) -> str:
    """Identify what is scored of an item, whatever its id and labels are."""
    return digest_json((item.kind, item.context, item.options, item.answer))


def copies(items: Iterable[Item | ItemText]) -> dict[str, str]:
    """Return the ids of items whose texts come again in their group, each with the first's id."""
    first: dict[tuple[str, str], str] = {}
    found = {}
    for item in items:
        name = first.setdefault((item.group or UNGROUPED, texts_key(item)), item.id)
        if name != item.id:
            found[item.id] = name
    return found


def full_key(item: Item) -> str:
    """Return what an item and its rows are found again by: texts, labels and id."""
    return item_key(item) + item.id


def with_checksum(record: Mapping[str, Any]) -> dict[str, Any]:
    """Return a line of scores.jsonl with the digest that it is checked against."""
    return {**record, CHECKSUM: digest_json(record)}


def read_rows(path: Path) -> Iterator[ItemRow]:
    """Yield the rows of scores.jsonl, each checked against its own digest.

    Raises:
        DataError: A line is not as it was written, or the last one is torn.
    """
    for where, line in _whole_lines(path):
        yield parse_row(line, where)


def placed_rows(path: Path) -> Iterator[tuple[int, ItemRow]]:
    """Yield rows as `read_rows` does, each with the byte at which its line starts."""
    for start, where, line in _placed_lines(path):
        yield start, parse_row(line, where)


def placed_texts(path: Path) -> Iterator[tuple[int, ItemText]]:
    """Yield items as `read_texts` does, each with the byte at which its line starts."""
    for start, where, line in _placed_lines(path):
        yield start, _parse_text(line, where)


def _placed_lines(path: Path) -> Iterator[tuple[int, str, bytes]]:
    start = 0
    for where, line in _whole_lines(path):
        yield start, where, line
        start += len(line)
    if start != path.stat().st_size:
        raise DataError("expected lines as they were written, got empty ones", where=str(path))


def read_rows_again(path: Path, model_keys: Collection[str]) -> Iterator[ItemRow]:
    """Yield the rows of some models from a file that `read_rows` has found to be sound.

    Raises:
        DataError: It no longer is.
    """
    quoted = [json.dumps(key).encode() for key in model_keys]
    for where, line in _whole_lines(path):
        if any(key in line for key in quoted):  # told before the line is parsed
            try:
                record = json.loads(line)
            except ValueError:
                record = parse_object(line, where)
            row = ItemRow.from_json(record, where)
            if row.model_key in model_keys:
                yield row


def _whole_lines(path: Path) -> Iterator[tuple[str, bytes]]:
    for where, line in raw_lines(path):
        if not line.endswith(b"\n"):
            raise DataError(
                "expected a whole last line, got a torn one",
                where=where,
                hint="scoring goes on or was stopped; the same cqa-fast score command continues it",
            )
        yield where, line


def parse_row(line: bytes, where: str) -> ItemRow:
    """Parse and check one line of scores.jsonl.

    Raises:
        DataError: It is not as it was written.
    """
    record = _as_written(line)
    if record is None:
        record = parse_object(line, where)  # says what is wrong with the line, if that is all
        if record.pop(CHECKSUM, None) != digest_json(record):
            raise _damaged("row", where)
    return ItemRow.from_json(record, where)


def _as_written(line: bytes) -> dict[str, Any] | None:
    """Return the object of a line whose digest is right, which makes other checks of it needless.

    They take as long as all else; None stands for a line that they are to be made of.
    """
    try:
        record = json.loads(line)
        if isinstance(record, dict) and record.pop(CHECKSUM, None) == digest_json(record):
            return record
    except (ValueError, RecursionError):
        pass
    return None


def read_texts(path: Path) -> Iterator[ItemText]:
    """Yield the lines of items.jsonl, each checked against its item key.

    Raises:
        DataError: A line is not as it was written, or the last one is torn.
    """
    for where, line in _whole_lines(path):
        yield _parse_text(line, where)


def _parse_text(line: bytes, where: str) -> ItemText:
    return _item_as_written(line) or _checked_item(line, where)


def _item_as_written(line: bytes) -> ItemText | None:
    """Return the item of a line whose key is right; None where it is to be said what is wrong."""
    try:
        text = ItemText.from_json(json.loads(line), "")
        return text if text.item_key == text_key(text) else None
    except (ValueError, RecursionError, DataError):
        return None


def _checked_item(line: bytes, where: str) -> ItemText:
    text = ItemText.from_json(parse_object(line, where), where)
    if text.item_key != text_key(text):
        raise _damaged("item", where)
    return text


def text_key(text: ItemText) -> str:
    """Return the item key that the texts and labels of a line of items.jsonl make."""
    labels = {key: value for key in LABELS if (value := getattr(text, key)) is not None}
    return digest_json((text.kind, text.context, text.options, text.answer, labels))


def _damaged(what: str, where: str) -> DataError:
    return DataError(
        f"expected the {what} as it was written, got a damaged line",
        where=where,
        hint="take the line out, and it is written again",
    )
