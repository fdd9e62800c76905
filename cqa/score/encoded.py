"""The items of a scoring run as token ids, and which of them the model has room for."""

from __future__ import annotations

import hashlib
from array import array
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import suppress
from itertools import filterfalse

from cqa.data.items import Item
from cqa.data.spacing import Spacing
from cqa.data.tokenizer import Tokenizer
from cqa.data.unique import Fingerprints, each_once, file_line_id
from cqa.errors import DataError
from cqa.schema.rows import CHOOSERS, MANY_MERGES
from cqa.schema.shard import LeftOut
from cqa.score.config import ScoreConfig
from cqa.score.items import add_to_digest, read_all
from cqa.score.prefix_batch import EncodedItem, OverlongError, encode_item
from cqa.score.shard import read_shard
from cqa.score_folder import META, item_key, texts_key
from cqa.text import named

NAMED = 5  # items or samples left out that a line on the screen names


class Items:
    """The items of a run, or of its shard, read and encoded anew on every pass, never all held."""

    def __init__(self, config: ScoreConfig, tokenizer: Tokenizer, max_positions: int) -> None:
        self.config, self.tokenizer, self.max_positions = config, tokenizer, max_positions
        self.n_options, self.n_merged = 0, 0  # the options, and those that joint encoding changes
        self.spacing = Spacing()
        self.overlong: dict[str, str] = {}  # id: group of the items that are left out
        self.groups: dict[str, None] = {}  # of the pairs of the whole job, in their order
        self.digest: str | None = None  # of all texts and labels in order, after the first pass
        self.places = array("Q")  # among all items, of those that are scored, where it is a shard
        self.left_out: list[LeftOut] = []  # the items of `overlong`, where it is a shard
        self._shard = None if config.shard is None else read_shard(config.shard)

    def __iter__(self) -> Iterator[Item]:
        """Yield the items; from the second pass on, without those that are left out.

        Raises:
            DataError: At the end, if they are not those of the first pass.
        """
        for item in self._given():
            if self._is_ours(item) and item.id not in self.overlong:
                yield item

    def _given(self) -> Iterator[Item]:
        """Yield all items of the job."""
        total = hashlib.sha256()
        for item in read_all(self.config):
            add_to_digest(total, item)
            yield item
        if self.digest not in (None, total.hexdigest()):
            raise DataError(
                "expected the items as they were at the start, got others",
                where=self._files,
                hint="a file was changed during the run; give the same command again",
            )
        self.digest = total.hexdigest()

    def _is_ours(self, item: Item) -> bool:
        return self._shard is None or self._shard.holds(item.id)

    @property
    def _files(self) -> str:
        chooser = [self.config.choose_on] if self.config.choose_on else []
        return ", ".join(map(str, (*self.config.pairs, *chooser, *self.config.continuations)))

    def encoded(self, skip: Callable[[Item], bool] = lambda _: False) -> Iterator[EncodedItem]:
        """Yield the items as token ids, without those to skip."""
        return map(self._encode, filterfalse(skip, self))

    def all_encoded(self) -> Iterator[EncodedItem]:
        """Yield the items as token ids, those of other shards too; without those left out."""
        for item in self._given():
            if item.id in self.overlong:
                continue
            with suppress(OverlongError):  # where it is of this shard, `check` has refused it
                yield self._encode(item)

    def _encode(self, item: Item) -> EncodedItem:
        return encode_item(
            item,
            self.tokenizer,
            self.config.boundary,
            score_eos=self.config.score_eos,
            max_positions=self.max_positions,
        )

    def check(self) -> int:
        """Read everything once before any work; return how many items there are to score.

        Of a shard every line is read, and its own items are encoded: there may be none.

        Raises:
            DataError: An item is malformed, an id comes twice, or there is no room for an item and
                the settings do not leave such items out, or for none at all.
        """
        n_items = sum(
            1 for _ in each_once(self._counted(), name=file_line_id, columns=self.config.columns)
        ) - len(self.overlong)
        if not n_items and self._shard is None:
            raise none_fits(self.max_positions, self._files)
        return n_items

    def _counted(self) -> Iterator[Item]:
        self.n_options, self.n_merged, self.spacing = 0, 0, Spacing()
        reported = Fingerprints()
        for place, item in enumerate(self._given()):
            ours = self._is_ours(item)
            if not ours or self._fits(item, place):
                self._check_group(item, reported)
            if ours:
                yield item

    def _fits(self, item: Item, place: int) -> bool:
        """Count an item of this run, or note that it is left out."""
        try:
            encoded = self._encode(item)
        except OverlongError:
            if self.config.too_long == "refuse":
                raise
            self.overlong[item.id] = item.group
            if self._shard is not None:
                self.left_out.append(LeftOut(place=place, id=item.id, item_key=item_key(item)))
            return False
        if self._shard is not None:
            self.places.append(place)
        if self.config.template == "plain":
            self.spacing.add(item.id, item.context, item.options)
        self.n_options += len(encoded.options)
        self.n_merged += sum(option.boundary_merge for option in encoded.options)
        return True

    def _check_group(self, item: Item, reported: Fingerprints) -> None:
        """Note an item's group, and that no item both chooses and is reported."""
        if item.group == CHOOSERS:
            if texts_key(item) in reported:
                raise DataError(
                    f"expected items that are not reported, got the texts of one that is: "
                    f"`{item.id}`",
                    where=item.where,
                    hint="an adapter that was chosen on an item is not tested on it",
                )
        elif item.kind != "continuation":
            self.groups.setdefault(item.group)
            if self.config.choose_on is not None:
                reported.add(texts_key(item))

    def notes(self) -> Iterator[str]:
        """Say what a user should know of the items before they are scored."""
        if self.overlong:
            yield left_out_text(self.overlong, self.max_positions, META)
        yield from self.spacing.warnings("context", "option")
        if self.n_merged > MANY_MERGES * self.n_options:
            yield (
                f"{self.n_merged} of {self.n_options} options are other tokens when encoded "
                f"together with their context; compare --boundary joint in another --out"
            )


def none_fits(max_positions: int, files: str) -> DataError:
    """Return the error of a job all of whose items are over the model's positions."""
    return DataError(
        f"expected an item of at most {max_positions} tokens, got only longer ones",
        where=files,
        hint="shorten the contexts; nothing is ever cut",
    )


def left_out_text(overlong: Mapping[str, str], max_positions: int, file: str) -> str:
    """Say how many items of each group were left out, and name the first of them.

    Args:
        overlong: The group of each item that was left out, by id; at least one.
        max_positions: Tokens that the model has room for.
        file: Name of the file that holds all ids.
    """
    counts = ", ".join(f"{n} {named(group)}" for group, n in Counter(overlong.values()).items())
    first = first_named(overlong, file)
    return f"left out, over the model's {max_positions} positions: {counts} {first}"


def first_named(ids: Collection[str], file: str) -> str:
    """Return the first ids in brackets, and the name of the file that holds all of them."""
    names = ", ".join(map(named, list(ids)[:NAMED])) + (", …" if len(ids) > NAMED else "")
    return f"({names}; {file} names all)"
