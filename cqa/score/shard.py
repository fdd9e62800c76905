"""One of K parts of a job: items are dealt by their id, so in the same way whatever files say."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass

from cqa.config import require

MOST_SHARDS = 100_000
_SPELLING = re.compile(r"(\d{1,6})/(\d{1,6})")


@dataclass(frozen=True, slots=True)
class Shard:
    """Part `number`, from 1, of `count`."""

    number: int
    count: int

    def __str__(self) -> str:
        return f"{self.number}/{self.count}"

    def holds(self, item_id: str) -> bool:
        """Return whether an item is dealt to this part: by sha256 of its id alone."""
        return dealt_to(item_id, self.count) == self.number


def dealt_to(item_id: str, count: int) -> int:
    """Return the part of `count`, from 1, that an item is dealt to."""
    return int.from_bytes(hashlib.sha256(item_id.encode()).digest()) % count + 1


def read_shard(text: str) -> Shard:
    """Read `i/K`, such as 3/8.

    Raises:
        ConfigError: It is something else.
    """
    found = _SPELLING.fullmatch(text)
    number, count = map(int, found.groups()) if found else (0, 0)
    expected = f"shard as i/K with i from 1 to K, K up to {MOST_SHARDS:,}"
    require(1 <= number <= count <= MOST_SHARDS, expected, text)
    return Shard(number, count)
