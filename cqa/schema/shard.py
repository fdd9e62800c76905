"""shard.json: which part of a job's items a folder holds."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from cqa.schema.record import Record


@dataclass(frozen=True, slots=True, kw_only=True)
class LeftOut(Record):
    """An item of the shard that is not scored, over the model's positions."""

    place: int
    id: str
    item_key: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ShardItems(Record):
    """The items of a shard by their places among all of the job, from 0."""

    of: Literal["scores", "prescreen"]  # what the shards are merged to
    shard: str
    given_digest: str  # of all items of the job in their order, as in meta.json
    places: tuple[int, ...]  # of the lines of items.jsonl
    left_out: tuple[LeftOut, ...]

    def problem(self) -> str | None:
        """Say what merging would stumble over."""
        left_out = [item.place for item in self.left_out]
        for places in (list(self.places), left_out):
            if places != sorted(set(places)) or (places and places[0] < 0):
                return "expected places to rise from 0"
        return None
