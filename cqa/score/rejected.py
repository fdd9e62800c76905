"""rejected.jsonl: items with which something is wrong, where they are left out, not refused."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from cqa.errors import DataError
from cqa.files import discard, inside, new_file
from cqa.schema.rows import RejectedItem
from cqa.schema.shard import LeftOut
from cqa.score_folder import REJECTED

NAMED = 5  # rejected items that a line on the screen names


@dataclass(slots=True)
class Rejections:
    """The rejected items of a run, in the order of the files; all of them are kept in memory."""

    rows: list[RejectedItem] = field(default_factory=list)
    unscored: list[LeftOut] = field(default_factory=list)  # the same, as a shard has them
    _places: set[int] = field(default_factory=set)

    def __len__(self) -> int:
        return len(self.rows)

    def __contains__(self, place: int) -> bool:
        return place in self._places

    def add(
        self, error: DataError, *, place: int, where: str, item_id: str | None, key: str | None
    ) -> None:
        """Take an item.

        Args:
            error: What is wrong with it.
            place: Its place among all lines.
            where: Its `file:line`.
            item_id: Its id, where that is known.
            key: Its `item_key`, where it could be read.
        """
        row = RejectedItem(where=where, id=item_id, reason=error.message, hint=error.hint)
        self.rows.append(row)
        self.unscored.append(LeftOut(place=place, id=item_id, item_key=key))
        self._places.add(place)

    def write(self, out: Path) -> None:
        """Write the rows to a folder; without one, there is no file."""
        if not self.rows:
            discard(inside(out, REJECTED))
            return
        lines = (json.dumps(row.to_json(), ensure_ascii=False) + "\n" for row in self.rows)
        write_rejected(out, [line.encode() for line in lines])

    def note(self) -> Iterator[str]:
        """Say how many there are and name the first."""
        if self.rows:
            first = ", ".join(row.where for row in self.rows[:NAMED])
            more = ", …" if len(self.rows) > NAMED else ""
            yield f"rejected: {len(self.rows)} ({first}{more}; {REJECTED} has all, with reasons)"


def write_rejected(out: Path, lines: Sequence[bytes]) -> None:
    """Write rejected.jsonl from whole lines."""
    with new_file(inside(out, REJECTED)) as temporary:
        temporary.write_bytes(b"".join(lines))


def none_scored(max_positions: int, files: str, first: RejectedItem | None) -> DataError:
    """Return the error of a job none of whose items can be scored.

    Args:
        max_positions: Tokens that the model has room for.
        files: The files.
        first: The first rejected item, if there is one.
    """
    if first is not None:
        return DataError(
            "expected an item that can be scored, got none",
            where=files,
            hint=f"the first rejected is {first.where}: {first.reason}",
        )
    return DataError(
        f"expected an item of at most {max_positions} tokens, got only longer ones",
        where=files,
        hint="shorten the contexts; nothing is ever cut",
    )
