"""compare.json: models side by side on the items that all of them have scored.

A report reads it again, so whatever it draws and tabulates is checked here.
"""

from __future__ import annotations

from dataclasses import dataclass

from cqa.schema.record import Record
from cqa.schema.result import Interval

READINGS = {  # what the options are ranked by
    "sum": "S(x|y), summed over the tokens: longer options have less",
    "byte": "S(x|y) / bytes of x",
    "pmi": "I(x; y) = S(x|y) − S(x|∅)",
    "letter": "the letter that a chat answers, mean over all cyclic orders",
}


@dataclass(frozen=True, slots=True)
class Ranking(Record):
    """How a model ranks the options under one reading of their log-probabilities."""

    mean_rank_prob: float  # share of the softmax over the options that the right one has
    ci95: Interval | None  # over sources
    accuracy: float  # the right option first; the earliest among equals
    permuted_mean_rank_prob: float  # of an option drawn at random: the null control
    permuted_ci95: Interval | None
    chance: float  # mean of 1 / options


@dataclass(frozen=True, slots=True)
class SystemResult(Record):
    """One model on the items of a group that all models have."""

    system: str
    rankings: dict[str, Ranking]  # by reading, of those that the model gives
    bits_per_byte: float | None  # of the right options, given their contexts; None of a choice


@dataclass(frozen=True, slots=True)
class Contrast(Record):
    """One model less the reference on the items that both have, under one reading."""

    system: str
    reference: str
    reading: str
    n_items: int
    n_sources: int
    n_only_system: int
    n_only_reference: int
    rank_prob_difference: float | None
    ci95: Interval | None
    p: float | None  # two-sided
    p_holm: float | None  # over the models of this reading
    accuracy_difference: float | None
    n_right_system_alone: int
    n_right_reference_alone: int
    mcnemar_p: float | None  # exact, two-sided; items as independent
    mcnemar_p_holm: float | None


@dataclass(frozen=True, slots=True)
class GroupResult(Record):
    """A group of pairs."""

    n_items: int  # that all models have
    n_sources: int
    systems: tuple[SystemResult, ...]
    contrasts: tuple[Contrast, ...]


@dataclass(frozen=True, slots=True)
class TextsResult(Record):
    """A group of continuations under one model."""

    system: str
    group: str
    n_texts: int  # that all models have
    bits_per_byte: float


@dataclass(frozen=True, slots=True)
class Agreement(Record):
    """How far the log-probabilities of two models with one tokenizer lie apart."""

    system: str
    other: str
    same_model: bool | None  # by digest: what remains is the engine's; None of a server
    n_options: int
    largest_difference_nats: float


@dataclass(frozen=True, slots=True)
class Missing(Record):
    """An item that a model has no scores of."""

    system: str
    id: str
    group: str
    reason: str


@dataclass(frozen=True, slots=True)
class System(Record):
    """A model as its folder names it."""

    name: str
    folder: str
    model: str
    adapter: str | None
    engine: str
    dtype: str
    batch_invariant: bool
    model_digest: str | None  # of the base; None of a chat, as are the next three
    tokenizer_digest: str | None
    template_digest: str | None
    null_ids: tuple[int, ...] | None
    readings: tuple[str, ...]  # what it gives; the others are n/a


@dataclass(frozen=True, slots=True)
class Comparison(Record):
    """compare.json."""

    reference: str
    systems: tuple[System, ...]
    groups: dict[str, GroupResult]
    continuations: tuple[TextsResult, ...]
    agreements: tuple[Agreement, ...]
    missing: tuple[Missing, ...]

    def problem(self) -> str | None:
        """Say which result is not one of the models, or of none; see `Record.problem`."""
        known = {system.name for system in self.systems}
        if len(known) < 2 or self.reference not in known:
            return "expected two models or more, the reference among them"
        for group, result in self.groups.items():
            named = [held.system for held in result.systems]
            if len(named) != len(known) or {*named} != known:
                return f"expected results of every model in group {group!r:.80}"
            for held in result.systems:
                if not held.rankings or not held.rankings.keys() <= READINGS.keys():
                    return f"expected readings of {', '.join(READINGS)} in group {group!r:.80}"
        return None
