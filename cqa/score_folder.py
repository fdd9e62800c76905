"""A folder of scores: the names of its files, and how their lines are read and checked."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from cqa.data.items import LABELS, UNGROUPED, Item
from cqa.data.jsonl import parse_object, raw_lines, read_jsonl
from cqa.errors import DataError
from cqa.schema.letters import LettersRow
from cqa.schema.row_forms import CHECKSUM, Block, Form, WrittenRows, read_written
from cqa.schema.rows import ItemRow, ItemText

SCORES, ITEMS, META, SUMMARY = "scores.jsonl", "items.jsonl", "meta.json", "summary.json"
REJECTED = "rejected.jsonl"
LETTERS, LETTERS_META = "letters.jsonl", "letters.json"  # what a chat server chose
SHARD = "shard.json"  # in the folder of a part of a job
CAPABILITIES = "capabilities.json"  # what a server was found to give, where one scored
BLOCK_ROWS = 256  # that are held at once: more are no longer in the processor's cache


_canonical = json.JSONEncoder(sort_keys=True, ensure_ascii=True).encode


def digest_json(value: Any) -> str:
    """Return a short sha256 of a JSON value: 16 hexadecimal digits."""
    return _digest(_canonical(value).encode())


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:16]


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


class Copies:
    """Ids of items whose texts come again in their group, each with the first's id."""

    def __init__(self) -> None:
        self.ids: dict[str, str] = {}
        self._first: dict[tuple[str, str], str] = {}

    def add(self, item: Item | ItemText) -> bool:
        """Take the next item; return whether it is a copy."""
        first = self._first.setdefault((item.group or UNGROUPED, texts_key(item)), item.id)
        if first == item.id:
            return False
        self.ids[item.id] = first
        return True


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
    for where, line in whole_lines(path):
        yield parse_row(line, where)


def placed_rows(path: Path) -> Iterator[tuple[int, ItemRow]]:
    """Yield rows as `read_rows` does, each with the byte at which its line starts."""
    for start, where, line in _placed_lines(path):
        yield start, parse_row(line, where)


class RowName(NamedTuple):
    """What a row is known by."""

    id: str
    item_key: str
    model_key: str
    with_tokens: bool

    @property
    def full_key(self) -> str:
        """What the row's item is found again by; see `full_key`."""
        return self.item_key + self.id


def placed_names(path: Path) -> Iterator[tuple[int, RowName]]:
    """Yield what rows are known by, each checked, with the byte at which its line starts.

    Raises:
        DataError: A line is not as it was written, or the last one is torn.
    """
    for start, where, line in _placed_lines(path):
        found = read_written(line)
        if found is not None and _has_its_digest(*found):
            form, pieces = found
            item_id, item_key, model_key = form.keys(pieces)
            yield start, RowName(item_id, item_key, model_key, form.tokens)
        else:
            row = parse_row(line, where)
            with_tokens = row.options[0].token_ids is not None
            yield start, RowName(row.id, row.item_key, row.model_key, with_tokens)


def placed_texts(path: Path) -> Iterator[tuple[int, ItemText]]:
    """Yield items as `read_texts` does, each with the byte at which its line starts."""
    for start, where, line in _placed_lines(path):
        yield start, _item_as_written(_object_of(line)) or _checked_item(line, where)


def _placed_lines(path: Path) -> Iterator[tuple[int, str, bytes]]:
    start = 0
    for where, line in whole_lines(path):
        yield start, where, line
        start += len(line)
    if start != path.stat().st_size:
        raise DataError("expected lines as they were written, got empty ones", where=str(path))


def read_blocks(path: Path) -> Iterator[ItemRow | Block]:
    """Yield the rows of scores.jsonl in blocks of one model each, every row checked as it comes.

    A line that is not as it would be written anew is yielded as a row, in its place.

    Raises:
        DataError: A line is not as it was written, or the last one is torn.
    """
    return _in_blocks(path, None)


def read_blocks_again(
    path: Path, model_keys: Collection[str], ids: Collection[str] | None = None
) -> Iterator[ItemRow | Block]:
    """Yield the rows of some models from a file that `read_blocks` has found to be sound.

    Args:
        path: The file.
        model_keys: Of the models.
        ids: Of the items that are wanted, all of whose rows are yielded, and others as may be.

    Raises:
        DataError: It no longer is.
    """
    return _in_blocks(path, model_keys, ids)


def _in_blocks(
    path: Path, model_keys: Collection[str] | None, ids: Collection[str] | None = None
) -> Iterator[ItemRow | Block]:
    names = "|".join(re.escape(json.dumps(key)) for key in model_keys or ())
    mentions = re.compile(names.encode()).search
    pieces_of_keys = {f'"{key}"' for key in model_keys or ()}
    filling, may_be = _Filling(), _telling(ids)
    for where, line in whole_lines(path):
        if model_keys is not None and not (may_be(line) and mentions(line)):
            continue  # told before the line is parsed
        found = read_written(line)
        if found is not None and (model_keys is not None or _has_its_digest(*found)):
            form, pieces = found
            model = pieces[form.model_place]
            if model_keys is not None and model not in pieces_of_keys:
                continue
            if not filling.took(form, pieces, model):
                yield from filling.emptied()
                filling.took(form, pieces, model)
            continue
        yield from filling.emptied()
        row = parse_row(line, where) if model_keys is None else _parsed_again(line, where)
        if model_keys is None or row.model_key in model_keys:
            yield row
    yield from filling.emptied()


_ID_FIRST = re.compile(rb'\{"id": "([^"\\]*)", ').match  # as lines of both files begin


def _telling(ids: Collection[str] | None) -> Callable[[bytes], bool]:
    """Return what tells, without parsing a line, that it is of none of some items."""
    if ids is None:
        return lambda line: True
    wanted = {item_id.encode() for item_id in ids}

    def may_be(line: bytes) -> bool:
        found = _ID_FIRST(line)
        return found is None or found[1] in wanted

    return may_be


def _has_its_digest(form: Form, pieces: tuple[str, ...]) -> bool:
    return _digest(form.digested(pieces)) == form.text(pieces, CHECKSUM)


class _Filling:
    """A block that is being filled."""

    def __init__(self) -> None:
        self._rows: dict[Form, tuple[list[tuple[str, ...]], list[int]]] = {}
        self._kind: tuple[str, bool] | None = None  # what all rows of a block share
        self._n = 0

    def took(self, form: Form, pieces: tuple[str, ...], model: str) -> bool:
        """Take a row, if it is of the same model, with tokens as they are, and there is room."""
        kind = model, form.tokens
        if self._n == 0:
            self._kind = kind
        elif self._n == BLOCK_ROWS or kind != self._kind:
            return False
        if form not in self._rows:
            self._rows[form] = [], []
        rows, places = self._rows[form]
        rows.append(pieces)
        places.append(self._n)
        self._n += 1
        return True

    def emptied(self) -> Iterator[Block]:
        """Yield what there is, and begin anew."""
        if self._n:
            parts = tuple(WrittenRows(form, *held) for form, held in self._rows.items())
            yield Block(parts[0].texts("adapter")[0], parts)
        self._rows, self._n = {}, 0


def _parsed_again(line: bytes, where: str) -> ItemRow:
    try:
        record = json.loads(line)
    except ValueError:
        record = parse_object(line, where)
    return ItemRow.from_json(record, where)


def whole_lines(path: Path) -> Iterator[tuple[str, bytes]]:
    """Yield (`file:line`, bytes) for every line of a file of this folder.

    Raises:
        DataError: The last one is torn.
    """
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


def read_letters(path: Path) -> Iterator[LettersRow]:
    """Yield the rows of letters.jsonl.

    Raises:
        DataError: A line is not what this version writes.
    """
    for where, record in read_jsonl(path):
        yield LettersRow.from_json(record, where)


def read_texts(path: Path, ids: Collection[str] | None = None) -> Iterator[ItemText]:
    """Yield the lines of items.jsonl, each checked against its item key.

    Args:
        path: The file.
        ids: Of the items that are wanted, in a file that was read whole before; by default all.

    Raises:
        DataError: A line is not as it was written, or the last one is torn.
    """
    may_be = _telling(ids)
    for where, line in whole_lines(path):
        if not may_be(line):
            continue
        record = _object_of(line)
        if ids is None or record is None or record.get("id") in ids:
            yield _item_as_written(record) or _checked_item(line, where)


def _object_of(line: bytes) -> dict[str, Any] | None:
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return record if isinstance(record, dict) else None


def _item_as_written(record: dict[str, Any] | None) -> ItemText | None:
    """Return the item of a line whose key is right; None where it is to be said what is wrong."""
    try:
        text = ItemText.from_json(record, "")
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
