"""Scores of items as columns: a number of an item under a model is eight bytes and no object.

Ids are numbered once for all groups and models, in the order of the base, so that an item has the
same place in every column; facts that hang on no model are held once.
"""

from __future__ import annotations

import math
from array import array
from collections.abc import Iterator, Mapping
from typing import Literal, get_args

import numpy as np
import numpy.typing as npt

from cqa.schema.row_forms import WrittenRows
from cqa.schema.rows import ItemRow
from cqa.stats.blocks import Column, pair_facts, pair_lengths, pair_merges
from cqa.stats.clusters import Values
from cqa.stats.information import softmax
from cqa.stats.items import LENGTHS, OF_PMI, ItemFacts, ItemScore, item_facts

Numbers = npt.NDArray[np.int32]
Label = Literal["domain", "source_id", "published_at", "lang", "kind"]
MANY = 100_000  # texts of which each is held once
NUMBERS = ("logp_nats", "delta_i_nats", "conditional_nats", "prior_nats")
FLAGS = ("is_first", "is_first_per_byte")
SOMETIMES = ("delta_i_null2_nats", "entropy_given_nats", "entropy_null_nats",
             "min_k")  # NaN stands for None  # fmt: skip
BEST_WRONG = OF_PMI.index("best_wrong")
BEST = ("variants", BEST_WRONG)
OF_NULL2 = 2  # numbers in `null2_lengths`


class ItemScores(Mapping[str, ItemScore]):
    """What the statistics need of a group's items under one model."""

    def __init__(self, numbers: Mapping[str, int]) -> None:
        """Begin with no item.

        Args:
            numbers: By id, the place of each item; is read anew at every call.
        """
        self._numbers = numbers
        self._added = array("i")
        self._arrays: dict[Column, array[float]] = {}
        self.rows: Numbers = np.empty(0, dtype=np.int32)  # numbers of the items, ascending
        self._columns: dict[Column, Values] = {}

    def add(self, number: int, score: ItemScore) -> None:
        """Take an item; where it comes twice, the last counts."""
        delta_i = score.delta_i_nats
        for name in NUMBERS:
            self._append(name, getattr(score, name))
        for name in FLAGS:
            self._append(name, getattr(score, name), kind="b")
        for name in SOMETIMES:
            self._append_rarely(name, getattr(score, name))
        for k, own in enumerate(score.variants):
            if k != BEST_WRONG:
                self._append(("variants", k), own)
        # of two candidates the best wrong one is the wrong one, and p follows from the contrast
        best = score.variants[BEST_WRONG]
        self._append_rarely(("variants", BEST_WRONG), None if best == delta_i else best)
        for k in range(OF_NULL2):
            value = None if score.null2_lengths is None else score.null2_lengths[k]
            self._append_rarely(("null2_lengths", k), value)
        for name, p in (("p_given", score.p_given), ("p_null", score.p_null)):
            self._append_candidates(name, p)
        self._added.append(number)

    def extend(self, numbers: Numbers, columns: Mapping[Column, Values]) -> None:
        """Take items of two candidates.

        Args:
            numbers: Their places.
            columns: What `add` would take of each, (items,) each; NaN for what is not there.
        """
        for name, values in columns.items():
            rare = name in SOMETIMES or name == BEST or name[0] == "null2_lengths"
            if name not in self._arrays:
                if rare and np.isnan(values).all():
                    continue
                self._begin(name, "b" if name in FLAGS else "d")
            held = self._arrays[name]
            held.frombytes(values.astype(held.typecode).tobytes())
        for name in self._arrays.keys() - columns.keys():  # of more candidates
            self._arrays[name].frombytes(np.full(len(numbers), np.nan).tobytes())
        self._added.frombytes(numbers.tobytes())

    def _begin(self, column: Column, kind: str = "d") -> array[float]:
        """Begin a column; NaN stands for the items before, if there are any."""
        self._arrays[column] = array(kind, [math.nan] * len(self._added))
        return self._arrays[column]

    def _append(self, column: Column, value: float, kind: str = "d") -> None:
        (self._arrays.get(column) or self._begin(column, kind)).append(value)

    def _append_rarely(self, column: Column, value: float | None) -> None:
        """Append to a column that is not there before it has a number; NaN fills it."""
        if value is None and column not in self._arrays:
            return
        if column not in self._arrays:
            self._begin(column)
        self._arrays[column].append(math.nan if value is None else value)

    def _append_candidates(self, name: str, p: tuple[float, ...]) -> None:
        n_columns = sum(column[0] == name for column in self._arrays if isinstance(column, tuple))
        many = len(p) > 2
        for k in range(max(n_columns, len(p) if many else 0)):
            self._append_rarely((name, k), p[k] if many and k < len(p) else None)

    def settle(self, moved: Numbers | None) -> None:
        """Sort the items by their numbers, once all are there.

        Args:
            moved: New numbers by old ones; None leaves them.
        """
        rows = np.frombuffer(self._added, dtype=np.int32)
        if moved is not None:
            rows = moved[rows]
        columns: dict[Column, Values] = {
            name: np.frombuffer(held, dtype=np.int8 if held.typecode == "b" else np.float64)
            for name, held in self._arrays.items()
        }
        if np.any(np.diff(rows) <= 0):
            rows, last = np.unique(rows[::-1], return_index=True)
            kept = len(self._added) - 1 - last
            columns = {name: values[kept] for name, values in columns.items()}
        self.rows, self._columns = rows, columns
        self._added, self._arrays = array("i"), {}

    def first_met(self) -> Numbers:
        """Return the numbers of the items in the order in which they came, before `settle`."""
        rows = np.frombuffer(self._added, dtype=np.int32)
        if np.all(np.diff(rows) > 0):
            return rows
        _, first = np.unique(rows, return_index=True)
        return rows[np.sort(first)]

    def share_rows(self, other: ItemScores) -> None:
        """Hold the numbers of the items once, where they are another's."""
        if np.array_equal(self.rows, other.rows):
            self.rows = other.rows

    def take(self, kept: npt.NDArray[np.bool_]) -> ItemScores:
        """Return some of the items, by their places here."""
        found = ItemScores(self._numbers)
        found.rows = self.rows[kept]
        found._columns = {name: values[kept] for name, values in self._columns.items()}
        return found

    def only(self, items: ItemScores) -> ItemScores:
        """Return the items that another has too."""
        if self.rows is items.rows:
            return self
        return self.take(np.isin(self.rows, items.rows, assume_unique=True))

    def covers(self, items: ItemScores) -> bool:
        """Whether every item of another is here."""
        if self.rows is items.rows:
            return True
        return bool(np.isin(items.rows, self.rows, assume_unique=True).all())

    def column(self, name: str, k: int | None = None) -> Values:
        """Return a field of all items in the order of their numbers: (n,); NaN for None.

        Args:
            name: A field of `ItemScore`.
            k: Which number of a field that has several.
        """
        key = name if k is None else (name, k)
        if key in self._columns:
            found = self._columns[key]
            if key == ("variants", BEST_WRONG):
                found = np.where(np.isnan(found), self._columns["delta_i_nats"], found)
            return found
        if key == ("variants", BEST_WRONG):
            return self._columns["delta_i_nats"]
        return np.full(len(self.rows), np.nan)

    def candidates(self, name: str) -> Values:
        """Return `p_given` or `p_null`: (n, candidates), the right one first; NaN after the last.

        Of two candidates they are exp(0) and exp(-|S(right) - S(wrong)|), divided by their sum.
        """
        several = sorted(c[1] for c in self._columns if isinstance(c, tuple) and c[0] == name)
        gap = self.column("conditional_nats" if name == "p_given" else "prior_nats")
        table = np.full((len(self), max(2, len(several))), np.nan)
        lesser = np.exp(-np.abs(gap))
        total = 1.0 + lesser
        table[:, 0] = np.where(gap >= 0, 1.0, lesser) / total
        table[:, 1] = np.where(gap >= 0, lesser, 1.0) / total
        if several:
            held = np.stack([self._columns[name, k] for k in several], axis=1)
            many = ~np.isnan(held[:, 0])
            table[many] = held[many]
        return table

    def p_right(self) -> Values:
        """Return the first of `p_given` of every item, to the bit as `softmax` gives it: (n,)."""
        gap = self.column("conditional_nats")
        lesser = np.fromiter(map(math.exp, (-np.abs(gap)).tolist()), np.float64, len(gap))
        of_two = np.where(gap >= 0, 1.0, lesser) / (1.0 + lesser)
        of_more = self.column("p_given", 0)
        return np.where(np.isnan(of_more), of_two, of_more)

    def __getitem__(self, item_id: str) -> ItemScore:
        place = self._place(item_id)
        if place is None:
            raise KeyError(item_id)
        return self._at(place)

    def __contains__(self, item_id: object) -> bool:
        return isinstance(item_id, str) and self._place(item_id) is not None

    def __iter__(self) -> Iterator[str]:
        held = np.zeros(len(self._numbers), dtype=bool)
        held[self.rows] = True
        return (name for name, number in self._numbers.items() if held[number])

    def __len__(self) -> int:
        return len(self.rows)

    def _place(self, item_id: str) -> int | None:
        number = self._numbers.get(item_id)
        if number is None:
            return None
        place = int(np.searchsorted(self.rows, number))
        return place if place < len(self.rows) and self.rows[place] == number else None

    def _at(self, place: int) -> ItemScore:
        def number(name: str, k: int | None = None) -> float:
            key = name if k is None else (name, k)
            return float(self._columns[key][place]) if key in self._columns else math.nan

        def some(name: str) -> float | None:
            value = number(name)
            return None if math.isnan(value) else value

        variants = [number("variants", k) for k in range(len(OF_PMI))]
        if math.isnan(variants[BEST_WRONG]):
            variants[BEST_WRONG] = number("delta_i_nats")
        null2 = [number("null2_lengths", k) for k in range(OF_NULL2)]
        return ItemScore(
            logp_nats=number("logp_nats"),
            delta_i_nats=number("delta_i_nats"),
            conditional_nats=number("conditional_nats"),
            prior_nats=number("prior_nats"),
            delta_i_null2_nats=some("delta_i_null2_nats"),
            entropy_given_nats=some("entropy_given_nats"),
            entropy_null_nats=some("entropy_null_nats"),
            is_first=bool(number("is_first")),
            is_first_per_byte=bool(number("is_first_per_byte")),
            min_k=some("min_k"),
            variants=tuple(variants),
            null2_lengths=None if math.isnan(null2[0]) else tuple(null2),
            p_given=self._candidates_at("p_given", number("conditional_nats"), place),
            p_null=self._candidates_at("p_null", number("prior_nats"), place),
        )

    def _candidates_at(self, name: str, gap: float, place: int) -> tuple[float, ...]:
        keys = sorted(c for c in self._columns if isinstance(c, tuple) and c[0] == name)
        held = [p for c in keys if not math.isnan(p := float(self._columns[c][place]))]
        return tuple(held or softmax([gap, 0.0]))


class Facts(Mapping[str, ItemFacts]):
    """What is known of the items whatever the model."""

    def __init__(self) -> None:
        self.numbers: dict[str, int] = {}  # by id, the place of each item
        self._labels: dict[Label, list[str | None]] = {name: [] for name in get_args(Label)}
        self._texts: dict[str | None, str | None] = {}
        self._right = [array("i") for _ in LENGTHS]
        self._wrong = [array("d") for _ in LENGTHS]
        self._merges = array("b")

    def number(self, row: ItemRow) -> int:
        """Return the number of a row's item; what the base's row says of it counts."""
        number = self.numbers.setdefault(row.id, len(self.numbers))
        if number == len(self._merges) or row.adapter is None:
            self._put(number, item_facts(row))
        return number

    def number_block(self, rows: WrittenRows, *, is_base: bool) -> Numbers:
        """Return the numbers of the items of pairs under one model: (rows,)."""
        ids, n_before = rows.names("id"), len(self.numbers)
        found = [self.numbers.setdefault(item_id, len(self.numbers)) for item_id in ids]
        if len(self.numbers) == n_before + len(ids):
            self._append(rows)
        elif is_base or len(self.numbers) > n_before:
            for number, facts in zip(found, pair_facts(rows), strict=True):
                if is_base or number == len(self._merges):
                    self._put(number, facts)
        return np.array(found, dtype=np.int32)

    def _append(self, rows: WrittenRows) -> None:
        """Take what rows say of items that are all new."""
        lengths = pair_lengths(rows)
        for name, held in self._labels.items():
            texts = rows.texts(name)
            if len(self._texts) < MANY:
                texts = [self._texts.setdefault(text, text) for text in texts]
            held += texts
        for k in range(len(LENGTHS)):
            self._right[k].frombytes(lengths[:, 0, k].astype(self._right[k].typecode).tobytes())
            self._wrong[k].frombytes(lengths[:, 1, k].tobytes())
        self._merges.frombytes(pair_merges(rows).astype(self._merges.typecode).tobytes())

    def _put(self, number: int, facts: ItemFacts) -> None:
        here = slice(number, number + 1)  # of an item that is new, the end
        for name, held in self._labels.items():
            text: str | None = getattr(facts, name)
            if len(self._texts) < MANY:
                text = self._texts.setdefault(text, text)
            held[here] = [text]
        for k in range(len(LENGTHS)):
            self._right[k][here] = array("i", [facts.right_lengths[k]])
            self._wrong[k][here] = array("d", [facts.wrong_lengths[k]])
        self._merges[here] = array("b", [facts.boundary_mismatch])

    def reorder(self, order: Numbers) -> None:
        """Number the items anew.

        Args:
            order: The old number of each item, in the new order.
        """
        ids, old = list(self.numbers), order.tolist()
        self.numbers.clear()
        self.numbers.update((ids[number], k) for k, number in enumerate(old))
        self._labels = {
            name: [held[number] for number in old] for name, held in self._labels.items()
        }
        for k in range(len(LENGTHS)):
            self._right[k] = array("i", [self._right[k][number] for number in old])
            self._wrong[k] = array("d", [self._wrong[k][number] for number in old])
        self._merges = array("b", [self._merges[number] for number in old])

    def labels(self, name: Label, rows: Numbers) -> list[str | None]:
        """Return a label of each of some items."""
        held = self._labels[name]
        return [held[number] for number in rows.tolist()]

    def right_lengths(self, rows: Numbers, k: int) -> Values:
        """Return how long the right options are in unit k of LENGTHS."""
        return np.array(self._right[k], dtype=np.float64)[rows]

    def wrong_lengths(self, rows: Numbers, k: int) -> Values:
        """Return the same of the mean over the wrong options."""
        return np.array(self._wrong[k], dtype=np.float64)[rows]

    def merges(self, rows: Numbers) -> npt.NDArray[np.bool_]:
        """Return whether each of some items has a boundary merge."""
        return np.array(self._merges, dtype=np.bool_)[rows]

    def n_merges(self, rows: Numbers) -> int:
        """Return how many of some items have a boundary merge."""
        return int(self.merges(rows).sum())

    def __getitem__(self, item_id: str) -> ItemFacts:
        number = self.numbers[item_id]
        return ItemFacts(
            **{name: held[number] for name, held in self._labels.items()},
            right_lengths=tuple(column[number] for column in self._right),
            wrong_lengths=tuple(column[number] for column in self._wrong),
            boundary_mismatch=bool(self._merges[number]),
        )

    def __iter__(self) -> Iterator[str]:
        return iter(self.numbers)

    def __len__(self) -> int:
        return len(self.numbers)
