"""Training samples: five file formats to parts of text, and parts to ids.

Formats, detected from the first line and required of all others:
    prompt     {"prompt", "response"}                        nothing is inserted between the two
    alpaca     {"instruction", "input"?, "output", "system"?, "history"?}
    sharegpt   {"conversations": [{"from", "value"}], "system"?}
    messages   {"messages": [{"role", "content"}]}            OpenAI
    dialogue   {"dialogue": [{"role": "B" | "C", "text"}]}    B asks, the expert C is learned
In plain text, turns of the last four are joined by one newline; those of a dialogue keep their
labels ("B: …", newline, "C: …"). Optional on all: "id", "tags". The assistant's turns are learned,
but for those that say `"weight": 0`, `"loss": false` or `"train": false` (OpenAI's and axolotl's
words). Another key of a turn is refused, since it may change what was meant.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cqa.data.jsonl import check_text, read_records, take_id
from cqa.data.tokenizer import Tokenizer
from cqa.data.turns import FLAGS, TURNS, Turn
from cqa.data.unique import each_once, file_line_id, line_id
from cqa.errors import DataError

THOUGHTS_END = "</think>"  # what templates take out of earlier answers ends so
SPARE_CHARS = 4096
FORMATS = {  # the key that tells a format, and its name
    "prompt": "prompt",
    "instruction": "alpaca",
    "conversations": "sharegpt",
    "messages": "messages",
    "dialogue": "dialogue",
}
EVALUATED = ("good", "chosen", "options", "continuation")  # keys of what is scored, not learned
MEANT = {  # keys that change what is meant, in the formats that have them
    "system", "history", "input", "tools", "functions", "documents", "good", "bad", "chosen",
    "rejected", *FLAGS,
}  # fmt: skip
_MEANT_IN = {"alpaca": ("system", "history", "input"), "sharegpt": ("system",)} | dict.fromkeys(
    ("prompt", "messages", "dialogue"), ()
)


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


def read_samples(*paths: Path, columns: Sequence[str] | None = None) -> list[Sample]:
    """Read whole training files, which `stream_samples` reads a sample at a time."""
    return list(stream_samples(*paths, columns=columns))


def stream_samples(*paths: Path, columns: Sequence[str] | None = None) -> Iterator[Sample]:
    """Yield the samples of training files, one file after the other.

    Args:
        paths: JSON Lines, or tables; each in a format of its own.
        columns: Keys and the columns they are read from, such as `response=answer`; None where the
            command cannot name any.

    Raises:
        DataError: A line is malformed or of another format than the first of its file, an id comes
            twice, or a file is empty.
    """
    name = line_id if len(paths) == 1 else file_line_id
    samples = (sample for path in paths for sample in _samples_of(path, columns, name))
    return each_once(samples, name=name, columns=columns or ())


def _samples_of(
    path: Path, columns: Sequence[str] | None, name: Callable[[str], str]
) -> Iterator[Sample]:
    kind = ""

    def parse(record: dict[str, Any], where: str) -> Sample:
        nonlocal kind
        kind = kind or detect_format(record, where)
        return parse_sample(record, kind, where, name)

    return read_records(path, parse, noun="sample", columns=columns)


def detect_format(record: dict[str, Any], where: str) -> str:
    """Name the training format of a record by its keys."""
    for key, kind in FORMATS.items():
        if key in record and "chosen" not in record:
            return kind
    evaluated = next((key for key in EVALUATED if key in record), None)
    if evaluated:
        flag = "--continuations" if evaluated == "continuation" else "--pairs"
        raise DataError(
            f"expected a sample to learn, got an item to score (`{evaluated}`)",
            where=where,
            hint=f"give it to score {flag}",
        )
    raise DataError(
        f"expected one of the keys {', '.join(f'`{key}`' for key in FORMATS)}, got: "
        f"{', '.join(f'`{key:.40}`' for key in list(record)[:12]) or 'none'}",
        where=where,
        hint="of texts, a sample has a `prompt` and a `response`" if record else None,
        absent=("prompt", "response") if record else (),
    )


def parse_sample(
    record: dict[str, Any], kind: str, where: str, name: Callable[[str], str] = line_id
) -> Sample:
    """Parse a record of a known format; `name` makes an id of its line where it has none."""
    turns = tuple(TURNS[kind](record, where))
    _refuse_meant_keys(record, kind, where)
    if not any(turn.learned for turn in turns):
        raise DataError("expected a turn to learn, got none", where=where)
    sample_id = take_id(record, where, name(where))
    return Sample(sample_id, kind, turns, _tags(record.get("tags"), where), where)


def _refuse_meant_keys(record: dict[str, Any], kind: str, where: str) -> None:
    """Refuse a key that would change what is learned and that the format does not have."""
    for key in MEANT - set(_MEANT_IN[kind]):
        if record.get(key) not in (None, "", [], {}):
            raise DataError(
                f"expected a sample of format `{kind}` without `{key}`, got: {record[key]!r:.80}",
                where=where,
                hint=f"its `{key}` would be left out; write it into a turn, or remove the key",
            )


def _tags(tags: Any, where: str) -> tuple[str, ...] | None:
    if tags is None:
        return None
    if not isinstance(tags, list) or not all(isinstance(tag, str) for tag in tags):
        raise DataError("expected `tags` to be an array of texts", where=where)
    return tuple(tags)


def plain_parts(sample: Sample) -> list[tuple[str, bool]]:
    """Render a sample as plain text: (text, learned) parts, whose concatenation is the sample."""
    if sample.format == "prompt":
        return [(turn.text, turn.learned) for turn in sample.turns]
    parts: list[tuple[str, bool]] = []
    pending = ""
    for turn in sample.turns:
        label = {"user": "B:", "assistant": "C:"}[turn.role] if sample.format == "dialogue" else ""
        text = f" {turn.text}" if label else turn.text
        if turn.role == "assistant":
            parts += [(pending + label, False), (text, turn.learned)]
            pending = "\n"
        else:
            pending += label + text + "\n"
    return [(text, learned) for text, learned in parts if text]


def chat_parts(sample: Sample, tokenizer: Tokenizer) -> list[tuple[str, bool]]:
    """Render a sample by the tokenizer's chat template: (text, learned) parts.

    What comes before the first answer that is learned is its prompt, as the template renders it
    there, so a template may take the thoughts out of answers that are not learned.

    Raises:
        DataError: The template rewrites what was learned or fed before, so no mask would be right,
            or leaves out a turn.
    """
    messages = [{"role": turn.role, "content": turn.text} for turn in sample.turns]
    where = sample.where
    parts: list[tuple[str, bool]] = []
    done = ""
    first = next(k for k, turn in enumerate(sample.turns) if turn.learned)
    for i, turn in enumerate(sample.turns):
        if i < first or turn.role != "assistant":
            continue
        after = tokenizer.render_chat(messages[: i + 1], prompt_only=False, where=where)
        before = tokenizer.render_prompt(messages[:i], turn.text, where)
        if not before.startswith(done) or not after.startswith(before):
            raise DataError(
                "expected a chat template that only appends, got one that rewrites earlier turns",
                where=where,
                hint='with "train": false in all answers but the last, that one is learned after '
                "the others as the template renders them",
            )
        _refuse_left_out(sample.turns[:i], before, tokenizer, where)
        _refuse_left_out([turn], after[len(before) :], tokenizer, where)
        parts += [(before[len(done) :], False), (after[len(before) :], turn.learned)]
        done = after
    return [(text, learned) for text, learned in parts if text]


def _refuse_left_out(turns: Iterable[Turn], text: str, tokenizer: Tokenizer, where: str) -> None:
    """Refuse a template's text in which a turn does not stand as it was written."""
    for turn in turns:
        said = (
            turn.text
            if turn.role != "assistant" or turn.learned
            else turn.text.split(THOUGHTS_END)[-1]
        )
        if said.strip() not in text:
            raise DataError(
                f"expected a template that renders every turn as it stands, got one that leaves "
                f"out or changes the {turn.role}'s `{turn.text.strip()[:40]}`",
                where=where,
                hint=tokenizer.template_hint,
            )


def encode_sample(
    sample: Sample,
    tokenizer: Tokenizer,
    *,
    whole_text: bool = False,
    most_prompt_tokens: int | None = None,
) -> EncodedSample:
    """Encode a sample, part by part; plain text gets one learned end token.

    Args:
        sample: The sample.
        tokenizer: Tokenizer of the base model, with its template.
        whole_text: Learn the prompt too.
        most_prompt_tokens: Encode only that much of the end of the prompt's text that it has more
            tokens than this, and the last ones are those of the whole.

    Raises:
        DataError: No token would be learned, the ids do not decode to the text, or a control token
            is written in it.
    """
    for turn in sample.turns:
        tokenizer.refuse_special(turn.text, sample.where)
        if whole_text and turn.masked:
            raise DataError(
                "expected turns without a flag, since --loss-on whole-text learns all of them, got "
                f"a turn of the {turn.role} that is not to be learned",
                where=sample.where,
            )
    parts = (
        plain_parts(sample) if tokenizer.chat_template is None else chat_parts(sample, tokenizer)
    )
    if most_prompt_tokens is not None:
        parts = _end_of_prompt(parts, tokenizer, most_prompt_tokens)
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
    if not any(flags[1:]):
        raise DataError(
            "expected a text to learn, got a sample without a labelled token",
            where=sample.where,
            hint=tokenizer.template_hint,
        )
    if tokenizer.chat_template is None:  # a chat template closes its turns itself
        ids.append(tokenizer.end_id)
        flags.append(flags[-1])
    prompt = slice(len(tokenizer.bos_ids), first_answer)
    return EncodedSample(sample.id, tuple(ids), tuple(flags), prompt, sample.where)


def _end_of_prompt(
    parts: list[tuple[str, bool]], tokenizer: Tokenizer, n_tokens: int
) -> list[tuple[str, bool]]:
    """Return the parts without what of the prompt's start is far more than so many tokens.

    Where a text is cut, its first tokens may be others than those in the whole; `SPARE_CHARS` more
    stand before the last `n_tokens`, and the cut is at a space.
    """
    if not (room := tokenizer.most_chars(n_tokens)):
        return parts
    room += SPARE_CHARS
    first = next((k for k, (_, learned) in enumerate(parts) if learned), 0)
    kept: list[tuple[str, bool]] = []
    for text, _ in reversed(parts[:first]):
        if len(text) > room:
            start = len(text) - room
            at = text.find(" ", start, start + SPARE_CHARS // 2)
            kept.append((text[max(at, start) :], False))
            break
        kept.append((text, False))
        room -= len(text)
    return [*reversed(kept), *parts[first:]]
