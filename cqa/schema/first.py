"""The first record of a data file, as `validate` shows it: what is learned or scored of it."""

from __future__ import annotations

from dataclasses import dataclass, field

from cqa.schema.written import Result, merged


@dataclass(frozen=True, slots=True)
class Encoding(Result):
    """A record as token ids, the piece of text that each stands for, and the marked ones.

    Marked is what is learned of a sample, or scored of an item: its first option.
    """

    ids: tuple[int, ...]
    pieces: tuple[str, ...]
    learned: tuple[bool, ...]


@dataclass(frozen=True, slots=True)
class Part(Result):
    """A part of a sample's text."""

    text: str
    learned: bool


@dataclass(frozen=True, slots=True)
class FirstSample(Result):
    """The first training sample."""

    id: str
    parts: tuple[Part, ...]
    encoding: Encoding | None = field(metadata=merged(), default=None)  # where the model is known


@dataclass(frozen=True, slots=True)
class FirstItem(Result):
    """The first item."""

    id: str
    context: str
    options: tuple[str, ...]
    encoding: Encoding | None = field(metadata=merged(), default=None)  # where the model is known
