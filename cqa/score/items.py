"""The items of a scoring run as its files hold them, and the digest over all of them."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

from cqa.data.items import BadItemError, Item, read_items
from cqa.data.jsonl import stop_at
from cqa.errors import DataError
from cqa.schema.rows import CHOOSERS
from cqa.score_folder import digest_json, item_key


class Files(Protocol):
    """The settings that name items."""

    @property
    def pairs(self) -> tuple[Path, ...]:
        """Files of pairs and several options."""

    @property
    def choose_on(self) -> Path | None:
        """The pairs that choose an adapter."""

    @property
    def continuations(self) -> tuple[Path, ...]:
        """Files of continuations."""

    @property
    def columns(self) -> tuple[str, ...]:
        """Keys and the columns they are read from."""


def paths_of(files: Files) -> tuple[Path, ...]:
    """Return the files in the order in which they are read."""
    chooser = () if files.choose_on is None else (files.choose_on,)
    return (*files.pairs, *chooser, *files.continuations)


def read_all(
    files: Files,
    refuse: Callable[[DataError], object] = stop_at,
    wanted: Callable[[], bool] = lambda: True,
) -> Iterator[Item]:
    """Yield all items in their order; those that choose an adapter have a group of their own.

    Args:
        files: The settings.
        refuse: Takes the error of a bad item, which is then left out.
        wanted: Called at each line: whether it is parsed, or passed over.

    Raises:
        DataError: An item is malformed, or has the name of that group.
    """
    given: dict[str, Any] = {"columns": files.columns, "refuse": refuse, "wanted": wanted}
    for item in read_items(files.pairs, **given):
        if item.group == CHOOSERS:
            error = DataError(
                f"expected another group than `{CHOOSERS}`, which --choose-on gives its items"
            )
            refuse(BadItemError(error, item.where, item.id))
        else:
            yield item
    if files.choose_on is not None:
        for item in read_items([files.choose_on], **given):
            yield replace(item, labels={**item.labels, "group": CHOOSERS})
    yield from read_items(files.continuations, continuations=True, **given)


def add_to_digest(total: hashlib._Hash, item: Item) -> None:
    """Add an item's id, texts and labels to a digest."""
    add_key_to_digest(total, item.id, item_key(item))


def chained(before: bytes, item: Item) -> bytes:
    """Return the sha256 of what it was of the items before and of this one, after nothing b""."""
    total = hashlib.sha256(before)
    add_to_digest(total, item)
    return total.digest()


def add_key_to_digest(total: hashlib._Hash, item_id: str, key: str) -> None:
    """Add an item of this id and `item_key`."""
    total.update(digest_json([item_id, key]).encode())
