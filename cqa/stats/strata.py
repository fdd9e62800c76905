"""Before or after a cutoff date: which texts the base may have been trained on (§4.5)."""

from __future__ import annotations

import re
from datetime import date, timedelta
from typing import TYPE_CHECKING

from cqa.errors import ConfigError

if TYPE_CHECKING:  # settings read this, and `--help` is not to wait for the schema
    from cqa.schema.summary import Stratum

STRATA: tuple[Stratum, ...] = ("before", "after", "unknown")
_DATE = re.compile(r"(\d{4})(?:-(\d\d)(?:-(\d\d)(?:[T ].*)?)?)?")


def span(text: str) -> tuple[date, date] | None:
    """Return the first and last day that `2024`, `2024-06` or `2024-06-30` may mean, else None."""
    match = _DATE.fullmatch(text.strip())
    if match is None:
        return None
    year, month, day = (int(part) if part else None for part in match.groups())
    try:
        first = date(year or 0, month or 1, day or 1)
        if day:
            return first, first
        following = date(first.year + (month in (None, 12)), (month or 12) % 12 + 1, 1)
    except ValueError:
        return None
    return first, following - timedelta(days=1)


def read_cutoff(text: str) -> date:
    """Return the last day of the base's training data.

    Raises:
        ConfigError: The text is not a date.
    """
    found = span(text)
    if found is None:
        raise ConfigError(f"expected cutoff to be a date such as 2024-06-30, got: {text}")
    return found[1]


def stratum(published_at: str | None, cutoff: date) -> Stratum:
    """Say whether a text appeared before a cutoff; `unknown` unless its date decides that."""
    found = span(published_at) if published_at else None
    if found is None:
        return "unknown"
    first, last = found
    if last <= cutoff:
        return "before"
    return "after" if first > cutoff else "unknown"
