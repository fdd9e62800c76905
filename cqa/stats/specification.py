"""The specification curve: the same question in every unit, after every null, by every test.

Source: Simonsohn, Simmons & Nelson 2020, "Specification curve analysis".
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from scipy import stats

from cqa.schema.summary import Summary
from cqa.schema.verdict import Mark, Verdict
from cqa.stats.clusters import Values, by_source
from cqa.stats.columns import Facts, ItemScores
from cqa.stats.deciding import FEWEST_SOURCES, Change, difference_test, family_test
from cqa.stats.items import LENGTHS, OF_PMI
from cqa.stats.tests import ALPHA, paired_t, welch, wilcoxon

Question = Literal["change", "selective"]
Tail = tuple[float | None, float | None]  # one-sided p of above and of below 0
UNITS = {"sum": "nats", "token": "nats/token", "byte": "nats/byte"}
NULLS = ("null", "null2")
SEVERAL = "deciding test"


@dataclass(frozen=True, slots=True)
class Specification:
    """What one way of asking answers."""

    question: Question
    per: str  # a key of UNITS
    null: str
    test: str
    estimate: float
    unit: str
    p: float | None  # one-sided for the change, two-sided for the difference of groups
    says: Mark
    agrees: bool | None  # with the verdict's mark of the question; None where it has none


@dataclass(frozen=True, slots=True)
class _Group:
    """One group's changes under every complete adapter, in one reading."""

    ddi: dict[str, Values]
    sources: list[str | None]


def specification_curve(
    items: Mapping[str, Mapping[str | None, ItemScores]],
    facts: Facts,
    groups: Sequence[str],
    adapter: str,
    summary: Summary,
) -> list[Specification]:
    """Ask for the change of the primary group, and its difference from the control if there is one.

    Args:
        items: Scores by group, model (None is the base) and id.
        facts: What is known of each item.
        groups: The primary group, and the control where there is one.
        adapter: The adapter that the verdict is about.
        summary: With whose marks the answers are compared, and whose candidates are paid for.
    """
    found: list[Specification] = []
    verdict, candidates = summary.verdict, summary.candidates
    for null in NULLS:
        for per in UNITS:
            tried = [
                _read(items[group], facts, _reading(per, null), candidates) for group in groups
            ]
            read = [one for one in tried if one is not None and adapter in one.ddi]
            if len(read) < len(groups):
                continue
            found += _asked("change", per, null, _change_tails(read[0], adapter), verdict)
            if len(read) > 1:
                tails = _difference_tails(read[0], read[1], adapter)
                found += _asked("selective", per, null, tails, verdict)
    return sorted(found, key=lambda one: one.question)


def _reading(per: str, null: str) -> tuple[str, int | None]:
    """Return the column of `ItemScores` that a reading is in."""
    if per == "sum":
        return ("delta_i_nats" if null == "null" else "delta_i_null2_nats"), None
    if null == "null":
        return "variants", OF_PMI.index(f"per_{per}")
    return "null2_lengths", LENGTHS.index(f"n_{per}s")


def _read(
    models: Mapping[str | None, ItemScores],
    facts: Facts,
    column: tuple[str, int | None],
    candidates: Collection[str],
) -> _Group | None:
    """Return the changes in one reading; None where it was not measured."""
    base = models[None]
    before = base.column(*column)
    ddi = {
        name: scores.only(base).column(*column) - before
        for name, scores in models.items()
        if name is not None and name in candidates and scores.covers(base)
    }
    if np.isnan(before).any() or any(np.isnan(values).any() for values in ddi.values()):
        return None
    return _Group(ddi, facts.labels("source_id", base.rows))


Answered = tuple[float, dict[str, tuple[Tail, bool]]]  # estimate; by test, and whether it may say


def _change_tails(group: _Group, adapter: str) -> Answered:
    ddi = group.ddi[adapter]
    family = family_test(by_source(group.ddi, group.sources))
    below, above = (wilcoxon(ddi, side).p for side in ("less", "greater"))
    p_t = paired_t(ddi).p_one_sided
    return float(ddi.mean()), {
        "Wilcoxon (paper)": ((above, below), True),
        "t": ((p_t, None if p_t is None else 1 - p_t), True),
        SEVERAL: (_tail(family.changes[adapter]), family.n_sources >= FEWEST_SOURCES),
    }


def _difference_tails(primary: _Group, control: _Group, adapter: str) -> Answered:
    shared = [name for name in primary.ddi if name in control.ddi]
    a, b = primary.ddi[adapter], control.ddi[adapter]
    family = difference_test(
        by_source({name: primary.ddi[name] for name in shared}, primary.sources),
        by_source({name: control.ddi[name] for name in shared}, control.sources),
    )
    above, below = (
        float(stats.mannwhitneyu(a, b, alternative=side).pvalue) for side in ("greater", "less")
    )
    two = welch(a, b)
    tail: Tail = (None, None)
    if two.p_two_sided is not None and two.t is not None:
        half = two.p_two_sided / 2
        tail = (half, 1 - half) if two.t > 0 else (1 - half, half)
    return float(a.mean() - b.mean()), {
        "Mann-Whitney": ((above, below), True),
        "t (paper)": (tail, True),
        SEVERAL: (_tail(family.changes[adapter]), family.n_sources >= FEWEST_SOURCES),
    }


def _tail(found: Change) -> Tail:
    return found.p_greater_corrected, found.p_less_corrected


def _asked(
    question: Question, per: str, null: str, answered: Answered, verdict: Verdict
) -> Iterator[Specification]:
    estimate, tests = answered
    finding = verdict.finding(question)
    for test, (tail, enough) in tests.items():
        p, says = _judged(question, estimate, tail, enough=enough)
        agrees = None if finding is None else says == finding.mark
        yield Specification(question, per, null, test, estimate, UNITS[per], p, says, agrees)


def _judged(
    question: Question, estimate: float, tail: Tail, *, enough: bool
) -> tuple[float | None, Mark]:
    """Return p and what it says: the change is asked one-sided, the difference two-sided."""
    above, below = tail
    if above is None or below is None:
        return None, "n/a"
    level = ALPHA if question == "change" else ALPHA / 2
    p = above if question == "change" else min(1.0, 2 * min(above, below))
    if enough and estimate > 0 and above <= level:
        return p, "shown"
    if enough and estimate < 0 and below <= ALPHA / 2:
        return p, "against"
    return p, "not shown"


def share_that_agrees(found: Sequence[Specification], question: Question) -> float | None:
    """Return the share of a question's specifications whose answer is the verdict's."""
    asked = [one.agrees for one in found if one.question == question and one.agrees is not None]
    return sum(asked) / len(asked) if asked else None
