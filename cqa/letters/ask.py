"""One question to a chat server, and the letter probabilities of its answer.

A server of chat completions tells of generated tokens only, at most the 20 likeliest. So options
are put under letters, and the probability of each letter as the first token is what counts. Each
option stands once under every letter (all cyclic orders), since models favour letters and places.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from string import ascii_uppercase
from typing import Any

from cqa.errors import ModelError
from cqa.server.client import Client, RefusedError

TOP = 20  # the most that servers give
FIRST_TRIES = 3  # of the first question: a server that was never there is not waited for
QUESTION = (
    "Which of these continuations of the text is the best one?\n\n"
    "Text:\n{context}\n\n{options}\n\nAnswer with its letter alone."
)


class NoLettersError(Exception):
    """An answer has no probabilities of letters."""


@dataclass(frozen=True, slots=True)
class Chat:
    """A model at a server of chat completions."""

    client: Client
    model: str

    def ask(self, context: str, options: Sequence[str], *, tries: int | None = None) -> list[float]:
        """Return the probability of each option's letter as the first token of the answer.

        Args:
            context: The text before.
            options: What may follow it.
            tries: How often at most the server is asked; by default as its client says.

        Raises:
            NoLettersError: The answer has no log-probabilities.
            RefusedError: The server does not take the request.
            ModelError: It does not take the key.
            LostError: It does not answer.
        """
        body = {
            "model": self.model,
            "messages": [{"role": "user", "content": question(context, options)}],
            "max_tokens": 1,
            "temperature": 0,
            "logprobs": True,
            "top_logprobs": TOP,
        }
        answer = self.client.post("/chat/completions", body, tries=tries)
        return letter_probabilities(answer, len(options))

    def check(self) -> None:
        """Ask something plain.

        Raises:
            ModelError: The server gives no log-probabilities of its answers.
            ResourceError: It does not answer.
        """
        try:
            options = [" and she waited.", " and she slept."]
            found = self.ask("The lamp was lit", options, tries=FIRST_TRIES)
        except NoLettersError as error:
            raise ModelError(
                f"expected log-probabilities of the answer's first token, got {error} "
                f"(probe `letters`)",
                where=self.client.url,
                hint="without them a choice has no probability; another server may give them",
            ) from None
        except RefusedError as refused:
            raise ModelError(
                f"expected {self.model} to answer a chat, got {refused} (probe `letters`)",
                where=self.client.url,
            ) from None
        if not any(found):
            raise ModelError(
                f"expected a letter among the {TOP} likeliest first tokens, got none "
                f"(probe `letters`)",
                where=self.client.url,
                hint="models that think before they answer cannot be asked in this way",
            )


def question(context: str, options: Sequence[str]) -> str:
    """Return what the server is asked."""
    lettered = zip(ascii_uppercase, options, strict=False)
    listed = "\n\n".join(f"{letter}:\n{option.strip()}" for letter, option in lettered)
    return QUESTION.format(context=context, options=listed)


def letter_probabilities(answer: Mapping[str, Any], n_options: int) -> list[float]:
    """Return the probability of each letter, its surface forms summed.

    Raises:
        NoLettersError: The answer has no log-probabilities, or other than log-probabilities.
    """
    try:
        tokens = answer["choices"][0]["logprobs"]["content"][0]["top_logprobs"]
        given = [(str(entry["token"]).strip(), float(entry["logprob"])) for entry in tokens]
    except (KeyError, IndexError, TypeError, ValueError):
        raise NoLettersError("none") from None
    if not given:
        raise NoLettersError("none")
    if any(math.isnan(logp) or logp > 1e-5 for _, logp in given):
        raise NoLettersError("numbers that are no log-probabilities")
    found = dict.fromkeys(ascii_uppercase[:n_options], 0.0)
    for token, logp in given:
        if token in found:
            found[token] += math.exp(min(logp, 0.0))
    return list(found.values())


def cyclic_orders(n: int) -> list[list[int]]:
    """Return every order in which option k stands at place (k + shift) mod n."""
    return [[(place - shift) % n for place in range(n)] for shift in range(n)]
