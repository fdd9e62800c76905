"""How a dataclass of this package becomes a JSON object.

Keys are the fields' names in their order, but where `stored_as`, `merged` or `unwritten` says
otherwise. What does not exist (a test of one item, a mean of none) is None, never NaN, and is
written as null; but a field whose default is None is left out where it holds that.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import Field, dataclass, fields
from typing import Any, NamedTuple


def stored_as(key: str) -> dict[str, object]:
    """Return the metadata of a field whose JSON key is not its name."""
    return {"key": key}


def key_of(field: Field[Any]) -> str:
    """Return the JSON key of a field."""
    key: str = field.metadata.get("key", field.name)
    return key


def merged(*keys: str) -> dict[str, object]:
    """Return the metadata of a field whose parts stand among the keys of what holds it.

    Args:
        keys: What the parts are called there, in their order; by default as they are.
    """
    return {"parts": keys}


def unwritten() -> dict[str, object]:
    """Return the metadata of a field that only the program itself uses."""
    return {"written": False}


@dataclass(frozen=True, slots=True)
class Result:
    """Base of what is written as a JSON object; fields are text, numbers, results …"""

    def to_json(self) -> dict[str, Any]:
        """Return the result as `json.dumps` takes it."""
        held: dict[str, Any] = {}
        for name, key, parts, optional in _fields_of(type(self)):
            value = getattr(self, name)
            if optional and value is None:
                continue
            if parts is not None:
                merged_in = _plain(value)
                held |= zip(parts or merged_in, merged_in.values(), strict=True)
            else:
                held[key] = _plain(value)
        return held


def _plain(value: Any) -> Any:
    if isinstance(value, Result):
        return value.to_json()
    if isinstance(value, (tuple, list)):
        return [_plain(part) for part in value]
    if isinstance(value, Mapping):
        return {key: _plain(part) for key, part in value.items()}
    return value


class _Field(NamedTuple):
    name: str
    key: str
    parts: tuple[str, ...] | None  # of a merged one
    optional: bool  # whether None is left out


def _fields_of(cls: type[Result]) -> tuple[_Field, ...]:
    if cls not in _FIELDS:
        _FIELDS[cls] = tuple(
            _Field(f.name, key_of(f), f.metadata.get("parts"), f.default is None)
            for f in fields(cls)
            if f.metadata.get("written", True)
        )
    return _FIELDS[cls]


_FIELDS: dict[type[Result], tuple[_Field, ...]] = {}
