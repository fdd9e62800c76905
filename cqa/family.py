"""What a folder of scores is about: the last command's items, and the models that compare on them.

Summary and report read a folder by this one way. The family of a folder is the base of the last
command and every adapter that any command scored on that base, in the same way, on the same items:
an adapter that was looked at once is paid for by the tests from then on.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from operator import add
from pathlib import Path

from cqa.data.items import UNGROUPED
from cqa.data.unique import Fingerprints
from cqa.errors import DataError
from cqa.files import read_json
from cqa.schema.meta import AnyModel, Meta, ScoredModel
from cqa.schema.provenance import Provenance, provenance
from cqa.schema.row_forms import Block, WrittenRows
from cqa.schema.rows import CHOOSERS, ItemRow, ItemText
from cqa.schema.summary import NotInFamily
from cqa.score_folder import (
    ITEMS,
    META,
    SCORES,
    Copies,
    ItemsDigest,
    read_blocks,
    read_blocks_again,
    read_texts,
)

OTHER_VERSION = ("version of cqa-fast",)


class FamilyItems:
    """What is kept of the items of the last command: none of their texts."""

    def __init__(self) -> None:
        """Begin with no item."""
        self.wanted = Fingerprints()  # as `full_key`
        self.n_reported = 0  # neither copies nor what chooses an adapter
        self.languages: dict[str, Counter[str]] = {}  # by group, of the items that are reported
        self._copies = Copies()

    @property
    def copies(self) -> Mapping[str, str]:
        """The ids of items whose texts come again in their group, each with the first's id."""
        return self._copies.ids

    def add(self, item: ItemText) -> None:
        """Take the next item."""
        self.wanted.add(item.full_key)
        if not self._copies.add(item) and item.group != CHOOSERS:
            self.n_reported += 1
            languages = self.languages.setdefault(item.group or UNGROUPED, Counter())
            languages[item.lang or "unknown"] += 1


@dataclass(slots=True)
class Family:
    """The items and models of a folder of scores."""

    folder: Path
    meta: Meta
    names: Mapping[str, str | None]  # by model key: the base, earlier adapters, the last command's
    digests: Mapping[str, str]  # of every adapter by its name
    made: dict[str, Provenance]  # what every adapter says of its training
    items: FamilyItems
    _others: Mapping[str, NotInFamily]  # by model key
    _met: set[str] = field(default_factory=set)  # model keys of the rows of these items
    # as the last command that has it describes it, by name in their order
    models: Mapping[str | None, ScoredModel] = field(default_factory=dict)
    _turns: list[str | None] = field(default_factory=list)  # names as they take turns in the rows

    @property
    def n_items(self) -> int:
        """How many items the last command scores."""
        return len(self.items.wanted)

    def reported_texts(self, ids: Collection[str] | None = None) -> Iterator[ItemText]:
        """Yield the texts of the items that are reported.

        Args:
            ids: Of the items that are wanted; by default all.
        """
        found = self.texts(ids)
        return (t for t in found if t.group != CHOOSERS and t.id not in self.items.copies)

    def rows(self) -> Iterator[ItemRow | Block]:
        """Yield the rows of these items and models, each under the one name of its model."""
        for found in self._of_these(read_blocks(self.folder / SCORES)):
            self._met.add(found.model_key)
            if found.model_key in self.names:
                name = self.names[found.model_key]
                if not self._turns or self._turns[-1] != name:
                    self._turns.append(name)
                yield replace(found, adapter=name)

    def came_in_turn(self, names: Sequence[str | None]) -> bool:
        """Whether `rows` has yielded the rows of some models one model after the other."""
        one_by_one = [name for name in self._turns if name in names]
        return one_by_one == [name for name in names if name in one_by_one]

    def rows_again(
        self, names: Sequence[str | None], ids: Collection[str] | None = None
    ) -> Iterator[ItemRow | Block]:
        """Yield the rows of some models, one model after the other.

        Args:
            names: Of the models, whose rows `rows` has found to be as they were written.
            ids: Of the items that are wanted, all of whose rows are yielded, and others as may be.
        """
        if self.came_in_turn(names):
            yield from self._again(names, ids)
        else:
            for name in names:
                yield from self._again([name], ids)

    def _again(
        self, names: Sequence[str | None], ids: Collection[str] | None
    ) -> Iterator[ItemRow | Block]:
        keys = [key for key, called in self.names.items() if called in names]
        for found in self._of_these(read_blocks_again(self.folder / SCORES, keys, ids)):
            name = self.names[found.model_key]
            yield found if found.adapter == name else replace(found, adapter=name)

    def _of_these(self, rows: Iterable[ItemRow | Block]) -> Iterator[ItemRow | Block]:
        for found in rows:
            if isinstance(found, ItemRow):
                if found.full_key in self.items.wanted:
                    yield found
            elif (block := found.only(self._are_wanted)) is not None:
                yield block

    def _are_wanted(self, rows: WrittenRows) -> Iterator[bool]:
        return self.items.wanted.have(map(add, rows.names("item_key"), rows.names("id")))

    def texts(self, ids: Collection[str] | None = None) -> Iterator[ItemText]:
        """Yield the texts of these items, or of some of them."""
        for text in read_texts(self.folder / ITEMS, ids):
            if text.full_key in self.items.wanted:
                yield text

    @property
    def order(self) -> tuple[str | None, ...]:
        """The names in their order."""
        return tuple(self.names.values())

    @property
    def keys(self) -> dict[str | None, str]:
        """Model keys by name, of the models with rows of these items, once `rows` has ended."""
        return {name: key for key, name in self.names.items() if key in self._met}

    @property
    def not_in_family(self) -> tuple[NotInFamily, ...]:
        """Adapters with rows of these items that do not compare, once `rows` has ended."""
        return tuple(dict.fromkeys(o for key, o in self._others.items() if key in self._met))


def read_family(folder: Path) -> Family:
    """Read meta.json and items.jsonl of a folder that `cqa-fast score` wrote.

    Raises:
        DataError: A file is damaged, of another version, or they do not belong together.
    """
    path = folder / META
    try:
        meta = Meta.from_json(read_json(path), str(path))
    except DataError as error:
        again = "the same cqa-fast score command writes it anew, and computes nothing again"
        raise DataError(error.message, where=error.where, hint=again) from None
    if shard := meta.settings.get("shard"):
        raise DataError(
            f"expected the scores of all items, got those of shard {shard}", where=str(folder),
            hint="cqa-fast merge makes one folder of all shards",
        )  # fmt: skip
    return _sorted(folder, meta, _items(folder / ITEMS, meta))


def _items(path: Path, meta: Meta) -> FamilyItems:
    """Return the items of the last command."""
    found, digest, lines = FamilyItems(), ItemsDigest(), meta.lines()
    following = next(lines, None)
    for number, text in enumerate(read_texts(path), start=1):
        if number == following:
            found.add(text)
            digest.add(text.full_key)
            following = next(lines, None)
    if following is not None or digest.hexdigest() != meta.items_digest:
        raise DataError(
            f"expected the items that {META} stands for, got others",
            where=str(path),
            hint="the same cqa-fast score command writes the missing ones anew",
        )
    return found


def _sorted(folder: Path, meta: Meta, items: FamilyItems) -> Family:
    """Sort the models of all commands into those that compare and the others."""
    base = meta.models[0]
    same: list[ScoredModel] = []
    unlike: dict[str, tuple[str | None, tuple[str, ...]]] = {}
    for held in meta.earlier_models:
        any_model = AnyModel.from_json(held, str(folder / META))
        try:
            model = ScoredModel.from_json(held, "")
            differs = model.differs_from(base)
        except DataError:
            differs = OTHER_VERSION
        if differs:
            unlike[any_model.model_key] = any_model.adapter, differs
        else:
            same.append(model)
    found = [base, *(m for m in same if m.adapter is not None), *meta.models[1:]]
    named = _names(found, meta.models)
    names = {model.model_key: named[model.adapter_digest] for model in found}
    digests = {name: digest for digest, name in named.items() if digest and name}
    held_digests = {m.get("model_key"): m.get("adapter_digest") for m in meta.earlier_models}
    others = {
        key: NotInFamily(adapter, differs)
        for key, (adapter, differs) in unlike.items()
        if adapter is not None and held_digests[key] not in named
    }
    made = {
        name: provenance(model.adapter_origin)
        for model in found
        if (name := names[model.model_key]) is not None
    }
    models = {names[model.model_key]: model for model in found}
    return Family(folder, meta, names, digests, made, items, others, models=models)


def _names(
    models: Sequence[ScoredModel], last: Sequence[ScoredModel]
) -> dict[str | None, str | None]:
    """Name each adapter by its bytes, no two alike; the last name of the same bytes wins.

    Args:
        models: In the order of the commands.
        last: Those of the last command, whose names stay as they are.
    """
    called = {model.adapter_digest: model.adapter for model in models}
    kept = {model.adapter_digest for model in last}
    n_called = Counter(called.values())
    return {
        digest: name if digest in kept or n_called[name] == 1 else f"{name}@{str(digest)[:8]}"
        for digest, name in called.items()
    }
