"""compare.json: models side by side on the items that all of them have scored."""

from __future__ import annotations

from dataclasses import dataclass

from cqa.schema.result import Interval
from cqa.schema.written import Result


@dataclass(frozen=True, slots=True)
class Ranking(Result):
    """How a model ranks the options under one reading of their log-probabilities."""

    mean_rank_prob: float  # share of the softmax over the options that the right one has
    ci95: Interval | None  # over sources
    accuracy: float  # the right option first; the earliest among equals
    permuted_mean_rank_prob: float  # of an option drawn at random: the null control
    permuted_ci95: Interval | None
    chance: float  # mean of 1 / options


@dataclass(frozen=True, slots=True)
class SystemResult(Result):
    """One model on the items of a group that all models have."""

    system: str
    rankings: dict[str, Ranking]  # by reading, of those that the model gives
    bits_per_byte: float | None  # of the right options, given their contexts; None of a choice


@dataclass(frozen=True, slots=True)
class Contrast(Result):
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
class GroupResult(Result):
    """A group of pairs."""

    n_items: int  # that all models have
    n_sources: int
    systems: tuple[SystemResult, ...]
    contrasts: tuple[Contrast, ...]


@dataclass(frozen=True, slots=True)
class TextsResult(Result):
    """A group of continuations under one model."""

    system: str
    group: str
    n_texts: int  # that all models have
    bits_per_byte: float


@dataclass(frozen=True, slots=True)
class Agreement(Result):
    """How far the log-probabilities of two models with one tokenizer lie apart."""

    system: str
    other: str
    same_model: bool  # by digest: what remains is the engine's
    n_options: int
    largest_difference_nats: float


@dataclass(frozen=True, slots=True)
class Missing(Result):
    """An item that a model has no scores of."""

    system: str
    id: str
    group: str
    reason: str


@dataclass(frozen=True, slots=True)
class System(Result):
    """A model as its folder names it."""

    name: str
    folder: str
    model: str
    adapter: str | None
    engine: str
    dtype: str
    batch_invariant: bool
    tokenizer_digest: str | None  # None of a chat, as are the next two
    template_digest: str | None
    null_ids: tuple[int, ...] | None
    readings: tuple[str, ...]  # what it gives; the others are n/a


@dataclass(frozen=True, slots=True)
class Comparison(Result):
    """compare.json."""

    reference: str
    systems: tuple[System, ...]
    groups: dict[str, GroupResult]
    continuations: tuple[TextsResult, ...]
    agreements: tuple[Agreement, ...]
    missing: tuple[Missing, ...]
