"""The items of a scoring run as token ids, and which of them the model has room for."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import suppress
from itertools import count, filterfalse

from cqa.data.items import BadItemError, Item
from cqa.data.jsonl import check_columns, stop_at
from cqa.data.tokenizer import Tokenizer
from cqa.data.unique import Fingerprints, UniqueIds, file_line_id
from cqa.errors import DataError
from cqa.schema.rows import CHOOSERS, MANY_MERGES
from cqa.score.checked import Checked, Part
from cqa.score.config import ScoreConfig
from cqa.score.items import add_to_digest, chained, paths_of, read_all
from cqa.score.other_contexts import OtherContexts, drawn_contexts
from cqa.score.prefix_batch import EncodedItem, OverlongError, encode_item
from cqa.score.rejected import none_scored
from cqa.score.shard import dealt_to, read_shard
from cqa.score_folder import META, texts_key
from cqa.text import named

NAMED = 5  # items or samples left out that a line on the screen names


class Items:
    """The items of a run, or of its shard, read and encoded anew on every pass, never all held."""

    def __init__(
        self,
        config: ScoreConfig,
        tokenizer: Tokenizer,
        max_positions: int,
        checked: Checked | None = None,
    ) -> None:
        """Take the settings.

        Args:
            config: Of the run.
            tokenizer: What encodes the items.
            max_positions: Tokens that the model has room for.
            checked: What the check in another process has told of this shard; without it `check`
                is to be called first.
        """
        self.config, self.tokenizer, self.max_positions = config, tokenizer, max_positions
        self.groups: dict[str, None] = {}  # of the pairs of the whole job, in their order
        self.digest: str | None = None  # of all texts and labels in order, after the first pass
        self.other_contexts: OtherContexts | None = None
        self.part = Part(of_shard=config.shard is not None)
        self._dealt: list[Part] = []  # shards of what is read here
        self._shard = None if config.shard is None else read_shard(config.shard)
        self._skips = config.on_error == "skip"
        if checked is not None:
            self.groups, self.digest, self.part = checked.groups, checked.digest, checked.part
            self.other_contexts = checked.other_contexts

    def __iter__(self) -> Iterator[Item]:
        """Yield the items; from the second pass on, without those that are left out.

        Raises:
            DataError: At the end, if they are not those of the first pass.
        """
        if self._shard is not None and self.digest is not None:
            yield from self._own()
            return
        for place, item in self._given():
            if self._is_ours(item.id) and not self._is_left_out(item, place):
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
        chain, lines, places = b"", count(), iter(self.part.places)
        place = next(places, None)

        def wanted() -> bool:
            nonlocal place
            if next(lines) != place:
                return False
            place = next(places, None)
            return True

        for item in read_all(self.config, wanted=wanted):
            chain = chained(chain, item)
            yield item
        if place is not None or chain != self.part.chain:
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
        for part in self._parts_of(item_id or file_line_id(where)):
            part.rejected.add(error, place=place, where=where, item_id=item_id, key=None)

    def _is_ours(self, item_id: str) -> bool:
        return self._shard is None or self._shard.holds(item_id)

    def _parts_of(self, item_id: str) -> tuple[Part, ...]:
        """Return the parts that an item is of; none where another shard has it."""
        if not self._is_ours(item_id):
            return ()
        if not self._dealt:
            return (self.part,)
        return self.part, self._dealt[dealt_to(item_id, len(self._dealt)) - 1]

    def _is_left_out(self, item: Item, place: int) -> bool:
        return item.id in self.part.overlong or place in self.part.rejected

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
            if self._is_left_out(item, place):
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

    def check(self, n_shards: int = 0) -> int:
        """Read everything once before any work; return how many items there are to score.

        Of a shard every line is read, and its own items are encoded: there may be none.

        Args:
            n_shards: How many shards `dealt` is then to tell of, where the items are a whole job's.

        Raises:
            DataError: An item is malformed, an id comes twice, or there is no room for an item, and
                the settings do not leave such items out; or none is left.
        """
        self._dealt = [Part(of_shard=True) for _ in range(n_shards)]
        check_columns(paths_of(self.config), self.config.columns)
        self._draw_contexts()
        is_new = _finds_doubles(self.config)
        reported = Fingerprints()
        for place, item in self._given():
            parts = self._parts_of(item.id)
            try:
                if parts:
                    is_new(item)
                _check_chooser(item, reported)
                fits = self._fits(item, place, parts) if parts else True
            except DataError as error:
                if not self._skips:
                    raise
                for part in parts:
                    part.reject(place, item, error)
                continue
            if fits and item.group != CHOOSERS and item.kind != "continuation":
                self.groups.setdefault(item.group)
                if self.config.choose_on is not None:
                    reported.add(texts_key(item))
        if not self.part.n_items and self._shard is None:
            first = next(iter(self.part.rejected.rows), None)
            raise none_scored(self.max_positions, self._files, first)
        return self.part.n_items

    def dealt(self) -> list[Checked]:
        """Return what the check has told of each of the shards that the items were dealt to."""
        assert self.digest is not None
        return [
            Checked(self.digest, self.groups, self.other_contexts, part) for part in self._dealt
        ]

    def _fits(self, item: Item, place: int, parts: Sequence[Part]) -> bool:
        """Count an item of this run, or note that it is left out."""
        try:
            encoded = self._encode(item)
        except OverlongError:
            if self.config.too_long == "refuse":
                raise
            for part in parts:
                part.leave_out(place, item)
            return False
        for part in parts:
            part.take(place, encoded, template=self.config.template)
        return True

    def notes(self) -> Iterator[str]:
        """Say what a user should know of the items before they are scored."""
        part = self.part
        yield from part.rejected.note()
        if part.overlong:
            yield left_out_text(part.overlong, self.max_positions, META)
        yield from part.spacing.warnings("context", "option")
        if part.n_merged > MANY_MERGES * part.n_options:
            yield (
                f"{part.n_merged} of {part.n_options} options are other tokens when encoded "
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
