"""Training samples: five file formats to parts of text, and parts to ids.

Formats, detected from the first line and required of all others:
    prompt     {"prompt", "response"}                        nothing is inserted between the two
    alpaca     {"instruction", "input"?, "output", "system"?, "history"?}
    sharegpt   {"conversations": [{"from", "value"}], "system"?}
    messages   {"messages": [{"role", "content"}]}            OpenAI
    dialogue   {"dialogue": [{"role": "B" | "C", "text"}]}    B asks, the expert C is learned
In plain text, turns of the last four are joined by one newline; those of a dialogue keep their
labels ("B: …", newline, "C: …"). Optional on all: "id", "tags".
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from cqa.data.jsonl import check_text, read_records, take_text
from cqa.data.tokenizer import Tokenizer
from cqa.data.unique import each_once, line_id
from cqa.errors import DataError

TooLong = Literal["refuse", "drop", "truncate"]
FORMATS = {  # the key that tells a format, and its name
    "prompt": "prompt",
    "instruction": "alpaca",
    "conversations": "sharegpt",
    "messages": "messages",
    "dialogue": "dialogue",
}
ROLES = {
    "human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant",
    "system": "system",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Turn:
    """What one side says; the assistant's turns are learned."""

    role: str  # system, user or assistant
    text: str


@dataclass(frozen=True, slots=True)
class Sample:
    """One training sample as read."""

    id: str
    format: str
    turns: tuple[Turn, ...]
    tags: tuple[str, ...] | None  # None: nobody tagged it; (): tagged, and nothing applies
    where: str


@dataclass(frozen=True, slots=True)
class EncodedSample:
    """A sample as token ids, and which of them are learned."""

    id: str
    ids: tuple[int, ...]
    loss_mask: tuple[bool, ...]  # whether a token is learned
    prompt: slice  # the ids that `truncate` may cut: after BOS, before the first answer
    where: str

    @property
    def n_labels(self) -> int:
        """How many tokens are learned; the first has nothing before it and is not."""
        return sum(self.loss_mask[1:])


def read_samples(path: Path) -> list[Sample]:
    """Read a whole training file, which `stream_samples` reads a sample at a time."""
    return list(stream_samples(path))


def stream_samples(path: Path) -> Iterator[Sample]:
    """Yield the samples of a training file.

    Raises:
        DataError: A line is malformed or of another format than the first, an id comes twice, or
            the file is empty.
    """
    kind = ""

    def parse(record: dict[str, Any], where: str) -> Sample:
        nonlocal kind
        kind = kind or detect_format(record, where)
        return parse_sample(record, kind, where)

    return each_once(read_records(path, parse, noun="sample"))


def detect_format(record: dict[str, Any], where: str) -> str:
    """Name the training format of a record by its keys."""
    for key, kind in FORMATS.items():
        if key in record:
            return kind
    raise DataError(
        f"expected one of the keys {', '.join(f'`{key}`' for key in FORMATS)}, got: "
        f"{', '.join(f'`{key}`' for key in record) or 'none'}",
        where=where,
        hint="this is an item to score, not a sample to learn" if _is_item(record) else None,
    )


def _is_item(record: dict[str, Any]) -> bool:
    return "context" in record and not {"good", "options", "continuation"}.isdisjoint(record)


def parse_sample(record: dict[str, Any], kind: str, where: str) -> Sample:
    """Parse a record of a known format; its line names it where it has no id."""
    turns = tuple(_TURNS[kind](record, where))
    if not any(turn.role == "assistant" for turn in turns):
        raise DataError("expected a turn to learn, got none", where=where)
    name = take_text(record, "id", where) if "id" in record else line_id(where)
    return Sample(name, kind, turns, _tags(record.get("tags"), where), where)


def _tags(tags: Any, where: str) -> tuple[str, ...] | None:
    if tags is None:
        return None
    if not isinstance(tags, list) or not all(isinstance(tag, str) for tag in tags):
        raise DataError("expected `tags` to be an array of texts", where=where)
    return tuple(tags)


def _prompt_turns(record: dict[str, Any], where: str) -> Iterator[Turn]:
    yield Turn("user", take_text(record, "prompt", where))
    yield Turn("assistant", take_text(record, "response", where))


def _alpaca_turns(record: dict[str, Any], where: str) -> Iterator[Turn]:
    if record.get("system") not in (None, ""):
        yield Turn("system", take_text(record, "system", where))
    history = record.get("history")
    history = [] if history in (None, "") else history
    if not isinstance(history, list) or not all(
        isinstance(h, list) and len(h) == 2 for h in history
    ):
        raise DataError("expected `history` to be an array of [question, answer]", where=where)
    for i, (question, answer) in enumerate(history):
        yield Turn("user", take_text({"history": question}, "history", f"{where} (turn {i + 1})"))
        yield Turn(
            "assistant", take_text({"history": answer}, "history", f"{where} (turn {i + 1})")
        )
    question = take_text(record, "instruction", where)
    if record.get("input") not in (None, ""):
        question += "\n" + take_text(record, "input", where)
    yield Turn("user", question)
    yield Turn("assistant", take_text(record, "output", where))


def _list_of_turns(
    record: dict[str, Any], key: str, names: tuple[str, str], roles: dict[str, str], where: str
) -> Iterator[Turn]:
    turns = record.get(key)
    if not isinstance(turns, list) or not turns:
        raise DataError(f"expected `{key}` to be a non-empty array", where=where)
    for i, turn in enumerate(turns):
        if not isinstance(turn, dict):
            raise DataError(f"expected `{key}[{i}]` to be an object", where=where)
        role = turn.get(names[0])
        if not isinstance(role, str) or role not in roles:
            raise DataError(
                f"expected `{key}[{i}].{names[0]}` to be {' | '.join(roles)}, got: {role!r}",
                where=where,
            )
        yield Turn(roles[role], take_text(turn, names[1], f"{where} ({key}[{i}])"))


def _sharegpt_turns(record: dict[str, Any], where: str) -> Iterator[Turn]:
    if record.get("system") not in (None, ""):
        yield Turn("system", take_text(record, "system", where))
    yield from _list_of_turns(record, "conversations", ("from", "value"), ROLES, where)


def _message_turns(record: dict[str, Any], where: str) -> Iterator[Turn]:
    yield from _list_of_turns(record, "messages", ("role", "content"), ROLES, where)


def _dialogue_turns(record: dict[str, Any], where: str) -> Iterator[Turn]:
    roles = {"B": "user", "C": "assistant"}
    yield from _list_of_turns(record, "dialogue", ("role", "text"), roles, where)


_TURNS = {
    "prompt": _prompt_turns,
    "alpaca": _alpaca_turns,
    "sharegpt": _sharegpt_turns,
    "messages": _message_turns,
    "dialogue": _dialogue_turns,
}


def plain_parts(sample: Sample) -> list[tuple[str, bool]]:
    """Render a sample as plain text: (text, learned) parts, whose concatenation is the sample."""
    if sample.format == "prompt":
        return [(turn.text, turn.role == "assistant") for turn in sample.turns]
    parts: list[tuple[str, bool]] = []
    pending = ""
    for turn in sample.turns:
        learned = turn.role == "assistant"
        label = {"user": "B:", "assistant": "C:"}[turn.role] if sample.format == "dialogue" else ""
        text = f" {turn.text}" if label else turn.text
        if learned:
            parts += [(pending + label, False), (text, True)]
            pending = "\n"
        else:
            pending += label + text + "\n"
    return [(text, learned) for text, learned in parts if text]


def chat_parts(sample: Sample, tokenizer: Tokenizer) -> list[tuple[str, bool]]:
    """Render a sample by the tokenizer's chat template: (text, learned) parts.

    Raises:
        DataError: The template does not extend its own prefix, so no mask would be right.
    """
    messages = [{"role": turn.role, "content": turn.text} for turn in sample.turns]
    parts: list[tuple[str, bool]] = []
    done = ""
    for i, turn in enumerate(sample.turns):
        if turn.role != "assistant":
            continue
        before = tokenizer.render_chat(messages[:i], prompt_only=True)
        after = tokenizer.render_chat(messages[: i + 1], prompt_only=False)
        if not before.startswith(done) or not after.startswith(before):
            raise DataError(
                "expected a chat template that only appends, got one that rewrites earlier turns",
                where=sample.where,
            )
        parts += [(before[len(done) :], False), (after[len(before) :], True)]
        done = after
    return [(text, learned) for text, learned in parts if text]


def encode_sample(
    sample: Sample, tokenizer: Tokenizer, *, whole_text: bool = False
) -> EncodedSample:
    """Encode a sample, part by part; plain text gets one learned end token.

    Args:
        sample: The sample.
        tokenizer: Tokenizer of the base model, with its template.
        whole_text: Learn the prompt too.

    Raises:
        DataError: No token would be learned, or the ids do not decode to the text.
    """
    parts = (
        plain_parts(sample) if tokenizer.chat_template is None else chat_parts(sample, tokenizer)
    )
    ids: list[int] = []
    flags: list[bool] = []
    first_answer = 0
    for k, (text, learned) in enumerate(parts):
        check_text(text, "text", sample.where)
        part = tokenizer.encode_following(text) if k else tokenizer.encode_context(text)
        first_answer = first_answer or (len(ids) if learned else 0)
        ids += part
        flags += [learned or whole_text] * len(part)
    tokenizer.check_round_trip("".join(text for text, _ in parts), tuple(ids), sample.where)
    if tokenizer.chat_template is None:  # a chat template closes its turns itself
        ids.append(tokenizer.end_id)
        flags.append(True)
    prompt = slice(len(tokenizer.bos_ids), first_answer)
    encoded = EncodedSample(sample.id, tuple(ids), tuple(flags), prompt, sample.where)
    if encoded.n_labels < 2:
        raise DataError(
            "expected a text to learn, got a sample without a labelled token", where=sample.where
        )
    return encoded


def fit_lengths(
    samples: list[EncodedSample], max_tokens: int, policy: TooLong
) -> tuple[list[EncodedSample], list[str]]:
    """Apply the policy for over-long samples; return those that stay, and the ids affected.

    `truncate` cuts the start of the prompt, after BOS, and keeps all from the first answer on.

    Raises:
        DataError: A sample is too long and the policy is `refuse`, or it cannot be cut enough.
    """
    fitting: list[EncodedSample] = []
    affected = []
    for sample in samples:
        excess = len(sample.ids) - max_tokens
        if excess <= 0:
            fitting.append(sample)
            continue
        affected.append(sample.id)
        room = sample.prompt.stop - sample.prompt.start
        if policy == "refuse" or (policy == "truncate" and excess >= room):
            cut = f", {room} of them of the prompt," if policy == "truncate" else ""
            raise DataError(
                f"expected at most {max_tokens} tokens, got {len(sample.ids)}{cut} in "
                f"`{sample.id}`",
                where=sample.where,
                hint="--too-long drop leaves such samples out, --too-long truncate cuts prompts at "
                "the start; nothing is ever cut without being asked for",
            )
        if policy == "truncate":
            fitting.append(_cut(sample, excess))
    return fitting, affected


def _cut(sample: EncodedSample, excess: int) -> EncodedSample:
    """Leave out `excess` tokens at the start of the prompt."""
    start, stop = sample.prompt.start, sample.prompt.start + excess
    return replace(
        sample,
        ids=sample.ids[:start] + sample.ids[stop:],
        loss_mask=sample.loss_mask[:start] + sample.loss_mask[stop:],
        prompt=slice(start, sample.prompt.stop - excess),
    )
