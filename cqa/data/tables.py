"""CSV, TSV and Parquet files as the JSON Lines that they would be, and names of their columns.

A row is one object: a column's name is a key, an empty cell of CSV is no key. Rows are counted as a
spreadsheet does: the first one under the names of a CSV file is row 2. Of Parquet it is row 1.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from cqa.errors import ConfigError, DataError, ResourceError

DELIMITERS = {".csv": ",", ".tsv": "\t"}
PARQUET = ".parquet"
PARQUET_MAGIC = b"PAR1"
LONGEST_CELL = 1 << 26
_ROWS = 256  # of Parquet in memory at once


def is_table(path: Path) -> bool:
    """Return whether a file's name says that it is a table."""
    return path.suffix.lower() in (*DELIMITERS, PARQUET)


def table_lines(path: Path) -> Iterator[tuple[str, bytes]]:
    """Yield (`file:row`, JSON object) for every row that is not blank.

    Raises:
        DataError: The file is no such table, or a row has more or fewer cells than there are names.
        ResourceError: A Parquet file is to be read without pyarrow.
    """
    delimiter = DELIMITERS.get(path.suffix.lower())
    rows = _parquet_rows(path) if delimiter is None else _csv_rows(path, delimiter)
    for where, row in rows:
        yield where, json.dumps(row, ensure_ascii=False, default=str).encode()


def _csv_rows(path: Path, delimiter: str) -> Iterator[tuple[str, dict[str, Any]]]:
    with path.open("rb") as raw:
        refuse_utf16(raw.read(4), path)
        raw.seek(0)
        head = raw.readline()
        raw.seek(0)
        if delimiter == "," and b"," not in head and b";" in head:  # as spreadsheets write it where
            delimiter = ";"  # a comma stands in numbers
        text = io.TextIOWrapper(raw, encoding="utf-8-sig", newline="")
        csv.field_size_limit(LONGEST_CELL)
        rows = csv.reader(text, delimiter=delimiter, strict=True)
        number = 0
        try:
            names: list[str] = []
            for number, row in enumerate(rows, start=1):
                if not any(row):
                    continue
                if not names:
                    names = _names(row, f"{path}:{number}")
                    continue
                if len(row) != len(names):
                    raise DataError(
                        f"expected {len(names)} cells, as there are names, got {len(row)}",
                        where=f"{path}:{number}",
                        hint="a cell that holds a separator or a line end stands in quotes",
                    )
                cells = zip(names, row, strict=True)
                yield f"{path}:{number}", {name: cell for name, cell in cells if name and cell}
        except csv.Error as error:
            raise DataError(
                f"expected a table, got: {error}", where=f"{path}:{number + 1}"
            ) from None
        except UnicodeDecodeError as error:
            byte = error.object[error.start]
            raise DataError(
                f"expected UTF-8, got byte {byte:#04x}",
                where=f"{path}:{number + 1}",
                hint=f"save it as UTF-8, or: iconv -f WINDOWS-1252 -t UTF-8 {path} > NEW",
            ) from None


def _names(row: list[str], where: str) -> list[str]:
    names = [name.strip() for name in row]
    twice = next((name for name in names if name and names.count(name) > 1), None)
    if twice is not None:
        raise DataError(f"expected each column once, got `{twice:.80}` twice", where=where)
    return names


def _parquet_rows(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    try:
        from pyarrow import ArrowException, parquet, types
    except ModuleNotFoundError:
        raise ResourceError(
            "expected the library pyarrow to read Parquet, got none",
            where=str(path),
            hint="pip install 'cqa-fast[tables]'",
        ) from None
    number = 0
    try:
        with parquet.ParquetFile(path) as file:
            columns = [
                field.name
                for field in file.schema_arrow
                if not (types.is_binary(field.type) or types.is_large_binary(field.type))
            ]
            for batch in file.iter_batches(batch_size=_ROWS, columns=columns):
                for row in batch.to_pylist():
                    number += 1
                    held = {k: v for k, v in row.items() if v is not None and v == v}  # not NaN
                    yield f"{path}:{number}", held
    except (ArrowException, UnicodeDecodeError) as error:
        reason = str(error).splitlines()[0][:200]
        raise DataError(
            f"expected a Parquet file, got: {reason}", where=f"{path}:{number + 1}"
        ) from None


def refuse_utf16(head: bytes, path: Path) -> None:
    """Refuse a file whose first bytes are those of UTF-16 or UTF-32.

    Raises:
        DataError: It is one.
    """
    if head.startswith((b"\xff\xfe", b"\xfe\xff")) or b"\0" in head:
        raise DataError(
            "expected UTF-8, got UTF-16 or UTF-32",
            where=f"{path}:1",
            hint=f"save it as UTF-8, or: iconv -f UTF-16 -t UTF-8 {path} > NEW",
        )


def parse_columns(columns: Iterable[str]) -> dict[str, list[str]]:
    """Return which columns each key is read from.

    Args:
        columns: Settings such as `good=chosen`; a key that comes again is read from several.

    Raises:
        ConfigError: One is not `key=column`.
    """
    named: dict[str, list[str]] = {}
    for setting in columns:
        key, sign, column = (part.strip() for part in setting.partition("="))
        if not (key and sign and column):
            raise ConfigError(
                f"expected --columns of KEY=COLUMN, got: {setting[:80]}",
                hint="such as good=chosen,bad=rejected",
            )
        named.setdefault(key, []).append(column)
    return named


def renamed(record: dict[str, Any], columns: dict[str, list[str]]) -> dict[str, Any]:
    """Return a record with keys for columns; a column that it lacks makes no key."""
    used = {column for sources in columns.values() for column in sources}
    kept = {k: v for k, v in record.items() if k not in used}
    for key, sources in columns.items():
        values = [record[column] for column in sources if record.get(column) is not None]
        if values:
            kept[key] = values[0] if len(sources) == 1 else values
    return kept
