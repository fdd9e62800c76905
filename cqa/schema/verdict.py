"""The verdict: what the numbers show, decided by rules that were fixed before they were seen."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from cqa.schema.result import Interval, Welch
from cqa.schema.written import Result

Mark = Literal["shown", "not shown", "against", "n/a"]
Name = Literal[
    "change", "selective", "conditional", "control_small", "placebo", "entropy", "continuations"
]


@dataclass(frozen=True, slots=True)
class Finding(Result):
    """One question, whether the data answer it, and by which number."""

    name: Name
    mark: Mark
    group: str  # the items it is about
    adapter: str
    estimate: float | None
    unit: str
    ci95: Interval | None  # simultaneous over the adapters
    p: float | None  # of the deciding test, corrected for the adapters that were looked at
    p_alone: float | None  # of the same test, had this adapter been the only one
    test: str  # what p is of, in words
    n_items: int
    n_sources: int
    reason: str  # why the mark is what it is


@dataclass(frozen=True, slots=True)
class Verdict(Result):
    """summary.json["verdict"]."""

    headline: str
    findings: tuple[Finding, ...]

    def finding(self, name: Name) -> Finding | None:
        """Return the first finding of a name, if the question could be asked."""
        return next((finding for finding in self.findings if finding.name == name), None)


@dataclass(frozen=True, slots=True)
class FamilyChange(Result):
    """One adapter's mean ddI in the deciding test."""

    mean_ddi_nats: float
    ci95_nats: Interval | None  # simultaneous over the family
    p: float | None  # one-sided, as if it were the only adapter
    p_corrected: float | None  # for every adapter that was ever scored on these items


@dataclass(frozen=True, slots=True)
class GroupFamily(Result):
    """The deciding test of one group of pairs, over all adapters that were ever scored on it."""

    n_items: int
    n_sources: int
    method: str
    changes: dict[str, FamilyChange]
    controls: tuple[str, ...]  # placebo adapters: never candidates
    incomplete: dict[str, int]  # adapters left out, and how many of the items each has


@dataclass(frozen=True, slots=True)
class CrossFitted(Result):
    """The change of each item under the adapter that the other sources chose."""

    mean_ddi_nats: float
    ci95_nats: Interval | None
    p: float | None
    n_folds: int
    n_chosen: dict[str, int]


@dataclass(frozen=True, slots=True)
class Choice(Result):
    """Which adapter the verdict is about, and what the choice is worth."""

    chosen: str
    rule: str
    n_adapters: int
    chosen_when_drawn_anew: dict[str, float]  # share of resamples of the sources
    cross_fitted: CrossFitted | None
    paper_choice: str  # smallest one-sided Wilcoxon p, then largest d_z


@dataclass(frozen=True, slots=True)
class SeedEffect(Result):
    """One epoch of several runs that differ in their seed only, as one adapter."""

    epoch: int
    placebo: bool
    adapters: dict[str, str]  # by seed
    mean_ddi_nats: float  # over items and seeds
    ci95_nats: Interval | None  # of other items (within sources) and other seeds
    p: float | None  # one-sided, alone
    df: int
    mean_by_seed_nats: dict[str, float]
    sd_of_seeds_nats: float
    n_items: int
    n_sources: int
    n_seeds: int


@dataclass(frozen=True, slots=True)
class GroupDifference(Result):
    """How much more ddI rises in the primary group than in the control, in one unit."""

    difference: float
    ci95: Interval | None  # simultaneous over the adapters
    p_two_sided: float | None
    p_corrected: float | None


@dataclass(frozen=True, slots=True)
class Interaction(Result):
    """The difference of the groups under one adapter; both units must agree."""

    sum_nats: GroupDifference
    per_token_nats: GroupDifference
    welch: Welch  # of the sum, items as independent: as the paper would have it
