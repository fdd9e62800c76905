"""Evaluation items: pairs, several options, continuations (one JSON object a line)."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cqa.data.jsonl import check_text, read_records, take_text
from cqa.errors import DataError
from cqa.schema.rows import Kind, Role

UNGROUPED = "ungrouped"
LABELS = ("group", "domain", "lang", "source_id", "published_at", "licence")


@dataclass(frozen=True, slots=True)
class Item:
    """One context with its candidate texts; nothing is inserted between the two."""

    id: str
    kind: Kind
    context: str
    options: tuple[str, ...]
    answer: int | None  # index of the good option; None for a continuation
    labels: dict[str, str]  # those of LABELS that the line gave
    extra: dict[str, Any] = field(default_factory=dict)  # unknown keys, kept
    where: str = ""

    @property
    def group(self) -> str:
        """The item's group, or `ungrouped`."""
        return self.labels.get("group", UNGROUPED)

    def role(self, index: int) -> Role:
        """Name option `index`: good/bad, right/wrong or continuation."""
        if self.kind == "continuation":
            return "continuation"
        if self.kind == "pair":
            return "good" if index == self.answer else "bad"
        return "right" if index == self.answer else "wrong"


def read_items(paths: Iterable[Path], *, continuations: bool = False) -> Iterator[Item]:
    """Read items from files in order.

    Args:
        paths: JSON Lines files.
        continuations: Whether the files hold continuations instead of pairs and options.

    Raises:
        DataError: A line is malformed, or a file holds no item.
    """
    parse = parse_continuation if continuations else parse_pair
    for path in paths:
        yield from read_records(path, parse, noun="item")


def parse_pair(record: dict[str, Any], where: str) -> Item:
    """Parse {"id", "context", "good", "bad"} or {"id", "context", "options", "answer"}."""
    if "options" in record:
        options, answer = _options(record, where)
        return _item(record, "options", options, answer, ("options", "answer"), where)
    if "continuation" in record and "good" not in record:
        raise DataError(
            "expected a pair with `good` and `bad`, got a `continuation`", where=where,
            hint="give continuation files with --continuations",
        )  # fmt: skip
    good, bad = take_text(record, "good", where), take_text(record, "bad", where)
    if good == bad:
        raise DataError("expected `good` and `bad` to differ, got the same text twice", where=where)
    return _item(record, "pair", (good, bad), 0, ("good", "bad"), where)


def parse_continuation(record: dict[str, Any], where: str) -> Item:
    """Parse {"id", "context", "continuation"}."""
    if "good" in record or "options" in record:
        raise DataError(
            "expected a `continuation`, got a pair",
            where=where,
            hint="give pair files with --pairs",
        )
    text = take_text(record, "continuation", where)
    return _item(record, "continuation", (text,), None, ("continuation",), where)


def _options(record: dict[str, Any], where: str) -> tuple[tuple[str, ...], int]:
    options, answer = record["options"], record.get("answer")
    if not isinstance(options, list) or len(options) < 2:
        raise DataError(
            f"expected `options` to be an array of two or more texts, got: {options!r:.80}",
            where=where,
        )
    texts = tuple(
        take_text({f"options[{i}]": text}, f"options[{i}]", where) for i, text in enumerate(options)
    )
    if len(set(texts)) != len(texts):
        raise DataError("expected the options to differ, got the same text twice", where=where)
    if isinstance(answer, bool) or not isinstance(answer, int) or not 0 <= answer < len(texts):
        raise DataError(
            f"expected `answer` to be a whole number from 0 to {len(texts) - 1}, got: {answer!r}",
            where=where,
        )
    return texts, answer


def _item(
    record: dict[str, Any],
    kind: Kind,
    options: tuple[str, ...],
    answer: int | None,
    own_keys: tuple[str, ...],
    where: str,
) -> Item:
    labels = {}
    for key in LABELS:
        value = record.get(key)
        if value is None:
            continue
        if not isinstance(value, str):
            raise DataError(f"expected text in `{key}`, got: {value!r}", where=where)
        check_text(value, key, where)
        labels[key] = value
    known = {"id", "context", *own_keys, *LABELS}
    extra = {key: value for key, value in record.items() if key not in known}
    check_text(_as_json(extra, where), "unknown keys", where)
    return Item(
        id=take_text(record, "id", where),
        kind=kind,
        context=take_text(record, "context", where),
        options=options,
        answer=answer,
        labels=labels,
        extra=extra,
        where=where,
    )


def _as_json(extra: dict[str, Any], where: str) -> str:
    """Return what items.jsonl will hold of unknown keys, which must be writable as it was read."""
    try:
        return json.dumps(extra, ensure_ascii=False) if extra else ""
    except RecursionError as error:
        raise DataError(f"expected a plain JSON object, got: {error}", where=where) from None
