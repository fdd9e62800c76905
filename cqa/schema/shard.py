"""shard.json: which part of a job's items a folder holds."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from cqa.schema.record import Record


@dataclass(frozen=True, slots=True, kw_only=True)
class LeftOut(Record):
    """A line of the shard that is not scored."""

    place: int
    id: str | None
    item_key: str | None  # None where the line is no item


@dataclass(frozen=True, slots=True, kw_only=True)
class ShardItems(Record):
    """The items of a shard by their places among all lines of the job, from 0."""

    of: Literal["scores", "prescreen"]  # what the shards are merged to
    shard: str
    given_digest: str  # of all items of the job in their order, as in meta.json
    places: tuple[int, ...]  # of the lines of items.jsonl
    left_out: tuple[LeftOut, ...]  # over the model's positions
    rejected: tuple[LeftOut, ...] = ()  # as the lines of rejected.jsonl

    def problem(self) -> str | None:
        """Say what merging would stumble over."""
        unscored = ([item.place for item in items] for items in (self.left_out, self.rejected))
        for places in (list(self.places), *unscored):
            if places != sorted(set(places)) or (places and places[0] < 0):
                return "expected places to rise from 0"
        return None
