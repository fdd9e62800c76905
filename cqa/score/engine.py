"""The seam between items and whatever computes log-probabilities.

An engine takes sequences of token ids and returns the statistics of every token: our decoder
(`decoder_engine.py`), or another program. Encoding, passes, rows, resume and errors are the same
for all of them.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from cqa.data.tokenizer import Ids
from cqa.score.adapters import AdapterFolder
from cqa.score.prefix_batch import PrefixBatch


class SequenceStats:
    """Of every option token after a context: log-probability and entropy in nats, and rank.

    Entropy and rank are None where an engine gives only the log-probabilities of the text itself.
    Varentropy, in nats², is None where it was not asked for; no file holds it.
    """

    def __init__(
        self,
        logp: list[float],
        entropy: list[float] | None = None,
        rank: list[int] | None = None,
        varentropy: list[float] | None = None,
    ) -> None:
        self.logp, self.entropy, self.rank, self.varentropy = logp, entropy, rank, varentropy
        self.problem: str | None = None  # why there is no score, where there is none

    @classmethod
    def unscored(cls, n_tokens: int, problem: str) -> SequenceStats:
        """Stand for a sequence that an engine could not score: no number, and never 0."""
        stats = cls([math.nan] * n_tokens)
        stats.problem = problem
        return stats

    @property
    def total(self) -> float:
        """S(x|c): the exactly rounded sum of the tokens' log-probabilities."""
        return math.fsum(self.logp)

    @property
    def total_entropy(self) -> float | None:
        """The sum of the next-token entropies at the option's tokens, where they are known."""
        return None if self.entropy is None else math.fsum(self.entropy)


SequenceScores = dict[tuple[Ids, Ids], SequenceStats]  # by context and text
Run = Callable[[PrefixBatch], SequenceScores]  # every sequence of a pass


@dataclass(frozen=True, slots=True)
class EngineIdentity:
    """What of an engine decides a score's digits; in meta.json for every model."""

    engine: str
    model: str  # digest of the base
    device: str  # cpu, cuda
    dtype: str
    backend: str  # what computes, with its version where it is not this package
    batch_invariant: bool  # whether a score is the same to the last bit whatever shares its pass


class Engine(Protocol):
    """A base model and its adapters, of which one or none is in use at a time.

    Attributes:
        vocab_size: The token ids that it has; known before it is open.
        max_positions: Most tokens of context and text together; known before it is open.
        pass_rows: Most rows of a pass where nobody asks for another number; known once it is open.
        computes_elsewhere: Whether this processor is free while a pass runs, which is then worth a
            thread; known once it is open.
    """

    @property
    def vocab_size(self) -> int: ...

    @property
    def max_positions(self) -> int: ...

    @property
    def pass_rows(self) -> int: ...

    @property
    def computes_elsewhere(self) -> bool: ...

    def open(self) -> EngineIdentity:
        """Load the base, with room for its adapters; called once the items have been checked.

        Raises:
            ModelError: Files are missing or malformed, or do not fit together.
            ResourceError: There is not enough memory.
        """

    def make_room(self, adapter: AdapterFolder) -> None:
        """Make room for an adapter that was not known before the base was loaded."""

    def use(self, adapter: AdapterFolder | None) -> None:
        """Score with an adapter from here on, or with the base.

        Raises:
            ModelError: The adapter is malformed or does not fit the base.
        """

    def use_silenced(self, adapter: AdapterFolder) -> None:
        """Score with an adapter that adds nothing: what differs from it is the adapter's effect.

        Another rounding of the same sums is none.
        """

    def run(self, prefixes: PrefixBatch) -> SequenceScores:
        """Score every sequence of a pass; memory that runs out is raised as it comes."""
