"""A prompt as token ids in, the log-probability of each of its tokens out.

Two routes of `/v1/completions` give them: `prompt_logprobs` (vLLM, SGLang), where every entry names
the token ids that it is of, and `echo` with `logprobs` (what OpenAI's own servers once did, and
others do after them). One token is always generated, since 0 means "without end" to some servers;
what a server says of it is left aside.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from cqa.schema.capabilities import Route
from cqa.server.client import Client

ROUNDING_NATS = 1e-5  # a log-softmax in fp32 may come out this much above 0
INSTEAD_OF_INFINITY = -9999.0  # what vLLM writes for minus infinity


@dataclass(frozen=True, slots=True)
class Answer:
    """What a server says of a prompt.

    Attributes:
        own: The log-probability of every entry's own token, in nats; None where there is none.
        best: The largest log-probability that the entry names; None where it names none.
        other_token: The first place whose entry does not name the token that was sent.
        n_served: Tokens of the prompt by the server's own count; None where it does not say.
    """

    own: tuple[float | None, ...]
    best: tuple[float | None, ...]
    other_token: int | None = None
    n_served: int | None = None


class NoLogprobsError(Exception):
    """An answer has no log-probabilities of the prompt."""


@dataclass(frozen=True, slots=True)
class Completions:
    """A model at a server, by one route."""

    client: Client
    model: str
    route: Route

    def ask(
        self, ids: Sequence[int], *, temperature: float = 0.0, tries: int | None = None
    ) -> Answer:
        """Return what the server says of a prompt.

        Args:
            ids: The prompt.
            temperature: Of the token that is generated after it.
            tries: How often it is asked at most; see `Client.post`.

        Raises:
            NoLogprobsError: The answer has no log-probabilities of the prompt.
            RefusedError: The server does not take the request.
            ModelError: It does not take the key.
            LostError: It does not answer.
        """
        body = {
            "model": self.model,
            "prompt": list(ids),
            "max_tokens": 1,
            "temperature": temperature,
            **_ASKED[self.route],
        }
        return _READ[self.route](self.client.post("/completions", body, tries=tries), ids)


_ASKED: Mapping[Route, Mapping[str, object]] = {
    "prompt_logprobs": {"prompt_logprobs": 1},
    "echo": {"echo": True, "logprobs": 1},
}


def problem(answer: Answer, n_ids: int, since: int = 1) -> str | None:
    """Say why an answer gives no scores of a prompt; None if it does.

    Args:
        answer: What the server says.
        n_ids: Tokens of the prompt.
        since: The first place whose log-probability is needed.
    """
    if len(answer.own) != n_ids:
        return f"{len(answer.own)} log-probabilities for {n_ids} tokens"
    if answer.n_served is not None and answer.n_served != n_ids:
        return f"a prompt of {answer.n_served} tokens by its own count for {n_ids} that were sent"
    if answer.other_token is not None:
        return f"another token than was sent at place {answer.other_token}"
    if answer.own[0] is not None:
        return "a log-probability of the first token, which nothing comes before"
    for place, value in enumerate(answer.own[since:], start=since):
        if found := _value_problem(value):
            return f"{found} at place {place} of {n_ids}"
    return None


def _value_problem(value: float | None) -> str | None:
    if value is None:
        return "no log-probability"
    if not math.isfinite(value):
        return f"the log-probability {value}"
    if value > ROUNDING_NATS:
        return f"the log-probability {value:+.6f}, which is above 0,"
    if value <= INSTEAD_OF_INFINITY:
        return f"{value}, which stands for minus infinity,"
    return None


def _read_prompt_logprobs(answer: Mapping[str, Any], ids: Sequence[int]) -> Answer:
    entries = _list(_choice(answer).get("prompt_logprobs"))
    own: list[float | None] = []
    best: list[float | None] = []
    other_token = None
    for place, entry in enumerate(entries):
        if entry is None:
            own.append(None)
            best.append(None)
            continue
        values = _values(entry)
        token = str(ids[place]) if place < len(ids) else ""
        if token not in values and other_token is None:
            other_token = place
        own.append(values.get(token))
        best.append(max((v for v in values.values() if v is not None), default=None))
    return Answer(tuple(own), tuple(best), other_token, _usage(answer, "prompt_tokens"))


def _values(entry: object) -> dict[str, float | None]:
    """Return the log-probability of every token id that an entry names."""
    if not isinstance(entry, dict):
        raise NoLogprobsError("entries of `prompt_logprobs` that are no objects")
    return {
        str(token): _number(value.get("logprob") if isinstance(value, dict) else value)
        for token, value in entry.items()
    }


def _read_echo(answer: Mapping[str, Any], ids: Sequence[int]) -> Answer:
    choice = _choice(answer)
    held = choice.get("logprobs")
    if not isinstance(held, dict):
        raise NoLogprobsError("no `logprobs`")
    own = [_number(value) for value in _list(held.get("token_logprobs"))]
    tops = held.get("top_logprobs")
    best = [_best(top) for top in tops] if isinstance(tops, list) else []
    best += [None] * (len(own) - len(best))
    n_generated = _usage(answer, "completion_tokens")
    if n_generated is None:  # the one that was asked for; an end may have no entry
        no_end = choice.get("finish_reason") == "length"
        n_generated = 1 if no_end or len(own) > len(ids) else 0
    n_prompt = max(0, len(own) - n_generated)
    return Answer(
        tuple(own[:n_prompt]), tuple(best[:n_prompt]), None, _usage(answer, "prompt_tokens")
    )


def _best(top: object) -> float | None:
    values = [_number(v) for v in top.values()] if isinstance(top, dict) else []
    return max((v for v in values if v is not None), default=None)


_READ: Mapping[Route, Callable[[Mapping[str, Any], Sequence[int]], Answer]] = {
    "prompt_logprobs": _read_prompt_logprobs,
    "echo": _read_echo,
}


def _choice(answer: Mapping[str, Any]) -> Mapping[str, Any]:
    choices = answer.get("choices")
    if not isinstance(choices, list) or not choices or not isinstance(choices[0], dict):
        raise NoLogprobsError("no `choices`")
    return choices[0]


def _list(value: object) -> list[Any]:
    if not isinstance(value, list):
        raise NoLogprobsError("no list of log-probabilities of the prompt")
    return value


def _number(value: object) -> float | None:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    try:
        return float(value)
    except OverflowError:  # a whole number of hundreds of digits
        return math.inf


def _usage(answer: Mapping[str, Any], key: str) -> int | None:
    usage = answer.get("usage")
    value = usage.get(key) if isinstance(usage, dict) else None
    return value if isinstance(value, int) and not isinstance(value, bool) else None
