"""Rows of scores.jsonl as they are written, read by one pattern instead of a parser of JSON.

A row of one text or of two, in the very form that `json.dumps` gives an `ItemRow`, is matched by a
pattern that is made of the fields' types and holds all that the record itself demands; its pieces
put in the order of their keys are the text that its digest is of. Whatever else a line may be, the
parser decides; so nothing is taken here that it would refuse.
"""

from __future__ import annotations

import functools
import json
import math
import operator
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, fields, replace
from itertools import compress
from typing import Any, TypeVar, get_args, get_type_hints

import numpy as np
import numpy.typing as npt

from cqa.schema.rows import ItemRow, Kind, OptionScore, Role
from cqa.schema.written import key_of

CHECKSUM = "row_digest"  # of all else in a row: a damaged digit is not averaged
_OPTIONS, _TOKENS = "options", "token_"
_PIECE = "%s"  # where a piece stands
# All floats of these forms are finite, and all counts positive and of fewer than 31 bits.
_FLOAT = r"-?(?:0|[1-9]\d{0,16}+)(?:\.\d{1,22}+(?:e[+-]\d\d)?+|e[+-]\d\d)"
_COUNT = r"[1-9]\d{0,8}+"
_TEXT = r'"[^"\\\x00-\x1f]*+"'
_IDS = r"\[(?:\d{1,9}(?:, \d{1,9})*)?\]"
_FLOATS = rf"\[(?:{_FLOAT}(?:, {_FLOAT})*)?\]"
_NON_ASCII = re.compile(r"[^\x00-\x7f]+")
T = TypeVar("T")
Values = npt.NDArray[np.float64]


def _literal(hint: object) -> str:
    return "|".join(f'"{name}"' for name in get_args(hint))


_PATTERNS: dict[object, str] = {
    str: _TEXT,
    str | None: f"{_TEXT}|null",
    Role: _literal(Role),
    int: _COUNT,
    float: _FLOAT,
    float | None: f"{_FLOAT}|null",
    bool: "true|false",
    tuple[int, ...] | None: _IDS,
    tuple[float, ...] | None: _FLOATS,
}
# What `ItemRow.problem` demands of a row of one text, and of one of two.
_DEMANDED: dict[int, dict[str, str]] = {
    1: {"kind": '"continuation"', "answer": "null"},
    2: {
        "kind": _literal(Kind).replace('|"continuation"', ""),
        "answer": "[01]",
        "delta_i_nats": _FLOAT,
    },
}


class Form:
    """How a row of so many texts, with tokens or without, stands in the file."""

    def __init__(self, n_options: int, *, tokens: bool) -> None:
        """Make the pattern."""
        self.n_options, self.tokens = n_options, tokens
        self.places: dict[tuple[str, int | None], int] = {}  # of a field of the row, or of a text
        demanded = _DEMANDED[n_options]
        outer = get_type_hints(ItemRow)
        pieces = []
        for f in fields(ItemRow):
            if f.name == _OPTIONS:
                texts = (self._text_pattern(k) for k in range(n_options))
                pieces.append(f'"{_OPTIONS}": \\[{", ".join(texts)}\\]')
            else:
                pattern = demanded.get(f.name) or _PATTERNS[outer[f.name]]
                pieces.append(self._piece(f.name, None, pattern))
        pieces.append(self._piece(CHECKSUM, None, '"[0-9a-f]{16}"'))
        self.match = re.compile(f"\\{{{', '.join(pieces)}\\}}\n", re.ASCII).fullmatch
        self.model_place = self.places["model_key", None]
        keys = (self.places[name, None] for name in ("id", "item_key", "model_key"))
        self._keys: Callable[[Sequence[str]], tuple[str, str, str]] = operator.itemgetter(*keys)
        template, self._sorted = self._canonical()
        self._between = [text for piece in template.split(_PIECE) for text in (piece, "")][:-1]

    def _piece(self, name: str, k: int | None, pattern: str) -> str:
        self.places[name, k] = len(self.places)
        return f'"{name}": ({pattern})'

    def _text_pattern(self, k: int) -> str:
        hints = get_type_hints(OptionScore)
        held = [f for f in fields(OptionScore) if self.tokens or not f.name.startswith(_TOKENS)]
        pieces = (self._piece(key_of(f), k, _PATTERNS[hints[f.name]]) for f in held)
        return f"\\{{{', '.join(pieces)}\\}}"

    def _canonical(self) -> tuple[str, Callable[[Sequence[str]], tuple[str, ...]]]:
        """Return the text with its keys sorted, and what takes the pieces in that order."""
        order: list[int] = []

        def of(names: Sequence[str], k: int | None) -> str:
            return ", ".join(f'"{name}": {value(name, k)}' for name in sorted(names))

        def value(name: str, k: int | None) -> str:
            if name == _OPTIONS:
                held = [n for n, of_text in self.places if of_text == 0]
                return f"[{', '.join(f'{{{of(held, j)}}}' for j in range(self.n_options))}]"
            order.append(self.places[name, k])
            return _PIECE

        names = [n for n, of_text in self.places if of_text is None and n != CHECKSUM]
        template = f"{{{of([*names, _OPTIONS], None)}}}"
        return template, operator.itemgetter(*order)

    def digested(self, pieces: Sequence[str]) -> bytes:
        """Return the text that the digest of a row is of."""
        text = self._text(pieces)
        if not text.isascii():
            text = _NON_ASCII.sub(lambda found: json.dumps(found[0])[1:-1], text)
        return text.encode()

    def _text(self, pieces: Sequence[str]) -> str:
        """Return a row as JSON with its keys sorted, without its digest."""
        parts = self._between.copy()
        parts[1::2] = self._sorted(pieces)
        return "".join(parts)

    def is_sound(self, pieces: Sequence[str]) -> bool:
        """Whether each text has as many values a token as it has tokens."""
        return all(
            pieces[place].count(",") + 1 == int(pieces[self.places["n_tokens", k]])
            for (name, k), place in self.places.items()
            if k is not None and name.startswith(_TOKENS)
        )

    def text(self, pieces: Sequence[str], name: str) -> str | None:
        """Return a field of text."""
        piece = pieces[self.places[name, None]]
        return None if piece == "null" else piece[1:-1]

    def keys(self, pieces: Sequence[str]) -> tuple[str, str, str]:
        """Return id, item key and model key of a row."""
        item_id, item_key, model_key = self._keys(pieces)
        return item_id[1:-1], item_key[1:-1], model_key[1:-1]

    def record(self, pieces: Sequence[str]) -> ItemRow:
        """Return a row as the parser would."""
        return ItemRow.from_json(json.loads(self._text(pieces)), "")


@functools.cache
def _form(n_options: int, tokens: bool) -> Form:
    return Form(n_options, tokens=tokens)


def read_written(line: bytes) -> tuple[Form, tuple[str, ...]] | None:
    """Return a line's form and its pieces, the digest last; None where it is in no such form."""
    n_options = line.count(b'"role": ')
    if n_options not in _DEMANDED:
        return None
    form = _form(n_options, b'"token_ids": ' in line)
    try:
        found = form.match(line.decode())
    except UnicodeDecodeError:
        return None
    if found is None:
        return None
    pieces = found.groups()
    return (form, pieces) if not form.tokens or form.is_sound(pieces) else None


def _float_or_nan(piece: str) -> float:
    return math.nan if piece == "null" else float(piece)


class WrittenRows:
    """Rows of one form as columns of their pieces."""

    def __init__(self, form: Form, rows: Sequence[tuple[str, ...]], places: Sequence[int]) -> None:
        """Take the rows.

        Args:
            form: That of each.
            rows: Their pieces.
            places: Where each stands among the rows of a block, which may be of several forms.
        """
        self.form, self.rows, self.places = form, rows, places
        self._columns: list[tuple[str, ...]] | None = None
        self._numbers: dict[tuple[str, int | None], Values] = {}

    def __len__(self) -> int:
        return len(self.rows)

    def pieces(self, name: str, k: int | None = None) -> tuple[str, ...]:
        """Return a field of every row, or of its text k, as it is written."""
        if self._columns is None:
            self._columns = list(zip(*self.rows, strict=True))
        return self._columns[self.form.places[name, k]]

    def has(self, name: str, k: int | None = None) -> bool:
        """Whether the form holds the field."""
        return (name, k) in self.form.places

    def texts(self, name: str, k: int | None = None) -> list[str | None]:
        """Return a field of text."""
        return [None if piece == "null" else piece[1:-1] for piece in self.pieces(name, k)]

    def names(self, name: str, k: int | None = None) -> list[str]:
        """Return a field of text that every row has."""
        return [piece[1:-1] for piece in self.pieces(name, k)]

    def numbers(self, name: str, k: int | None = None) -> Values:
        """Return a field of numbers, read once and not to be written to: (rows,); NaN for null."""
        if (name, k) not in self._numbers:
            pieces = self.pieces(name, k)
            floats = map(_float_or_nan if "null" in pieces else float, pieces)
            values = np.fromiter(floats, dtype=np.float64, count=len(pieces))
            values.flags.writeable = False
            self._numbers[name, k] = values
        return self._numbers[name, k]

    def numbers_or_none(self, name: str, k: int | None = None) -> list[float | None]:
        """Return a field of numbers; None for null."""
        return [None if piece == "null" else float(piece) for piece in self.pieces(name, k)]

    def flags(self, name: str, k: int | None = None) -> npt.NDArray[np.bool_]:
        """Return a field of true and false: (rows,)."""
        return np.array([piece == "true" for piece in self.pieces(name, k)], dtype=bool)

    def arrays(self, name: str, k: int) -> list[Any]:
        """Return a field of values a token; None where the form has none."""
        if not self.has(name, k):
            return [None] * len(self)
        return [json.loads(piece) for piece in self.pieces(name, k)]

    def by_text(self, name: str) -> Values:
        """Return a field of numbers of all texts: (rows, texts)."""
        return np.stack([self.numbers(name, k) for k in range(self.form.n_options)], axis=1)

    def take(self, kept: Sequence[int]) -> WrittenRows:
        """Return some of the rows, by their numbers here."""
        if len(kept) == len(self):
            return self
        return WrittenRows(self.form, [self.rows[k] for k in kept], [self.places[k] for k in kept])

    def record(self, number: int) -> ItemRow:
        """Return a row as the parser would."""
        return self.form.record(self.rows[number])


@dataclass(frozen=True, slots=True)
class Block:
    """Consecutive rows under one model, those of each form together; no item is in two forms."""

    adapter: str | None  # None is the base
    parts: tuple[WrittenRows, ...]

    @property
    def model_key(self) -> str:
        """What identifies the model."""
        return self.parts[0].names("model_key")[0]

    def only(self, keep: Callable[[WrittenRows], Iterable[bool]]) -> Block | None:
        """Return the rows that are to be kept; None where none is."""
        kept = (part.take(list(compress(range(len(part)), keep(part)))) for part in self.parts)
        parts = tuple(part for part in kept if len(part))
        return Block(self.adapter, parts) if parts else None

    def in_order(self, of: Callable[[WrittenRows], Iterable[T]]) -> list[T]:
        """Return what is made of each row, in the order of the rows."""
        made = [one for part in self.parts for one in of(part)]
        places = [place for part in self.parts for place in part.places]
        assert len(made) == len(places)
        if len(self.parts) == 1:
            return made
        return [made[k] for k in np.argsort(places).tolist()]

    def records(self) -> list[ItemRow]:
        """Return the rows as the parser would, under the name that the model has here."""
        found = self.in_order(lambda part: map(part.record, range(len(part))))
        return [
            row if row.adapter == self.adapter else replace(row, adapter=self.adapter)
            for row in found
        ]


def each_row(rows: Iterable[ItemRow | Block]) -> Iterator[ItemRow]:
    """Yield rows one by one, each as the parser would."""
    for found in rows:
        yield from [found] if isinstance(found, ItemRow) else found.records()
