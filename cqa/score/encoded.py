"""The items of a scoring run as token ids, and which of them the model has room for."""

from __future__ import annotations

import hashlib
from array import array
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import suppress
from itertools import count, filterfalse

from cqa.data.items import BadItemError, Item
from cqa.data.jsonl import check_columns, stop_at
from cqa.data.spacing import Spacing
from cqa.data.tokenizer import Tokenizer
from cqa.data.unique import Fingerprints, UniqueIds, file_line_id
from cqa.errors import DataError
from cqa.schema.rows import CHOOSERS, MANY_MERGES
from cqa.schema.shard import LeftOut
from cqa.score.config import ScoreConfig
from cqa.score.items import add_to_digest, paths_of, read_all
from cqa.score.other_contexts import OtherContexts, drawn_contexts
from cqa.score.prefix_batch import EncodedItem, OverlongError, encode_item
from cqa.score.rejected import Rejections, none_scored
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
        self.rejected = Rejections()  # items with which something is wrong
        self.groups: dict[str, None] = {}  # of the pairs of the whole job, in their order
        self.digest: str | None = None  # of all texts and labels in order, after the first pass
        self.places = array("Q")  # among all lines, of the items scored, where it is a shard
        self.left_out: list[LeftOut] = []  # the items of `overlong`, where it is a shard
        self.other_contexts: OtherContexts | None = None
        self._shard = None if config.shard is None else read_shard(config.shard)
        self._own_total = hashlib.sha256()  # of the items at `places`
        self._skips = config.on_error == "skip"

    def __iter__(self) -> Iterator[Item]:
        """Yield the items; from the second pass on, without those that are left out.

        Raises:
            DataError: At the end, if they are not those of the first pass.
        """
        if self._shard is not None and self.digest is not None:
            yield from self._own()
            return
        for place, item in self._given():
            left_out = item.id in self.overlong or place in self.rejected
            if self._is_ours(item.id) and not left_out:
                yield item

    def _given(self) -> Iterator[tuple[int, Item]]:
        """Yield all items of the job, each with its place among all lines."""
        total, place = hashlib.sha256(), 0

        def refuse(error: DataError) -> None:
            nonlocal place
            if self.digest is None:
                self._reject_line(error, place)
            place += 1

        for item in read_all(self.config, refuse if self._skips else stop_at):
            add_to_digest(total, item)
            yield place, item
            place += 1
        if self.digest not in (None, total.hexdigest()):
            raise self._changed()
        self.digest = total.hexdigest()

    def _own(self) -> Iterator[Item]:
        """Yield the items of a shard that is checked; no line of another one is parsed."""
        total, lines, places = hashlib.sha256(), count(), iter(self.places)
        place = next(places, None)

        def wanted() -> bool:
            nonlocal place
            if next(lines) != place:
                return False
            place = next(places, None)
            return True

        for item in read_all(self.config, wanted=wanted):
            add_to_digest(total, item)
            yield item
        if place is not None or total.hexdigest() != self._own_total.hexdigest():
            raise self._changed()

    def _changed(self) -> DataError:
        return DataError(
            "expected the items as they were at the start, got others",
            where=self._files,
            hint="a file was changed during the run; give the same command again",
        )

    def _reject_line(self, error: DataError, place: int) -> None:
        """Note a line that is no item."""
        where = error.where or ""
        item_id = error.item_id if isinstance(error, BadItemError) else None
        if self._is_ours(item_id or file_line_id(where)):
            self.rejected.add(error, place=place, where=where, item_id=item_id, key=None)

    def _is_ours(self, item_id: str) -> bool:
        return self._shard is None or self._shard.holds(item_id)

    @property
    def _files(self) -> str:
        return ", ".join(map(str, paths_of(self.config)))

    def encoded(self, skip: Callable[[Item], bool] = lambda _: False) -> Iterator[EncodedItem]:
        """Yield the items as token ids, without those to skip."""
        return map(self._encode, filterfalse(skip, self))

    def all_encoded(self) -> Iterator[EncodedItem]:
        """Yield the items as token ids, those of other shards too; without those left out."""
        left_out = DataError if self._skips else OverlongError
        for place, item in self._given():
            if item.id in self.overlong or place in self.rejected:
                continue
            with suppress(left_out):  # of another shard; those of this one, `check` has seen
                yield self._encode(item)

    def _encode(self, item: Item) -> EncodedItem:
        return encode_item(
            item,
            self.tokenizer,
            self.config.boundary,
            score_eos=self.config.score_eos,
            max_positions=self.max_positions,
            other_contexts=self.other_contexts.of(item) if self.other_contexts else (),
        )

    def _draw_contexts(self) -> None:
        """Read the items once for the contexts that stand for the second null, where any do."""
        marginal = self.config.marginal
        if marginal is None:
            return
        self.other_contexts = drawn_contexts(
            read_all(self.config, (lambda _: None) if self._skips else stop_at),
            self.tokenizer,
            marginal,
            fits=lambda ids: 2 * len(ids) <= self.max_positions,  # the rest is for options
        )

    def check(self) -> int:
        """Read everything once before any work; return how many items there are to score.

        Of a shard every line is read, and its own items are encoded: there may be none.

        Raises:
            DataError: An item is malformed, an id comes twice, or there is no room for an item, and
                the settings do not leave such items out; or none is left.
        """
        check_columns(paths_of(self.config), self.config.columns)
        self._draw_contexts()
        self.n_options, self.n_merged, self.spacing = 0, 0, Spacing()
        is_new = _finds_doubles(self.config)
        reported = Fingerprints()
        n_items = 0
        for place, item in self._given():
            ours = self._is_ours(item.id)
            try:
                if ours:
                    is_new(item)
                _check_chooser(item, reported)
                fits = self._fits(item, place) if ours else True
            except DataError as error:
                if not self._skips:
                    raise
                if ours:
                    key = item_key(item)
                    self.rejected.add(
                        error, place=place, where=item.where, item_id=item.id, key=key
                    )
                continue
            n_items += ours and fits
            if fits and item.group != CHOOSERS and item.kind != "continuation":
                self.groups.setdefault(item.group)
                if self.config.choose_on is not None:
                    reported.add(texts_key(item))
        if not n_items and self._shard is None:
            raise none_scored(self.max_positions, self._files, next(iter(self.rejected.rows), None))
        return n_items

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
            add_to_digest(self._own_total, item)
        if self.config.template == "plain":
            self.spacing.add(item.id, item.context, item.options)
        self.n_options += len(encoded.options)
        self.n_merged += sum(option.boundary_mismatch for option in encoded.options)
        return True

    def notes(self) -> Iterator[str]:
        """Say what a user should know of the items before they are scored."""
        yield from self.rejected.note()
        if self.overlong:
            yield left_out_text(self.overlong, self.max_positions, META)
        yield from self.spacing.warnings("context", "option")
        if self.n_merged > MANY_MERGES * self.n_options:
            yield (
                f"{self.n_merged} of {self.n_options} options are other tokens when encoded "
                f"together with their context; compare --boundary joint in another --out"
            )


def _finds_doubles(config: ScoreConfig) -> Callable[[Item], None]:
    """Return what raises a `DataError` at an item whose id came before.

    Where such items are skipped there may be many; the line of the first is then not looked for.
    """
    if config.on_error == "stop":
        ids = UniqueIds(file_line_id, config.columns)
        return lambda item: ids.add(item.id, item.where)
    seen = Fingerprints()

    def is_new(item: Item) -> None:
        if not seen.add(item.id):
            raise DataError(f"expected each id once, got `{item.id:.80}` again", where=item.where)

    return is_new


def _check_chooser(item: Item, reported: Fingerprints) -> None:
    """Refuse an item that chooses an adapter if its texts are those of one that is reported."""
    if item.group == CHOOSERS and texts_key(item) in reported:
        raise DataError(
            f"expected items that are not reported, got the texts of one that is: `{item.id}`",
            where=item.where,
            hint="an adapter that was chosen on an item is not tested on it",
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
