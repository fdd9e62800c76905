"""Whether a server scores the text that it is given: asked before any work, probe by probe.

    reach      it answers at all                      key      it takes the key
    name       it serves the model                    ids      it takes a prompt of token ids
    logprobs   it gives log-probabilities of a prompt
    count      N ids give N entries, the first of them empty, the others finite and at most 0, and
               N tokens by its own count: no BOS is added. Asked of a text, of one that no tokenizer
               would cut so, which shows a server that decodes the ids, and of a text after nothing
               but the null token
    repeat     the same prompt gives the same numbers among others, as many at a time as in scoring
    prefix     and after one that shares its beginning, of which a cache holds wrong ones
    change     another token changes the sum: a server that answers 0.0 everywhere is none
    position   it changes its own place and none before; what the server would rather have had there
               stays, since it is of what comes before
    temperature  0 and 1 give the same numbers: they are not of what was made of them for drawing
    same       in a folder that is gone on with: the numbers are those of its beginning

Whichever fails first ends the command: numbers of such a server are no scores.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from cqa.errors import ModelError
from cqa.schema.capabilities import Capabilities, Route
from cqa.server.client import FAILED, Client, LostError, RefusedError, whole
from cqa.server.completions import Answer, Completions, NoLogprobsError, problem
from cqa.server.parallel import in_parallel
from cqa.text import named

# The most that one token's log-probability may move by itself. Batches of other sizes move it by
# a few hundredths in bf16; what a cache holds of another prompt is off by whole nats.
MOST_DRIFT_NATS = 0.1
TRIES = 3  # of the first prompt by each route
MOST_REPEATS = 16
N_OTHERS = 4  # other tokens that are put in one place
Others = dict[int, list[Answer]]  # by the place in which another token stands
ROUTES: tuple[Route, ...] = ("prompt_logprobs", "echo")


@dataclass(frozen=True, slots=True)
class Prompts:
    """What a server is asked, as token ids.

    Attributes:
        text: A text.
        spelled: A text that its tokenizer would write in fewer tokens; None where there is none.
        alone: A text after the null token.
    """

    text: tuple[int, ...]
    spelled: tuple[int, ...] | None
    alone: tuple[int, ...]


def shake_hands(
    client: Client,
    model: str,
    prompts: Prompts,
    *,
    concurrency: int = 1,
    before: Capabilities | None = None,
) -> tuple[Completions, Capabilities]:
    """Probe a server; return how to ask it, and what was found.

    Args:
        client: The server.
        model: The model's name there.
        prompts: What it is asked.
        concurrency: Requests at a time.
        before: What was found when the folder of scores that is gone on with was begun.

    Raises:
        ModelError: A probe failed, which the message names.
        ResourceError: The server does not answer.
    """
    return _Handshake(client, model, prompts, concurrency).shake(before)


@dataclass(slots=True)
class _Handshake:
    client: Client
    model: str
    prompts: Prompts
    concurrency: int
    probes: dict[str, str] = field(default_factory=dict)

    def shake(self, before: Capabilities | None) -> tuple[Completions, Capabilities]:
        entry = self._entry()
        server = self._route()
        first = self._sound(server, self.prompts.text, "count")
        if self.prompts.spelled is not None:
            self._sound(server, self.prompts.spelled, "count")
        self._sound(server, self.prompts.alone, "count")
        self.probes["count"] = "passed"
        repeat = self._repeated(server, first)
        others = self._others(server)
        prefix = self._drift("prefix", first, [self._again(server, "prefix")])
        change = self._changed(first, others)
        self._position(first, others)
        warm = self._again(server, "temperature", temperature=1.0)
        temperature = self._drift("temperature", first, [warm])
        found = Capabilities(
            server=self.client.url,
            served_model=self.model,
            root=_text(entry.get("root")),
            max_model_tokens=_count(entry.get("max_model_len")),
            route=server.route,
            probes=self.probes,
            probe_ids=self.prompts.text,
            probe_logp_nats=_values(first),
            drift_repeat_nats=repeat,
            drift_prefix_nats=prefix,
            drift_temperature_nats=temperature,
            change_nats=change,
        )
        self._same(found, before)
        return server, found

    def _refusal(self, probe: str, expected: str, got: str, hint: str | None = None) -> ModelError:
        return ModelError(
            f"expected {expected} (probe `{probe}`), got {got}", where=self.client.url, hint=hint
        )

    def _entry(self) -> dict[str, Any]:
        """Return what the server says of the model; nothing where it lists none."""
        try:
            with _within("reach"):
                listed = self.client.get("/models", tries=2).get("data")
        except RefusedError as refused:
            self.probes |= {"reach": "passed", "key": "passed"}
            self.probes["name"] = f"n/a: it lists no models ({refused})"
            return {}
        self.probes |= {"reach": "passed", "key": "passed"}
        entries = [e for e in listed if isinstance(e, dict)] if isinstance(listed, list) else []
        names = [name for e in entries if isinstance(name := e.get("id"), str)]
        if not names:
            self.probes["name"] = "n/a: it lists no models"
            return {}
        if self.model not in names:
            served = ", ".join(map(named, names[:5])) + (", …" if len(names) > 5 else "")
            raise self._refusal("name", f"a server of {named(self.model)}", f"one of {served}")
        self.probes["name"] = "passed"
        return next(e for e in entries if e.get("id") == self.model)

    def _route(self) -> Completions:
        """Return the first route by which the server gives log-probabilities of a prompt."""
        got = list[str]()
        refused: RefusedError | None = None
        failed = False
        for route in ROUTES:
            server = Completions(self.client, self.model, route)
            try:
                server.ask(self.prompts.text, tries=TRIES)
            except RefusedError as error:
                refused = error
                got.append(f"by {route}: {error}")
            except NoLogprobsError as error:
                got.append(f"by {route}: {error}")
            except LostError as error:
                if error.status != FAILED:
                    error.message += " (probe `logprobs`)"
                    raise
                failed = True
                got.append(f"by {route}: {error.said}")
            else:
                self.probes |= {"ids": "passed", "logprobs": "passed"}
                return server
        said = "; ".join(got)
        if refused is not None and refused.status == 404:
            raise self._refusal(
                "name", f"{named(self.model)} at /completions", said,
                "the server may have no completions, or another name for the model",
            )  # fmt: skip
        if refused is not None or failed:
            raise self._refusal(
                "ids", "a server that takes token ids and echoes their log-probabilities", said,
                "texts are not sent, since the server would cut them into tokens of its own",
            )  # fmt: skip
        raise self._refusal(
            "logprobs", "log-probabilities of the prompt", said,
            "docs/servers.md says which servers give them",
        )  # fmt: skip

    def _ask(
        self, server: Completions, ids: Sequence[int], probe: str, temperature: float = 0.0
    ) -> Answer:
        try:
            with _within(probe):
                return server.ask(ids, temperature=temperature)
        except (RefusedError, NoLogprobsError) as error:
            expected = f"an answer to {len(ids)} token ids"
            raise self._refusal(probe, expected, str(error)) from None

    def _sound(
        self, server: Completions, ids: Sequence[int], probe: str, temperature: float = 0.0
    ) -> Answer:
        """Return an answer that gives scores of all tokens."""
        answer = self._ask(server, ids, probe, temperature)
        if found := problem(answer, len(ids)):
            expected = f"a log-probability for each of {len(ids)} tokens but the first"
            raise self._refusal(probe, expected, found, _hint_of(answer, len(ids)))
        return answer

    def _again(self, server: Completions, probe: str, temperature: float = 0.0) -> Answer:
        return self._sound(server, self.prompts.text, probe, temperature)

    def _repeated(self, server: Completions, first: Answer) -> float:
        """Ask for the first prompt among others; return how much it moved."""
        n = min(max(2, self.concurrency), MOST_REPEATS)
        text, alone = self.prompts.text, self.prompts.alone
        answers = in_parallel(
            lambda ids: self._sound(server, ids, "repeat"), [alone, text] * n, self.concurrency
        )
        return self._drift("repeat", first, answers[1::2])

    def _drift(self, probe: str, first: Answer, again: Sequence[Answer]) -> float:
        """Return how much the first prompt moved when it was asked for again."""
        moved = max(_largest(first, answer) for answer in again)
        if moved > MOST_DRIFT_NATS:
            what = {
                "repeat": "the same log-probabilities for the same prompt",
                "prefix": "log-probabilities that no earlier prompt changes",
                "temperature": "the same log-probabilities at temperatures 0 and 1",
            }[probe]
            hint = {
                "repeat": "requests change each other's numbers; --concurrency 1 may help",
                "prefix": "start the server without prefix caching",
                "temperature": "it gives those that it draws from, not the model's",
            }[probe]
            raise self._refusal(probe, what, f"differences of up to {moved:.3g} nats", hint)
        self.probes[probe] = "passed"
        return moved

    def _others(self, server: Completions) -> Others:
        """Return the answers to the prompt with other tokens in its middle, and at its end."""
        ids = self.prompts.text
        others: Others = {}
        for place in (len(ids) // 2, len(ids) - 1):
            tokens = [token for token in dict.fromkeys(ids) if token != ids[place]][:N_OTHERS]
            others[place] = [
                self._sound(server, (*ids[:place], token, *ids[place + 1 :]), "change")
                for token in tokens
            ]
        return others

    def _changed(self, first: Answer, others: Others) -> float:
        """Check that another token changes the sum; return the most that it changes there."""
        answers = [other for answers in others.values() for other in answers]
        change = max(abs(sum(_values(first)) - sum(_values(other))) for other in answers)
        if change <= MOST_DRIFT_NATS:
            zero = not any(_values(first))
            raise self._refusal(
                "change", "another token to change the sum of the log-probabilities",
                "0.0 for every token" if zero else f"a change of {change:.3g} nats at the most",
                "the server does not score the prompt; llama.cpp's own server answers so",
            )  # fmt: skip
        self.probes["change"] = "passed"
        return max(_moved(first, o, place) for place, held in others.items() for o in held)

    def _position(self, first: Answer, others: Others) -> None:
        """Check that a token's log-probability stands in its own place."""
        self.probes["position"] = "passed"
        for place, answers in others.items():
            self._in_place(place, first, answers)

    def _in_place(self, place: int, first: Answer, others: Sequence[Answer]) -> None:
        expected = f"another token at place {place} to change"
        hint = "the server's log-probabilities are off by a position"
        for other in others:
            early = max((_moved(first, other, k) for k in range(1, place)), default=0.0)
            if early > MOST_DRIFT_NATS:
                got = f"a change of {early:.3g} nats before it"
                raise self._refusal(
                    "position", f"{expected} no log-probability before it", got, hint
                )
        own = max(_moved(first, other, place) for other in others)
        if own <= MOST_DRIFT_NATS:
            got = f"a change of {own:.3g} nats there"
            raise self._refusal("position", f"{expected} its own log-probability", got, hint)
        best = [answer.best[place] for answer in (first, *others)]
        known = [value for value in best if value is not None]
        if len(known) < len(best):
            self.probes["position"] = "passed, but for the alternatives: it names none"
            return
        spread = max(known) - min(known)
        if spread > MOST_DRIFT_NATS:
            got = f"alternatives whose best one moves by {spread:.3g} nats with it"
            raise self._refusal(
                "position", f"a log-probability of what precedes place {place}", got, hint
            )

    def _same(self, found: Capabilities, before: Capabilities | None) -> None:
        """Check that a folder's rows and those to come are of one model."""
        if before is None:
            return
        moved = found.moved_from(before)
        if moved is None:
            self.probes["same"] = "n/a: another tokenizer"
            return
        if moved > MOST_DRIFT_NATS:
            raise self._refusal(
                "same", "the model whose scores this folder holds",
                f"one whose log-probabilities differ by up to {moved:.3g} nats",
                "name another --out",
            )  # fmt: skip
        self.probes["same"] = "passed"


@contextmanager
def _within(probe: str) -> Iterator[None]:
    """Say of a server that does not answer in which probe that was."""
    try:
        yield
    except LostError as error:
        error.message += f" (probe `{probe}`)"
        raise


def _hint_of(answer: Answer, n_ids: int) -> str:
    n = answer.n_served if answer.n_served not in (None, n_ids) else len(answer.own)
    if n is not None and n > n_ids:
        return "the server puts tokens of its own, such as BOS, before what it is sent"
    if n is not None and n < n_ids:
        return "the server leaves tokens out, or makes a text of the ids and cuts it anew"
    return "the server does not score the prompt that it is sent"


def _values(answer: Answer) -> tuple[float, ...]:
    """Return the log-probabilities of a sound answer, from the second token on."""
    return tuple(value for value in answer.own[1:] if value is not None)


def _moved(a: Answer, b: Answer, place: int) -> float:
    """Return by how much the log-probabilities of two sound answers differ in one place."""
    return abs((a.own[place] or 0.0) - (b.own[place] or 0.0))


def _largest(a: Answer, b: Answer) -> float:
    return max(abs(x - y) for x, y in zip(_values(a), _values(b), strict=True))


def _text(value: object) -> str | None:
    return whole(value) if isinstance(value, str) else None


def _count(value: object) -> int | None:
    is_count = isinstance(value, int) and not isinstance(value, bool) and value > 0
    return value if is_count else None  # type: ignore[return-value]
