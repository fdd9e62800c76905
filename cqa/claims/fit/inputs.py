"""Works and audiences as their files have them, and the description of nobody beside each."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from cqa.claims.dealing import shuffled
from cqa.data.items import UNGROUPED, take_labels
from cqa.data.jsonl import read_records, take_id, take_text, take_words
from cqa.data.tokenizer import Tokenizer
from cqa.data.unique import each_once, file_line_id
from cqa.errors import DataError

FEWEST_WORDINGS = 3
FEWEST = 2  # works and audiences: of one there is no residual
_TRIES = 20  # at shuffling the words of a text into another order


@dataclass(frozen=True, slots=True)
class Work:
    """A text, and the context that it follows, empty where there is none."""

    id: str
    text: str
    context: str
    labels: dict[str, str]
    where: str

    @property
    def group(self) -> str:
        """The work's group, or `ungrouped`."""
        return self.labels.get("group", UNGROUPED)


@dataclass(frozen=True, slots=True)
class Audience:
    """A reader, described several times over."""

    id: str
    wordings: tuple[str, ...]
    nobody: tuple[str, ...]  # the control of each wording; empty of a line of nobody itself
    is_nobody: bool
    is_shuffled: bool  # whether the control is the wording's own words
    where: str


def read_works(paths: Sequence[Path], columns: Sequence[str]) -> list[Work]:
    """Read works.

    Raises:
        DataError: A line is malformed, an id comes twice, or there are too few.
    """
    records = (
        work
        for path in paths
        for work in read_records(path, _parse_work, noun="work", columns=columns)
    )
    works = list(each_once(records, name=file_line_id, columns=columns))
    _require(len(works), FEWEST, "works", str(paths[0]))
    return works


def read_audiences(
    paths: Sequence[Path], columns: Sequence[str], tokenizer: Tokenizer
) -> list[Audience]:
    """Read audiences, and give each wording a description of nobody.

    That is the wording nearest in length of those that describe nobody, or its own words in another
    order where no line is of nobody.

    Raises:
        DataError: A line is malformed, an id or a wording comes twice, or there are too few.
    """
    records = (
        audience
        for path in paths
        for audience in read_records(path, _parse_audience, noun="audience", columns=columns)
    )
    held = list(each_once(records, name=file_line_id, columns=columns))
    _check_distinct(held)
    of_nobody = [text for audience in held if audience.is_nobody for text in audience.wordings]
    readers = [audience for audience in held if not audience.is_nobody]
    _require(len(readers), FEWEST, "audiences that are somebody", str(paths[0]))
    lengths = {text: _length(text, tokenizer) for text in of_nobody}
    return [_controlled(audience, lengths, tokenizer) for audience in readers]


def _parse_work(record: dict[str, Any], where: str) -> Work:
    if "text" in record and "work" in record:
        raise DataError(
            "expected `work` or `text`, got both",
            where=where,
            hint="one of them is the work's text",
        )
    key = "text" if "text" in record else "work"
    context = record.get("context")
    return Work(
        id=take_id(record, where, file_line_id(where)),
        text=take_words(record, key, where),
        context="" if context in (None, "") else take_text(record, "context", where),
        labels=take_labels(record, where),
        where=where,
    )


def _parse_audience(record: dict[str, Any], where: str) -> Audience:
    held = record.get("wordings")
    if not isinstance(held, list) or len(held) < FEWEST_WORDINGS:
        got = f"{len(held)} of them" if isinstance(held, list) else f"{held!r:.80}"
        got = got if "wordings" in record else "no `wordings`"
        raise DataError(
            f"expected `wordings` to be an array of {FEWEST_WORDINGS} or more texts, got: {got}",
            where=where,
            hint="one description moves a score by its words; several tell the reader from them",
        )
    names = [f"wordings[{k}]" for k in range(len(held))]
    is_nobody = record.get("nobody", False)
    if not isinstance(is_nobody, bool):
        raise DataError(
            f"expected `nobody` to be true or false, got: {is_nobody!r:.80}", where=where
        )
    return Audience(
        id=take_id(record, where, file_line_id(where)),
        wordings=tuple(take_words({n: t}, n, where) for n, t in zip(names, held, strict=True)),
        nobody=(),
        is_nobody=is_nobody,
        is_shuffled=False,
        where=where,
    )


def _require(got: int, fewest: int, what: str, where: str) -> None:
    if got < fewest:
        raise DataError(f"expected at least {fewest} {what}, got {got}", where=where)


def _check_distinct(audiences: Sequence[Audience]) -> None:
    seen: dict[str, str] = {}
    for audience in audiences:
        for text in audience.wordings:
            if text in seen:
                raise DataError(
                    f"expected each wording once, got `{text:.80}` again",
                    where=audience.where,
                    hint=f"first seen at {seen[text]}",
                )
            seen[text] = audience.where


def _length(text: str, tokenizer: Tokenizer) -> int:
    return len(tokenizer.encode_following(text))


def _controlled(audience: Audience, lengths: dict[str, int], tokenizer: Tokenizer) -> Audience:
    def nearest(text: str) -> str:
        own = _length(text, tokenizer)
        return min(lengths, key=lambda other: abs(lengths[other] - own))

    nobody = tuple(
        nearest(text) if lengths else _other_order(text, audience) for text in audience.wordings
    )
    return replace(audience, nobody=nobody, is_shuffled=not lengths)


def _other_order(text: str, audience: Audience) -> str:
    orders: Iterator[str] = (shuffled(text, f"{audience.id}-{k}") for k in range(_TRIES))
    found = next((order for order in orders if order != text), None)
    if found is None:
        raise DataError(
            f"expected wordings whose words have another order, got `{text:.80}`",
            where=audience.where,
            hint="write more of the reader, or add a line of nobody: "
            '{"id": "nobody", "nobody": true, "wordings": [...]}',
        )
    return found
