"""letters.jsonl and letters.json: what a chat server chose."""

from __future__ import annotations

from dataclasses import dataclass

from cqa.schema.record import Record
from cqa.schema.rows import Kind


@dataclass(frozen=True, slots=True, kw_only=True)
class LettersRow(Record):
    """One item: a line of letters.jsonl."""

    id: str
    item_key: str
    key: str  # of model and question; rows of another are not read
    kind: Kind
    group: str
    source_id: str | None
    answer: int
    shares: tuple[float, ...]  # of each option, mean over all cyclic orders; empty if unscored
    covered: tuple[float, ...]  # probability that fell on the letters, of each order
    unscored: str | None = None  # why there are no shares

    def problem(self) -> str | None:
        """Say what a comparison would stumble over."""
        n = len(self.shares)
        if self.unscored is None and not 0 <= self.answer < n:
            return f"expected the `answer` to be one of the shares, got {self.answer} of {n}"
        return None

    @property
    def full_key(self) -> str:
        """What the row and its item are found again by: texts, labels and id."""
        return self.item_key + self.id


@dataclass(frozen=True, slots=True, kw_only=True)
class LettersMeta(Record):
    """letters.json: the model, the question, and what came of it."""

    server: str
    model: str
    key: str
    question: str
    n_items: int
    n_unscored: int
    mean_covered: float | None
    n_hardly_covered: int  # items with less than half of the probability on letters
    accuracy: float | None
