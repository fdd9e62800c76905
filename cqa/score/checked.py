"""What one reading of all items has told: of the job, and of a part of it."""

from __future__ import annotations

from array import array
from dataclasses import dataclass, field

from cqa.data.items import Item
from cqa.data.spacing import Spacing
from cqa.errors import DataError
from cqa.schema.shard import LeftOut
from cqa.score.items import chained
from cqa.score.other_contexts import OtherContexts
from cqa.score.prefix_batch import EncodedItem
from cqa.score.rejected import Rejections
from cqa.score_folder import item_key


@dataclass(slots=True)
class Part:
    """Some of the items, all or those of a shard: which are scored, and which are left out."""

    of_shard: bool = False  # whether it is known by places
    n_items: int = 0
    n_options: int = 0
    n_merged: int = 0  # options that are other tokens when encoded with their context
    spacing: Spacing = field(default_factory=Spacing)
    overlong: dict[str, str] = field(default_factory=dict)  # id: group, of items left out
    rejected: Rejections = field(default_factory=Rejections)  # with which something is wrong
    places: array[int] = field(default_factory=lambda: array("Q"))  # of those scored, in all lines
    left_out: list[LeftOut] = field(default_factory=list)  # those of `overlong`
    chain: bytes = b""  # of those scored, in their order; see `chained`

    def take(self, place: int, encoded: EncodedItem, *, template: str) -> None:
        """Take an item that is scored, the `place`-th of all lines."""
        item = encoded.item
        self.n_items += 1
        self.n_options += len(encoded.options)
        self.n_merged += sum(option.boundary_mismatch for option in encoded.options)
        if template == "plain":
            self.spacing.add(item.id, item.context, item.options)
        if self.of_shard:
            self.places.append(place)
            self.chain = chained(self.chain, item)

    def leave_out(self, place: int, item: Item) -> None:
        """Take an item that the model has no room for."""
        self.overlong[item.id] = item.group
        if self.of_shard:
            self.left_out.append(LeftOut(place=place, id=item.id, item_key=item_key(item)))

    def reject(self, place: int, item: Item, error: DataError) -> None:
        """Take an item that is well-formed, and wrong all the same."""
        key = item_key(item)
        self.rejected.add(error, place=place, where=item.where, item_id=item.id, key=key)


@dataclass(frozen=True, slots=True)
class Checked:
    """A job whose items are checked, and the part of it that one process is to score."""

    digest: str  # of all texts and labels in order
    groups: dict[str, None]  # of the pairs of the whole job, in their order
    other_contexts: OtherContexts | None
    part: Part
