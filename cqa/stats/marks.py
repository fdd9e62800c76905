"""The mark of a mean that was tested, and the finding that says so."""

from __future__ import annotations

from cqa.schema.verdict import Finding, Mark, Name
from cqa.stats.deciding import FEWEST_SOURCES, Change, Family

ALPHA = 0.05
NO_SPREAD = "the changes have no spread over sources, so nothing can be tested"


def directed(found: Change, family: Family) -> tuple[Mark, str]:
    """Return the mark of a mean that is asked to be above 0."""
    if found.p_greater_corrected is None or found.p_less_corrected is None:
        return "n/a", untested(family)
    if family.n_sources < FEWEST_SOURCES:
        return "not shown", too_few(family.n_sources)
    if found.mean > 0 and found.p_greater_corrected <= ALPHA:
        return "shown", "the mean is above 0"
    if found.mean < 0 and found.p_less_corrected <= ALPHA / 2:
        return "against", "the mean is below 0"
    return "not shown", "the mean cannot be told from 0"


def untested(family: Family) -> str:
    """Say why there is no p."""
    return too_few(family.n_sources) if family.n_sources < 2 else NO_SPREAD


def too_few(n_sources: int) -> str:
    """Say that sources are too few for any mark but “not shown”."""
    sources = "1 source" if n_sources == 1 else f"{n_sources} sources"
    return f"{sources}: fewer than {FEWEST_SOURCES} are too few to show anything"


def two_sided(found: Change) -> float | None:
    """Return the corrected two-sided p."""
    return _doubled(found.p_greater_corrected, found.p_less_corrected)


def two_sided_alone(found: Change) -> float | None:
    """Return the two-sided p, as if there were no other adapter."""
    return _doubled(found.p_greater, found.p_less)


def _doubled(p: float | None, q: float | None) -> float | None:
    return None if p is None or q is None else min(1.0, 2 * min(p, q))


def finding(
    name: Name,
    mark: Mark,
    group: str,
    adapter: str,
    family: Family,
    reason: str,
    unit: str = "nats",
) -> Finding:
    """Return a finding with the numbers of the deciding test."""
    found = family.changes[adapter]
    return Finding(
        name=name,
        mark=mark,
        group=group,
        adapter=adapter,
        estimate=found.mean,
        unit=unit,
        ci95=found.ci95,
        p=found.p_greater_corrected,
        p_alone=found.p_greater,
        test=f"mean above 0, one-sided; {family.method}",
        n_items=family.n_items,
        n_sources=family.n_sources,
        reason=reason,
    )
