"""Numbers, counts and flags of a JSON object, each of its type and within its bounds."""

from __future__ import annotations

import math
from typing import Any


def number(raw: dict[str, Any], key: str, *, least: float = 0.0, most: float = math.inf) -> float:
    """Return a number above `least` (or, where `least` is negative, from it on) and up to `most`.

    Raises:
        KeyError: There is none, or null.
        ValueError: It is no number, or outside.
    """
    value = raw.get(key)
    if value is None:
        raise KeyError(key)
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise ValueError(f"{key} {value!r:.80}")
    if not (least < value <= most or value == least < 0) or value == math.inf:
        raise ValueError(f"{key} {value!r:.80}")
    return value


def count(raw: dict[str, Any], key: str, most: int) -> int:
    """Return a positive whole number up to `most`.

    Raises:
        KeyError: There is none, or null.
        ValueError: It is no such number.
    """
    value = number(raw, key)
    if not isinstance(value, int):
        raise ValueError(f"{key} {value!r:.80}")
    if value > most:
        raise ValueError(f"{key} {value!r:.80}, more than {most:,}")
    return value


def flag(raw: dict[str, Any], key: str) -> bool:
    """Return true or false; false where there is none.

    Raises:
        ValueError: It is neither.
    """
    value = raw.get(key, False)
    if not isinstance(value, bool):
        raise ValueError(f"{key} {value!r:.80}")
    return value
