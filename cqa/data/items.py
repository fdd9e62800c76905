"""Evaluation items: pairs, several options, continuations (one JSON object a line)."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cqa.data.jsonl import LONGEST_NAME, check_text, read_records, stop_at, take_id, take_text
from cqa.data.unique import file_line_id
from cqa.errors import DataError
from cqa.schema.rows import Kind, Role

UNGROUPED = "ungrouped"
LEARNED = ("response", "instruction", "conversations", "messages", "dialogue")
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


class BadItemError(DataError):
    """A line is no item; what of it can be told besides."""

    def __init__(self, error: DataError, where: str, item_id: str | None) -> None:
        super().__init__(error.message, where=where, hint=error.hint, absent=error.absent)
        self.item_id = item_id


def read_items(
    paths: Iterable[Path],
    *,
    continuations: bool = False,
    columns: Sequence[str] | None = None,
    refuse: Callable[[DataError], object] = stop_at,
    wanted: Callable[[], bool] = lambda: True,
) -> Iterator[Item]:
    """Read items from files in order.

    Args:
        paths: JSON Lines files, or tables.
        continuations: Whether the files hold continuations instead of pairs and options.
        columns: Keys and the columns they are read from, such as `good=chosen`; None where the
            command cannot name any.
        refuse: Takes the error of a bad line, which is then left out; a `BadItemError` where the
            line is an object.
        wanted: Called at each line: whether it is parsed, or passed over.

    Raises:
        DataError: A file cannot be read or holds no line; what `refuse` raises, which is by
            default the error of the first malformed line.
    """
    parse = parse_continuation if continuations else parse_pair

    def parse_named(record: dict[str, Any], where: str) -> Item:
        try:
            return parse(record, where)
        except DataError as error:
            raise BadItemError(error, where, _known_id(record, where)) from None

    known = parse if refuse is stop_at else parse_named
    for path in paths:
        yield from read_records(
            path, known, noun="item", refuse=refuse, columns=columns, wanted=wanted
        )


def _known_id(record: dict[str, Any], where: str) -> str | None:
    """Return the id that a malformed record gives, if that is one."""
    try:
        return take_id(record, where, "") or None
    except DataError:
        return None


def parse_pair(record: dict[str, Any], where: str) -> Item:
    """Parse a pair, several options, or a preference.

    {"context", "good", "bad"} where `bad` may be several texts; {"context", "options", "answer"};
    {"prompt", "chosen", "rejected"}, a pair by other names.
    """
    refuse_scored(record, where)
    if "options" in record:
        options, answer = _options(record, where)
        return _item(record, "options", options, answer, ("options", "answer"), where)
    if "chosen" in record and "good" not in record:
        record = _preference(record, where)
    if "good" not in record:
        _refuse_others(record, where)
    good, bad = take_text(record, "good", where), record.get("bad")
    if isinstance(bad, list):
        texts = tuple(
            take_text({f"bad[{k}]": text}, f"bad[{k}]", where) for k, text in enumerate(bad)
        )
    else:
        texts = (take_text(record, "bad", where),)
    if good in texts:
        raise DataError("expected `good` and `bad` to differ, got the same text twice", where=where)
    if not texts or len(set(texts)) < len(texts):
        got = "the same text twice" if texts else "none"
        raise DataError(f"expected bad texts that differ, got {got}", where=where)
    kind: Kind = "pair" if len(texts) == 1 else "options"
    return _item(record, kind, (good, *texts), 0, ("good", "bad"), where)


def refuse_scored(record: dict[str, Any], where: str) -> None:
    """Refuse a line of scores.jsonl, which has options too.

    Raises:
        DataError: It is one.
    """
    options = record.get("options")
    scored = isinstance(options, list) and any(isinstance(option, dict) for option in options)
    if scored and "model_key" in record:  # alone it may be a key of the user's
        raise DataError(
            "expected an item to score, got what was scored of one: a row of scores.jsonl",
            where=where,
            hint="meta.json, in the same folder, names the files that it was scored from",
        )


def _refuse_others(record: dict[str, Any], where: str) -> None:
    """Say what a record is that is no pair, if it is something else that is known."""
    if "continuation" in record:
        raise DataError(
            "expected a pair with `good` and `bad`, got a `continuation`", where=where,
            hint="give it to score --continuations",
        )  # fmt: skip
    _refuse_learned(record, "a pair with `good` and `bad`", where)


def _refuse_learned(record: dict[str, Any], expected: str, where: str) -> None:
    learned = next((key for key in LEARNED if key in record), None)
    if learned:
        raise DataError(
            f"expected {expected}, got a training sample (`{learned}`)",
            where=where,
            hint="give such files to train --data",
        )


def _preference(record: dict[str, Any], where: str) -> dict[str, Any]:
    """Return {"prompt", "chosen", "rejected"} as a pair; a text may be a conversation's end."""
    context: Any = record.get("prompt")
    if context is not None and record.get("context") is not None:
        raise DataError("expected a `prompt` or a `context`, got both", where=where)
    texts: dict[str, Any] = {}
    for key, name in (("chosen", "good"), ("rejected", "bad")):
        value = record.get(key)
        several = key == "rejected" and isinstance(value, list) and not _is_chat(value)
        values: Any = value if several else [value]
        found = [_answer(v, key, where) for v in values]
        for before, _ in found:
            context = before if context is None else context
            if before not in (None, context):
                raise DataError("expected answers to one prompt, got two prompts", where=where)
        answers = [text for _, text in found]
        texts[name] = answers if several and len(answers) > 1 else next(iter(answers), None)
    rest = {k: v for k, v in record.items() if k not in ("prompt", "chosen", "rejected")}
    return {**rest, **texts} | ({} if context is None else {"context": context})


def _is_chat(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(t, dict) for t in value)


def _answer(value: Any, key: str, where: str) -> tuple[str | None, str]:
    """Return the prompt, if the value holds one, and the text of an answer."""
    if not _is_chat(value):
        return None, take_text({key: value} if value is not None else {}, key, where)
    roles = [turn.get("role") for turn in value]
    if roles not in (["assistant"], ["user", "assistant"]):
        raise DataError(
            f"expected `{key}` to be a text, or one turn of the user and one of the assistant, "
            f"got: {roles!r:.80}",
            where=where,
        )
    *before, text = (take_text(turn, "content", f"{where} ({key})") for turn in value)
    return next(iter(before), None), text


def parse_continuation(record: dict[str, Any], where: str) -> Item:
    """Parse {"id", "context", "continuation"}."""
    if "good" in record or "options" in record or "chosen" in record:
        raise DataError(
            "expected a `continuation`, got a pair",
            where=where,
            hint="give it to score --pairs",
        )
    if "continuation" not in record:
        _refuse_learned(record, "a `continuation`", where)
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


def take_labels(record: dict[str, Any], where: str) -> dict[str, str]:
    """Return those of LABELS that a record gives.

    Raises:
        DataError: One is no text, or longer than any name.
    """
    labels = {}
    for key in LABELS:
        value = record.get(key)
        if value is None:
            continue
        if not isinstance(value, str):
            raise DataError(f"expected text in `{key}`, got: {value!r:.80}", where=where)
        check_text(value, key, where)
        if len(value) > LONGEST_NAME:
            raise DataError(
                f"expected `{key}` of at most {LONGEST_NAME} characters, got {len(value):,}",
                where=where,
            )
        labels[key] = value
    return labels


def _item(
    record: dict[str, Any],
    kind: Kind,
    options: tuple[str, ...],
    answer: int | None,
    own_keys: tuple[str, ...],
    where: str,
) -> Item:
    known = {"id", "context", *own_keys, *LABELS}
    extra = {key: value for key, value in record.items() if key not in known}
    check_text(_as_json(extra, where), "unknown keys", where)
    return Item(
        id=take_id(record, where, file_line_id(where)),
        kind=kind,
        context=take_text(record, "context", where),
        options=options,
        answer=answer,
        labels=take_labels(record, where),
        extra=extra,
        where=where,
    )


def _as_json(extra: dict[str, Any], where: str) -> str:
    """Return what items.jsonl will hold of unknown keys, which must be writable as it was read."""
    try:
        return json.dumps(extra, ensure_ascii=False) if extra else ""
    except RecursionError as error:
        raise DataError(f"expected a plain JSON object, got: {error}", where=where) from None
