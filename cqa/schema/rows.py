"""Lines of scores.jsonl, items.jsonl and rejected.jsonl."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from cqa.schema.record import Record
from cqa.schema.written import stored_as

Kind = Literal["pair", "options", "continuation"]
Role = Literal["good", "bad", "right", "wrong", "continuation"]
# The share of texts with `boundary_mismatch` from which it is told: one in twenty, since fewer can
# hardly move a mean over all.
CHOOSERS = "choose-on"  # group of the items that choose an adapter and are not reported
MANY_MERGES = 0.05


@dataclass(frozen=True, slots=True, kw_only=True)
class OptionScore(Record):
    """One text after its context and after the null contexts, under one model."""

    role: Role
    logp_given_context_nats: float  # S(x|y), summed over the option's tokens
    logp_null_nats: float  # S(x|null)
    logp_null2_nats: float | None  # the same after null token and newline; None: not measured
    pmi_nats: float  # I(x; y) = S(x|y) - S(x|null)
    # of the next token, summed over the option's tokens; None: the engine gives none
    entropy_given_context_nats: float | None
    entropy_null_nats: float | None
    n_tokens: int
    n_bytes: int
    n_chars: int
    # whether encoding context and option at once gives other tokens
    boundary_mismatch: bool = field(metadata=stored_as("boundary_merge"))
    # with --tokens
    token_ids: tuple[int, ...] | None = None
    token_char_ends: tuple[int, ...] | None = None  # where each token ends in the option's text
    token_logp_given_context_nats: tuple[float, ...] | None = None
    token_logp_null_nats: tuple[float, ...] | None = None

    def problem(self) -> str | None:
        """Say what the statistics would stumble over."""
        counts = (self.n_tokens, self.n_bytes, self.n_chars)
        if min(counts) < 1:
            return f"expected at least one token, byte and character, got {counts}"
        per_token = (
            self.token_ids, self.token_char_ends, self.token_logp_given_context_nats,
            self.token_logp_null_nats,
        )  # fmt: skip
        lengths = {len(values) for values in per_token if values is not None}
        if lengths - {self.n_tokens}:
            return f"expected {self.n_tokens} values a token, got {sorted(lengths)}"
        return None


@dataclass(frozen=True, slots=True, kw_only=True)
class ItemRow(Record):
    """One item under one model: a line of scores.jsonl, but for its checksum."""

    id: str
    group: str
    domain: str | None
    lang: str | None
    source_id: str | None
    published_at: str | None
    kind: Kind
    answer: int | None  # index of the right option; None for a continuation
    adapter: str | None  # None is the base
    model_key: str
    item_key: str
    options: tuple[OptionScore, ...]
    delta_i_nats: float | None  # None for a continuation, as are the next two
    delta_i_best_wrong_nats: float | None
    rank_prob: float | None

    def problem(self) -> str | None:
        """Say what the statistics would stumble over."""
        if not self.options:
            return "expected an option, got none"
        if self.kind == "continuation":
            return None
        n = len(self.options)
        if self.answer is None or not 0 <= self.answer < n or n < 2:
            return (
                f"expected the `answer` to be one of two or more options, got {self.answer} of {n}"
            )
        if self.delta_i_nats is None:
            return "expected `delta_i_nats` of an item with an answer, got none"
        return None

    @property
    def full_key(self) -> str:
        """What the row and its item are found again by: texts, labels and id."""
        return self.item_key + self.id


@dataclass(frozen=True, slots=True, kw_only=True)
class ItemText(Record):
    """The texts of one item: a line of items.jsonl."""

    id: str
    item_key: str
    kind: Kind
    context: str
    options: tuple[str, ...]
    answer: int | None
    group: str | None = None
    domain: str | None = None
    lang: str | None = None
    source_id: str | None = None
    published_at: str | None = None
    licence: str | None = None

    @property
    def full_key(self) -> str:
        """What the item and its rows are found again by: texts, labels and id."""
        return self.item_key + self.id


@dataclass(frozen=True, slots=True, kw_only=True)
class RejectedItem(Record):
    """An item that was left out because something is wrong with it: a line of rejected.jsonl."""

    where: str  # file:line
    id: str | None  # None where it cannot be read
    reason: str
    hint: str | None
