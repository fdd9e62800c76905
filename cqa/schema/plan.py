"""plan.json: an analysis that was fixed before anything was scored."""

from __future__ import annotations

from dataclasses import dataclass

from cqa.schema.record import Record

READING = "sum over tokens, nats, after the first null context"


@dataclass(frozen=True, slots=True, kw_only=True)
class AnalysisPlan(Record):
    """What is fixed: groups, reading, null, margin, the family, the choice, the items."""

    primary: str | None
    control: str | None
    reading: str  # of dI in the deciding tests
    null_token: str | None  # None is the model's own: BOS, else <|endoftext|>, else EOS
    boundary: str
    score_eos: bool
    template: str
    margin: float | None  # nats; None is d_z of 0.2
    cutoff: str | None
    choose: str
    choose_on: str | None
    epochs: tuple[int, ...]  # of every run: the adapters of the family
    adapters: tuple[str, ...]  # others of the family, by the names they have in the results
    n_items: dict[str, int]  # by group
    items_digest: str  # of all texts and labels in their order
