"""Numbers of items to effects: mean, simultaneous interval and p over models, and findings."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from cqa.schema.claims import Effect, Part, StudyFinding
from cqa.schema.verdict import Mark
from cqa.stats.clusters import Values, by_source
from cqa.stats.deciding import FEWEST_SOURCES, Change, family_test
from cqa.stats.tests import ALPHA
from cqa.text import counted, p_value, signed

_BASE = ""  # what tests call the base, which no adapter is named


@dataclass(frozen=True, slots=True)
class Measured:
    """One number an item under every model."""

    name: str
    label: str
    part: Part
    values: Mapping[str | None, Sequence[float] | Values]  # the base (None) first
    claimed: Literal["greater", "less"] = "greater"


def effects(
    measured: Sequence[Measured], groups: Sequence[str], sources: Sequence[str | None]
) -> list[Effect]:
    """Test each measure over all items, and over the items of each group where there are several.

    Args:
        measured: What was measured, items in one order.
        groups: The group of each item.
        sources: The source of each item.
    """
    return [effect for one in measured for effect in _over_groups(one, groups, sources)]


def change_of(measured: Measured, name: str, label: str) -> Measured:
    """Return each adapter's measure minus the base's, item by item."""
    base = np.asarray(measured.values[None], dtype=np.float64)
    values: dict[str | None, Values] = {
        adapter: np.asarray(held, dtype=np.float64) - base
        for adapter, held in measured.values.items()
        if adapter is not None
    }
    return Measured(name, label, "change", values, measured.claimed)


def _over_groups(
    measured: Measured, groups: Sequence[str], sources: Sequence[str | None]
) -> Iterator[Effect]:
    names = list(dict.fromkeys(groups))
    for group in (None, *(names if len(names) > 1 else ())):
        held = [k for k, name in enumerate(groups) if group in (None, name)]
        values = {a: np.asarray(v, dtype=np.float64)[held] for a, v in measured.values.items()}
        yield from tested(measured, values, [sources[k] for k in held], group)


def tested(
    measured: Measured,
    values: Mapping[str | None, Values],
    sources: Sequence[str | None],
    group: str | None,
) -> Iterator[Effect]:
    """Test a measure of some items under all models together."""
    if not values:
        return
    clusters = by_source({_BASE if a is None else a: v for a, v in values.items()}, sources)
    family = family_test(clusters)
    for adapter in values:
        change = family.changes[_BASE if adapter is None else adapter]
        untested = _untested(change, family.n_sources)
        p, p_against = (None, None) if untested else _tails(change, measured.claimed)
        yield Effect(
            name=measured.name, label=measured.label, part=measured.part, adapter=adapter,
            group=group, value=change.mean, ci95=change.ci95, p=p, p_against=p_against,
            n=family.n_items, n_sources=family.n_sources, untested=untested,
        )  # fmt: skip


def _untested(change: Change, n_sources: int) -> str | None:
    return why_untested(n_sources) if change.p_greater_corrected is None or few(n_sources) else None


def few(n_sources: int) -> bool:
    """Whether a test over so few sources rejects too many true nulls."""
    return n_sources < FEWEST_SOURCES


def why_untested(n_sources: int) -> str:
    """Say why numbers of so many sources have no p."""
    if few(n_sources):
        return f"{counted(n_sources, 'source')}, of {FEWEST_SOURCES} that the test needs"
    return "no spread over sources"


def _tails(
    change: Change, claimed: Literal["greater", "less"]
) -> tuple[float | None, float | None]:
    greater, less = change.p_greater_corrected, change.p_less_corrected
    return (greater, less) if claimed == "greater" else (less, greater)


def described(
    name: str,
    label: str,
    adapter: str | None,
    value: float | None,
    n: int,
    *,
    part: Part = "description",
) -> Effect:
    """Return a number that nothing is decided by, such as a share of items."""
    return Effect(
        name=name, label=label, part=part, adapter=adapter, group=None, value=value,
        ci95=None, p=None, p_against=None, n=n, n_sources=None,
    )  # fmt: skip


def finding(name: str, effect: Effect) -> StudyFinding:
    """Say whether a claim is shown: only by what exceeds its null control, or by a change of that.

    Args:
        name: What is found.
        effect: An `excess`, or a `change` of one.
    """
    assert effect.part in ("excess", "change"), "nothing is shown without its null control"
    of = f"{effect.label}: {signed(effect.value, 3)}"
    if effect.p is None or effect.p_against is None:
        return StudyFinding(
            name=name, adapter=effect.adapter, mark="n/a", reason=f"{of}; {effect.untested}"
        )
    mark: Mark = "not shown"
    said = f"p = {p_value(effect.p)}"
    if effect.p < ALPHA:
        mark = "shown"
    elif effect.p_against < ALPHA:
        mark, said = "against", f"the other way, p = {p_value(effect.p_against)}"
    said = said.replace("= <", "<")
    return StudyFinding(name=name, adapter=effect.adapter, mark=mark, reason=f"{of}, {said}")


def findings(name: str, found: Sequence[Effect], of: str) -> list[StudyFinding]:
    """Return the finding of every model by one measure over all items."""
    return [finding(name, e) for e in found if e.name == of and e.group is None]
