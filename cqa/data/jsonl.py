"""JSON Lines, strictly: one object a line, `\\n` only, UTF-8, errors with file and line.

A table (see `cqa.data.tables`) is read as the JSON Lines that it would be.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, NoReturn, TypeVar

from cqa.data.hub import data_files, is_hub, path_text
from cqa.data.tables import (
    PARQUET_MAGIC,
    is_table,
    parse_columns,
    refuse_utf16,
    renamed,
    table_lines,
)
from cqa.errors import DataError
from cqa.text import listed

BOM = b"\xef\xbb\xbf"
LONGEST_LINE_BYTES = 1 << 26  # 64 MiB: a file without line ends is not read into memory
LONGEST_NAME = 1024  # characters of an id or a label
MOST_NAMES = 12  # keys of a record that a hint tells
Record = TypeVar("Record")


def stop_at(error: DataError) -> NoReturn:
    """End reading at the first bad line."""
    raise error


def read_records(
    path: Path,
    parse: Callable[[dict[str, Any], str], Record],
    *,
    noun: str,
    refuse: Callable[[DataError], object] = stop_at,
    columns: Sequence[str] | None = None,
    wanted: Callable[[], bool] = lambda: True,
) -> Iterator[Record]:
    """Yield every line of a file as a record.

    Args:
        path: JSON Lines, or a table.
        parse: Makes a record of an object and its `file:line`.
        noun: What a record is called in messages.
        refuse: Takes the error of a bad line, which is then left out.
        columns: See `raw_lines`; None where the command cannot name any, so no hint says that it
            can.
        wanted: Called at each line: whether it is parsed, or passed over.

    Raises:
        DataError: The file cannot be read or holds no line; what `refuse` raises.
    """
    empty = True
    for where, line in raw_lines(path, columns or ()):
        empty = False
        if not wanted():
            continue
        try:
            record = parse(parse_object(line, where), where)
        except DataError as error:
            if columns is not None and error.absent:
                names = ",".join(f"{key}=NAME" for key in error.absent)
                error.hint = f"{error.hint}; --columns {names} reads another column"
            refuse(error)
        else:
            yield record
    if empty:
        raise DataError(f"expected at least one {noun}, got an empty file", where=path_text(path))


def read_jsonl(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield (`file:line`, object) for every line that is not blank.

    Raises:
        DataError: The file cannot be read, or a line is not one JSON object in UTF-8.
    """
    for where, line in raw_lines(path):
        yield where, parse_object(line, where)


def raw_lines(path: Path, columns: Sequence[str] = ()) -> Iterator[tuple[str, bytes]]:
    """Yield (`file:line`, bytes) for every line that is not blank, or row of a table.

    Lines end at `\\n` alone, so U+2028 or U+0085 inside a literary text splits nothing.

    Args:
        path: JSON Lines, or a table.
        columns: Keys and the columns they are read from, such as `good=chosen`; lines of JSON that
            hold such a column are yielded as they would be with that key.

    Raises:
        DataError: The file cannot be read, can be read only once, or has a line that is too long.
        ConfigError: `columns` cannot be read.
    """
    named = parse_columns(columns)
    for where, line in _lines(path):
        yield where, _renamed_line(line, where, named) if named else line


def _renamed_line(line: bytes, where: str, columns: dict[str, list[str]]) -> bytes:
    try:
        record = parse_object(line, where)
    except DataError:
        return line  # the error is that of whoever reads it
    return json.dumps(renamed(record, columns)).encode()


def held_columns(paths: Iterable[Path], columns: Sequence[str]) -> tuple[str, ...]:
    """Return the settings of `columns` whose column stands in some record of the files.

    No more is read than it takes to see them. A line that is no record is for whoever reads it.

    Raises:
        DataError: A file cannot be read.
        ConfigError: `columns` cannot be read.
    """
    left = {setting: parse_columns([setting]).popitem()[1][0] for setting in columns}
    for path in paths if left else ():
        for where, line in raw_lines(path):
            with suppress(DataError):
                record = parse_object(line, where)
                left = {s: column for s, column in left.items() if column not in record}
            if not left:
                return tuple(columns)
    return tuple(setting for setting in columns if setting not in left)


def check_columns(paths: Sequence[Path], columns: Sequence[str]) -> None:
    """Refuse a named column that is in no record: mistyped, it would leave its key empty.

    A record may lack a column that another one has, and a file one that another file has.

    Args:
        paths: All files that a command reads with these columns.
        columns: See `raw_lines`.

    Raises:
        DataError: A column is in no record, or a file cannot be read.
        ConfigError: `columns` cannot be read.
    """
    held = held_columns(paths, columns)
    absent = next((setting for setting in columns if setting not in held), None)
    if absent is None:
        return
    ((key, (column,)),) = parse_columns([absent]).items()
    names = ", ".join(f"`{name:.40}`" for name in _first_names(paths))
    raise DataError(
        f"expected a record with the column `{column:.80}`, which --columns names for `{key:.80}`, "
        "got none",
        where=listed(map(path_text, paths)),
        hint=f"the first one has {names}" if names else None,
    )


def _first_names(paths: Iterable[Path]) -> list[str]:
    """Return the first keys of the first record, if there is one."""
    for path in paths:
        for where, line in raw_lines(path):
            with suppress(DataError):
                return list(parse_object(line, where))[:MOST_NAMES]
    return []


def _lines(path: Path) -> Iterator[tuple[str, bytes]]:
    if is_hub(path):
        lines_of_all = (line for file in data_files(path) for _, line in _lines(file))
        for row, line in enumerate(lines_of_all, start=1):  # of the split, whatever its files
            yield f"{path_text(path)}:{row}", line
        return
    try:
        if path.exists() and not (path.is_file() or path.is_dir()):
            raise DataError(
                "expected a regular file, got a pipe or a device", where=str(path),
                hint="a file is read more than once; save it first",
            )  # fmt: skip
        with path.open("rb") as file:
            head = file.read(4)
            if is_table(path) or head == PARQUET_MAGIC:
                yield from table_lines(path)
                return
            refuse_utf16(head, path)
            file.seek(0)
            lines, name = iter(partial(file.readline, LONGEST_LINE_BYTES + 1), b""), str(path)
            for number, line in enumerate(lines, start=1):
                if len(line) > LONGEST_LINE_BYTES:
                    raise DataError(
                        f"expected a line of at most {LONGEST_LINE_BYTES >> 20} MiB, got a longer "
                        "one",
                        where=f"{path}:{number}",
                        hint=_hint(line[:80]),
                    )
                if number == 1:
                    line = line.removeprefix(BOM)
                if line and not line.isspace():
                    yield f"{name}:{number}", line
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        saved = path / "state.json"  # of the library `datasets`
        raise DataError(
            f"expected a readable JSON Lines file, got: {reason}",
            where=str(path),
            hint="a saved dataset becomes a file with its `to_parquet`" if saved.exists() else None,
        ) from None


def parse_object(line: bytes, where: str) -> dict[str, Any]:
    """Parse one line as one JSON object, refusing what JSON leaves undefined."""

    def sound(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        record = dict(pairs)
        for key in record:
            check_text(key, "a key", where)
        if len(record) != len(pairs):
            (twice, _), *_ = Counter(key for key, _ in pairs).most_common(1)
            raise DataError(f"expected each key once, got `{twice:.80}` twice", where=where)
        return record

    def finite(number: str) -> float:
        if math.isinf(value := float(number)):
            raise DataError(f"expected numbers that a double holds, got: {number:.80}", where=where)
        return value

    def no_constants(name: str) -> float:
        raise DataError(f"expected JSON numbers, got: {name}", where=where)

    try:
        text = line.decode("utf-8").rstrip("\r\n")
        record = json.loads(
            text, object_pairs_hook=sound, parse_float=finite, parse_constant=no_constants
        )
    except UnicodeDecodeError as error:
        raise DataError(
            f"expected UTF-8, got byte {error.object[error.start]:#04x}", where=where
        ) from None
    except json.JSONDecodeError as error:
        raise DataError(
            "expected one JSON object, got other text: "
            f"{error.msg.removesuffix(' at')} at column {error.colno}",
            where=where,
            hint=_hint(line),
        ) from None
    except (RecursionError, ValueError) as error:
        raise DataError(f"expected a plain JSON object, got: {error}", where=where) from None
    if not isinstance(record, dict):
        raise DataError(
            f"expected one JSON object, got: {_type_name(record)}", where=where, hint=_hint(line)
        )
    return record


def _hint(line: bytes) -> str | None:
    if line.lstrip().startswith(b"["):
        return "a JSON array becomes JSON Lines with: jq -c '.[]' FILE.json > FILE.jsonl"
    return None


def take_text(record: dict[str, Any], key: str, where: str) -> str:
    """Return a field that must hold non-empty text."""
    value = record.get(key)
    if not isinstance(value, str):
        got = f"`{key}` is {_type_name(value)}" if key in record else f"no `{key}`"
        held = ", ".join(f"`{k:.40}`" for k in list(record)[:MOST_NAMES])
        absent = key not in record and bool(record)
        in_line = where.rpartition(":")[2].isdecimal()  # a column is no key of an object within
        raise DataError(
            f"expected text in `{key}`, got: {got}",
            where=where,
            hint=f"it has {held}" if absent else None,
            absent=(key,) if absent and in_line else (),
        )
    check_text(value, key, where)
    if not value:
        raise DataError(f"expected text in `{key}`, got: an empty text", where=where)
    return value


def take_words(record: dict[str, Any], key: str, where: str) -> str:
    """Return a field that must hold text of more than white space."""
    text = take_text(record, key, where)
    if text.isspace():
        raise DataError(f"expected words in `{key}`, got: white space alone", where=where)
    return text


def take_id(record: dict[str, Any], where: str, otherwise: str) -> str:
    """Return a record's id; a whole number is taken as text, and a record without one gets one.

    Raises:
        DataError: It is something else, or longer than any name.
    """
    value = record.get("id")
    if value is None:
        return otherwise
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    name = take_text(record, "id", where)
    if len(name) > LONGEST_NAME:
        raise DataError(
            f"expected an id of at most {LONGEST_NAME} characters, got {len(name):,}", where=where
        )
    return name


def check_text(value: str, key: str, where: str) -> None:
    """Refuse text that no tokenizer can take: lone surrogates, NUL."""
    if "\x00" in value:
        raise DataError(f"expected text in `{key}`, got: a NUL character", where=where)
    try:
        value.encode("utf-8")
    except UnicodeEncodeError:
        raise DataError(
            f"expected Unicode in `{key}`, got: a lone surrogate", where=where
        ) from None


def _type_name(value: Any) -> str:
    names = {dict: "an object", list: "an array", str: "text", bool: "a truth value"}
    if value is None:
        return "null"
    return names.get(type(value), "a number")
