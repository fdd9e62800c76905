"""The verdict: what the numbers show, decided by rules that were fixed before they were seen."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Mark = Literal["shown", "not shown", "against", "n/a"]
Name = Literal[
    "change", "selective", "conditional", "control_small", "placebo", "entropy", "continuations"
]


@dataclass(frozen=True, slots=True)
class Finding:
    """One question, whether the data answer it, and by which number."""

    name: Name
    mark: Mark
    group: str | None  # the items it is about
    adapter: str | None
    estimate: float | None
    unit: str
    ci95: tuple[float, float] | None  # simultaneous over the adapters
    p: float | None  # of the deciding test, corrected for the adapters that were looked at
    p_alone: float | None  # of the same test, had this adapter been the only one
    test: str  # what p is of, in words
    n_items: int
    n_sources: int
    reason: str  # why the mark is what it is


@dataclass(frozen=True, slots=True)
class Verdict:
    """summary.json["verdict"]."""

    headline: str
    findings: tuple[Finding, ...]

    def finding(self, name: Name) -> Finding | None:
        """Return the finding of a name, if the question could be asked."""
        return next((finding for finding in self.findings if finding.name == name), None)
