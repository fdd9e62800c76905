"""summary.json: the statistics of one base and its adapters."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from cqa.schema.comparison import BaseGroup, Comparison, TextComparison
from cqa.schema.verdict import Choice, GroupFamily, Interaction, SeedEffect, Verdict
from cqa.schema.written import Result, merged, stored_as, unwritten

Stratum = Literal["before", "after", "unknown"]


@dataclass(frozen=True, slots=True)
class DatedCounts(Result):
    """How many items have a date, where no cutoff is given."""

    dated: int
    undated: int


@dataclass(frozen=True, slots=True)
class StratumCounts(Result):
    """How many items were published when, seen from the cutoff."""

    before: int
    after: int
    unknown: int


@dataclass(frozen=True, slots=True)
class Roles(Result):
    """Which group the question is about, and which one it is compared with."""

    primary: str | None
    control: str | None
    caveat: str | None = None  # where they were not named and had to be guessed


@dataclass(frozen=True, slots=True)
class GroupResults(Result):
    """The results of every group, of all items or of a stratum."""

    base: dict[str, BaseGroup]
    groups: dict[str, dict[str, Comparison]]  # by group and adapter
    continuations: dict[str, dict[str, TextComparison]]  # by group and adapter, or "base"


@dataclass(frozen=True, slots=True)
class Summary(Result):
    """The statistics of one base and its adapters."""

    unit: str
    variants: dict[str, str] = field(metadata=stored_as("readings"))  # what each of `Variants` is
    results: GroupResults = field(metadata=merged())
    verdict: Verdict
    highlighted: str | None  # the adapter that the verdict is about
    families: dict[str, GroupFamily]  # by group: the deciding test
    selection: dict[str, Choice]  # by group, as far as there is a choice
    interaction: dict[str, Interaction]  # by adapter
    seeds: dict[str, tuple[SeedEffect, ...]]  # by group, where runs differ in their seed only
    cutoff: str | None
    n_by_date: DatedCounts | StratumCounts
    strata: dict[Stratum, GroupResults]
    n_copies: dict[str, int]  # items left out, by group, whose texts another item has too
    roles: Roles = field(metadata=unwritten())
    candidates: tuple[str, ...] = field(metadata=unwritten())  # that the tests pay for

    @property
    def base(self) -> dict[str, BaseGroup]:
        """The groups of pairs under the base."""
        return self.results.base

    @property
    def groups(self) -> dict[str, dict[str, Comparison]]:
        """The groups of pairs, by group and adapter."""
        return self.results.groups

    @property
    def continuations(self) -> dict[str, dict[str, TextComparison]]:
        """The groups of continuations, by group and adapter, or "base"."""
        return self.results.continuations


@dataclass(frozen=True, slots=True)
class NotInFamily(Result):
    """An adapter that was scored on these items in a way that does not compare."""

    adapter: str
    differs_in: tuple[str, ...]  # keys of `ScoredModel`


@dataclass(frozen=True, slots=True)
class ScoreSummary(Result):
    """summary.json: the statistics, and what they are of."""

    statistics: Summary = field(metadata=merged())
    digest: str  # as in meta.json
    items_digest: str
    n_too_long: dict[str, int]  # items left out, by group
    n_unscored: dict[str, int]  # the same of those that the engine could not score
    model_keys: dict[str, str]  # by adapter, or "base"
    not_in_family: tuple[NotInFamily, ...]
    n_rejected: int = 0  # items left out because something is wrong with them
