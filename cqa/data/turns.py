"""The turns of a training sample, by the format of its record, and which of them are learned."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from cqa.data.jsonl import take_text
from cqa.errors import DataError

ROLES = {
    "human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant",
    "system": "system",
}  # fmt: skip
FLAGS = ("weight", "loss", "train", "training")  # OpenAI's word, and those of other trainers
HARMLESS = ("name", "id", "timestamp")  # of who speaks, and of the turn


@dataclass(frozen=True, slots=True)
class Turn:
    """What one side says."""

    role: str  # system, user or assistant
    text: str
    masked: bool = False  # it says that it is not to be learned

    @property
    def learned(self) -> bool:
        """Whether the turn is learned."""
        return self.role == "assistant" and not self.masked


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
        place = f"{where} ({key}[{i}])"
        masked = _masked(turn, names, roles[role], place)
        yield Turn(roles[role], take_text(turn, names[1], place), masked)


def _masked(turn: dict[str, Any], names: tuple[str, str], role: str, where: str) -> bool:
    """Return whether a turn says that it is not to be learned; refuse keys that say other things.

    Raises:
        DataError: A flag has another value, asks for a turn that is not the assistant's, or
            contradicts another; or a key is unknown and not null.
    """
    said: dict[str, bool] = {}
    for key, value in turn.items():
        if key in names or key in HARMLESS or value is None or value in ([], {}):
            continue
        if key not in FLAGS:
            raise DataError(
                f"expected a turn of {', '.join(f'`{k}`' for k in (*names, *FLAGS, *HARMLESS))}, "
                f"got: `{key:.80}`",
                where=where,
                hint="what it says would be left out; remove it if it does not matter",
            )
        if not (isinstance(value, bool) or (key == "weight" and value in (0, 1))):
            choices = "0 or 1" if key == "weight" else "true or false"
            raise DataError(f"expected `{key}` to be {choices}, got: {value!r:.80}", where=where)
        said[key] = bool(value)
    if len(set(said.values())) > 1:
        raise DataError(f"expected {' and '.join(said)} to agree, got both answers", where=where)
    learn = next(iter(said.values()), role == "assistant")
    if learn and role != "assistant":
        raise DataError(
            f"expected only the assistant's turns to be learned, got {', '.join(said)} in a turn "
            f"of the {role}",
            where=where,
            hint="--loss-on whole-text learns every turn",
        )
    return bool(said) and not learn


def _sharegpt_turns(record: dict[str, Any], where: str) -> Iterator[Turn]:
    if record.get("system") not in (None, ""):
        yield Turn("system", take_text(record, "system", where))
    yield from _list_of_turns(record, "conversations", ("from", "value"), ROLES, where)


def _message_turns(record: dict[str, Any], where: str) -> Iterator[Turn]:
    yield from _list_of_turns(record, "messages", ("role", "content"), ROLES, where)


def _dialogue_turns(record: dict[str, Any], where: str) -> Iterator[Turn]:
    roles = {"B": "user", "C": "assistant"}
    yield from _list_of_turns(record, "dialogue", ("role", "text"), roles, where)


TURNS = {
    "prompt": _prompt_turns,
    "alpaca": _alpaca_turns,
    "sharegpt": _sharegpt_turns,
    "messages": _message_turns,
    "dialogue": _dialogue_turns,
}
