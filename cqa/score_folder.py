"""A folder of scores: the names of its files, and how their lines are read and checked."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from cqa.data.items import LABELS, Item
from cqa.data.jsonl import read_jsonl
from cqa.errors import DataError

SCORES, ITEMS, META, SUMMARY = "scores.jsonl", "items.jsonl", "meta.json", "summary.json"
DIGEST = "row_digest"  # of all else in a row of scores.jsonl: a damaged digit is not averaged
Row = dict[str, Any]


def digest_json(value: Any) -> str:
    """Return a short sha256 of a JSON value: 16 hexadecimal digits."""
    text = json.dumps(value, sort_keys=True, ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def item_key(item: Item) -> str:
    """Identify an item by texts and labels, so that a changed one is never taken for the old."""
    return _key(item.kind, item.context, item.options, item.answer, item.labels)


def named(item: Item) -> str:
    """Return what an item and its rows are found again by: key and id."""
    return item_key(item) + item.id


def _key(*content: Any) -> str:
    return digest_json(content)


def sealed(row: Row) -> Row:
    """Return a row with the digest that its line of scores.jsonl is checked against."""
    return {**row, DIGEST: digest_json(row)}


def read_rows(path: Path) -> Iterator[Row]:
    """Yield the rows of scores.jsonl, each checked against its own digest.

    Raises:
        DataError: A line is not as it was written.
    """
    for where, row in read_jsonl(path):
        if row.pop(DIGEST, None) != digest_json(row):
            raise _damaged("row", where)
        yield row


def read_texts(path: Path) -> Iterator[Row]:
    """Yield the lines of items.jsonl, each checked against its item key.

    Raises:
        DataError: A line is not as it was written.
    """
    for where, row in read_jsonl(path):
        if not isinstance(row.get("id"), str) or row.get("item_key") != text_key(row):
            raise _damaged("item", where)
        yield row


def text_key(row: Row) -> str:
    """Return the item key of a line of items.jsonl."""
    labels = {key: row[key] for key in LABELS if key in row}
    return _key(*(row.get(key) for key in ("kind", "context", "options", "answer")), labels)


def _damaged(what: str, where: str) -> DataError:
    return DataError(
        f"expected the {what} as it was written, got a damaged line",
        where=where,
        hint="take the line out, and it is written again",
    )
