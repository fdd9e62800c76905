"""Records: results that are read again.

A record is written as every result is. It is read with every value checked against the type of its
field: a key that is missing gets the field's default, or None where the type allows that; unknown
keys are passed over.
"""

from __future__ import annotations

import math
import types
from collections.abc import Callable, Mapping
from dataclasses import MISSING, dataclass, fields
from typing import Any, Literal, NamedTuple, Self, Union, get_args, get_origin, get_type_hints

from cqa.errors import DataError
from cqa.schema.written import Result, key_of


@dataclass(frozen=True, slots=True)
class Record(Result):
    """Base of what is read from a JSON object too; fields are text, numbers, records …"""

    @classmethod
    def from_json(cls, value: object, where: str) -> Self:
        """Check a parsed JSON object and return it as a record.

        Args:
            value: What the JSON text says.
            where: Its file, or `file:line`.

        Raises:
            DataError: A key is missing, a value is of another type, or `problem` finds one.
        """
        try:
            return _reader_of(cls).read(value, "")  # type: ignore[no-any-return]
        except _UnfitError as error:
            raise DataError(str(error), where=where) from None

    def problem(self) -> str | None:
        """Say what is wrong between fields that are each of their type; None if nothing is."""
        return None


class _UnfitError(Exception):
    """A value is not what its field holds."""


def _mismatch(path: str, expected: str, value: object) -> _UnfitError:
    got = "an object" if isinstance(value, dict) else f"{value!r:.80}"
    return _UnfitError(f"expected {f'`{path}` to be ' if path else ''}{expected}, got: {got}")


class _Field(NamedTuple):
    name: str
    key: str
    reader: _Reader
    default: Any  # MISSING where there is none


class _Reader(NamedTuple):
    """How values of one type are checked."""

    expected: str  # such as "a whole number"
    fits: Callable[[object], bool]  # whether a value is of the type, its parts not looked at
    take: Callable[[Any, str], Any]  # a value that fits, and its path in the record
    as_it_is: frozenset[type] = frozenset()  # types of which every value is taken unchanged

    def leaves(self, value: object) -> bool:
        """Whether a value is read as it is: what most are, told without a call for each part."""
        kind = type(value)
        return kind in self.as_it_is and (kind is not float or math.isfinite(value))  # type: ignore[arg-type]

    def read(self, value: object, path: str) -> Any:
        if not self.fits(value):
            raise _mismatch(path, self.expected, value)
        return self.take(value, path)


def _fields_of(cls: type[Record]) -> tuple[_Field, ...]:
    if cls not in _FIELDS:
        hints = get_type_hints(cls)
        _FIELDS[cls] = tuple(
            _Field(f.name, key_of(f), _reader_of(hints[f.name]), f.default) for f in fields(cls)
        )
    return _FIELDS[cls]


def _take_record(cls: type[Record], value: Mapping[str, object], path: str) -> Record:
    values = {}
    for name, key, reader, default in _fields_of(cls):
        if key in value:
            held = value[key]
            if not reader.leaves(held):
                held = reader.read(held, f"{path}.{key}" if path else key)
            values[name] = held
        elif default is not MISSING:
            values[name] = default
        elif reader.fits(None):
            values[name] = None
        else:
            raise _UnfitError(f"expected `{f'{path}.{key}' if path else key}`, got none")
    record = cls(**values)
    if problem := record.problem():
        raise _UnfitError(f"{problem} in `{path}`" if path else problem)
    return record


def _reader_of(hint: Any) -> _Reader:
    """Return the reader of a field's type."""
    if hint not in _READERS:
        _READERS[hint] = _new_reader(hint)
    return _READERS[hint]


def _new_reader(hint: Any) -> _Reader:
    """Make a reader.

    Raises:
        TypeError: JSON has no such type, which is a bug of the class that uses it.
    """
    if isinstance(hint, type) and issubclass(hint, Record):
        return _Reader("an object", _is(dict), lambda value, path: _take_record(hint, value, path))
    origin, parts = get_origin(hint), get_args(hint)
    if origin is Literal:
        names = " or ".join(map(str, parts))
        return _Reader(names, lambda value: isinstance(value, str) and value in parts, _as_it_is)
    if origin in (Union, types.UnionType):
        return _union([_reader_of(part) for part in parts])
    if origin is tuple and len(parts) == 2 and parts[1] is Ellipsis:
        return _Reader("an array", _is(list), _each(_reader_of(parts[0])))
    if origin is tuple:
        return _pair([_reader_of(part) for part in parts])
    if origin in (dict, Mapping) and parts[0] is str:
        return _Reader("an object", _is(dict), _values(_reader_of(parts[1])))
    raise TypeError(f"no JSON value is a {hint}")


def _union(readers: list[_Reader]) -> _Reader:
    def take(value: object, path: str) -> Any:
        return next(reader for reader in readers if reader.fits(value)).take(value, path)

    as_it_is = frozenset[type]().union(*(reader.as_it_is for reader in readers))
    return _Reader(
        " or ".join(reader.expected for reader in readers),
        lambda value: any(reader.fits(value) for reader in readers),
        take,
        as_it_is - {int} if float in as_it_is else as_it_is,
    )


def _pair(readers: list[_Reader]) -> _Reader:
    def take(value: list[object], path: str) -> tuple[Any, ...]:
        parts = zip(readers, value, strict=True)
        return tuple(reader.read(part, f"{path}[{k}]") for k, (reader, part) in enumerate(parts))

    n = len(readers)
    return _Reader(
        f"an array of {n}", lambda value: isinstance(value, list) and len(value) == n, take
    )


def _each(reader: _Reader) -> Callable[[list[object], str], tuple[Any, ...]]:
    def take(value: list[object], path: str) -> tuple[Any, ...]:
        if all(map(reader.leaves, value)):
            return tuple(value)
        return tuple(reader.read(part, f"{path}[{k}]") for k, part in enumerate(value))

    return take


def _values(reader: _Reader) -> Callable[[dict[str, object], str], dict[str, Any]]:
    def take(value: dict[str, object], path: str) -> dict[str, Any]:
        return {key: reader.read(part, f"{path}.{key}") for key, part in value.items()}

    return take


def _is(kind: type) -> Callable[[object], bool]:
    return lambda value: isinstance(value, kind)


def _is_number(value: object) -> bool:
    if isinstance(value, int):
        return not isinstance(value, bool) and value.bit_length() < 1024  # a double holds it
    return isinstance(value, float) and math.isfinite(value)


def _as_it_is(value: Any, _: str) -> Any:
    return value


_FIELDS: dict[type[Record], tuple[_Field, ...]] = {}
_READERS: dict[Any, _Reader] = {
    Any: _Reader("anything", lambda _: True, _as_it_is),
    type(None): _Reader("null", lambda value: value is None, _as_it_is, frozenset({type(None)})),
    str: _Reader("text", _is(str), _as_it_is, frozenset({str})),
    bool: _Reader("true or false", _is(bool), _as_it_is, frozenset({bool})),
    int: _Reader("a whole number", lambda value: type(value) is int, _as_it_is, frozenset({int})),
    float: _Reader(
        "a finite number", _is_number, lambda value, _: float(value), frozenset({float})
    ),
}
