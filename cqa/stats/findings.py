"""The questions that a verdict answers, each by one rule on the changes of a group's items.

"Shown" needs: at least ten sources, p of the deciding test at most 0.05 after the correction for
all adapters ever scored on these items, and agreement (of the sign over normalizations and null
contexts, and without the source or the tenth of items that weigh most).
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import cached_property
from typing import Any

import numpy as np

from cqa.schema.result import Interval
from cqa.schema.verdict import Finding, Mark
from cqa.stats.agreement import heavy
from cqa.stats.clusters import Clusters, Values, by_source
from cqa.stats.deciding import FEWEST_SOURCES, Change, Family, difference_test, family_test
from cqa.stats.equivalence import SMALL_D_Z, equivalence, standardised_change
from cqa.stats.marks import (
    ALPHA,
    directed,
    finding,
    too_few,
    two_sided,
    two_sided_alone,
    untested,
)  # fmt: skip

ENTROPY_TEST = "H(X|Y) ± 2 H(X) both below 0, the larger p"
Sources = Sequence[str | None]
ByAdapter = Mapping[str, Values]  # one number an item


class Moved(Mapping[str, Values]):
    """Changes under each adapter, computed when they are asked for: of a million items under many
    adapters only those asked for last are held.
    """

    def __init__(self, of: Mapping[str, Callable[[], Values]]) -> None:
        """Take what computes the changes under each adapter."""
        self._of = of

    def only(self, names: Collection[str]) -> Moved:
        """Return the changes under some of the adapters, in their order."""
        return Moved({name: self._of[name] for name in names if name in self._of})

    def __getitem__(self, name: str) -> Values:
        return self._of[name]()

    def __contains__(self, name: object) -> bool:
        return name in self._of

    def __iter__(self) -> Iterator[str]:
        return iter(self._of)

    def __len__(self) -> int:
        return len(self._of)


def only(values: ByAdapter, names: Collection[str]) -> ByAdapter:
    """Return the changes under some of the adapters, in their order."""
    if isinstance(values, Moved):
        return values.only(names)
    return {name: values[name] for name in names if name in values}


@dataclass(frozen=True)
class Changes:
    """How one group's items change under each adapter; all arrays in the order of `sources`."""

    group: str
    sources: Sources
    ddi: ByAdapter  # nats: sum over tokens, first null context
    ddi_null2: ByAdapter | None  # nats: second null context; None: not measured
    ddi_per_token: ByAdapter  # nats/token
    d_cond: ByAdapter  # nats
    d_prior: ByAdapter  # nats
    entropy_given: ByAdapter | None  # change of H(X|Y), nats/token; None: not given
    entropy_null: ByAdapter | None  # change of H(X), nats/token
    delta_i: ByAdapter  # dI under the adapter, nats

    def only(self, names: Collection[str]) -> Changes:
        """Return the changes under some of the adapters."""
        kept: dict[str, Any] = {
            f.name: only(value, names)
            for f in fields(self)
            if isinstance(value := getattr(self, f.name), Mapping)
        }
        return replace(self, **kept)

    def clusters(self, values: ByAdapter) -> Clusters:
        """Sum some of the values by source."""
        return by_source(values, self.sources)

    @cached_property
    def ddi_family(self) -> Family:
        """The test of mean ddI under every adapter."""
        return family_test(self.clusters(self.ddi))

    @cached_property
    def d_cond_family(self) -> Family:
        """The test of mean d_cond under every adapter."""
        return family_test(self.clusters(self.d_cond))


def change(changes: Changes, adapter: str) -> Finding:
    """Did the model become more sensitive: is the mean ddI above 0?"""
    family = changes.ddi_family
    found = family.changes[adapter]
    mark, reason = directed(found, family)
    problems = _disagreements(changes, adapter) if mark in ("shown", "against") else []
    if problems:
        mark, reason = "not shown", f"{reason}, but {'; '.join(problems)}"
    elif mark == "shown":
        if changes.ddi_null2 is None:
            reason += "; the second null context was not measured"
        reason = "; but ".join([reason, *limits(changes, adapter)])
    return finding("change", mark, changes.group, adapter, family, reason)


def limits(changes: Changes, adapter: str) -> list[str]:
    """Return what a reader of a change that is shown must not overlook, in headlines too."""
    said = []
    if changes.delta_i[adapter].mean() < 0:
        said.append("dI itself is still below 0: the wrong options stay ahead, by less")
    size = standardised_change(changes.ddi[adapter], changes.sources)
    if size.within(SMALL_D_Z):
        said.append(f"d_z = {size.d_z:+.2f} is shown to be smaller than a small effect")
    return said


def _disagreements(changes: Changes, adapter: str) -> list[str]:
    """Return what contradicts the sign of the mean ddI."""
    ddi = changes.ddi[adapter]
    mean = float(ddi.mean())
    problems = []
    for values, name in (
        (changes.ddi_per_token, "per token"),
        (changes.ddi_null2, "with the second null context"),
    ):
        if values is None:
            continue
        other = float(values[adapter].mean())
        if np.sign(other) != np.sign(mean):
            problems.append(f"{name} the mean has the other sign ({other:+.3f})")
    return problems + heavy(ddi, changes.sources)


def selective(primary: Changes, control: Changes, adapter: str) -> Finding:
    """Does ddI rise more in the primary group than in the control, in sum and per token?"""
    shared = [name for name in primary.ddi if name in control.ddi]
    families = {
        name: difference_test(primary.clusters(only(a, shared)), control.clusters(only(b, shared)))
        for name, a, b in (
            ("in sum", primary.ddi, control.ddi),
            ("per token", primary.ddi_per_token, control.ddi_per_token),
        )
    }
    family = families["in sum"]
    found = {name: f.changes[adapter] for name, f in families.items()}
    p, p_alone = _larger(found.values(), two_sided), _larger(found.values(), two_sided_alone)
    signs = {float(np.sign(c.mean)) for c in found.values()}
    said = " and ".join(f"{name} {c.mean:+.3f}" for name, c in found.items())
    mark: Mark = "not shown"
    if p is None:
        mark, reason = "n/a", untested(family)
    elif family.n_sources < FEWEST_SOURCES:
        reason = too_few(family.n_sources)
    elif len(signs) > 1:
        reason = f"the sign hangs on the unit: {said}"
    elif p > ALPHA:
        reason = f"{said}: in both it would have to be told from 0"
    else:
        mark, reason = "shown" if signs == {1.0} else "against", f"{said}: both told from 0"
    return replace(
        finding("selective", mark, primary.group, adapter, family, reason),
        p=p,
        p_alone=p_alone,
        test=f"difference of the groups in sum and per token, two-sided; {family.method}",
    )


def _larger(found: Iterable[Change], p_of: Callable[[Change], float | None]) -> float | None:
    """Return the larger p: that of a claim which needs several nulls to fall."""
    largest = 0.0
    for one in found:
        p = p_of(one)
        if p is None:
            return None
        largest = max(largest, p)
    return largest


def conditional(changes: Changes, adapter: str) -> Finding:
    """Is it the conditional that sharpened: does d_cond exceed |d_prior|?

    Since ddI = d_cond - d_prior, that is ddI > 0 and d_cond + d_prior > 0, both shown.
    """
    total = _plus(changes.d_cond, changes.d_prior)
    family = changes.ddi_family
    both = [family.changes[adapter], family_test(changes.clusters(total)).changes[adapter]]
    cond, prior = (float(v[adapter].mean()) for v in (changes.d_cond, changes.d_prior))
    said = f"d_cond {cond:+.2f}, d_prior {prior:+.2f}"
    p, p_alone = _larger(both, _greater), _larger(both, _greater_alone)
    mark: Mark = "not shown"
    if p is None:
        mark, reason = "n/a", untested(family)
    elif family.n_sources < FEWEST_SOURCES:
        reason = too_few(family.n_sources)
    elif p <= ALPHA and min(one.mean for one in both) > 0:
        mark, reason = "shown", f"{said}: the conditional gained more than the prior moved"
    elif max(_less(one) for one in both) <= ALPHA / 2 and max(one.mean for one in both) < 0:
        mark, reason = "against", f"{said}: the conditional lost more than the prior moved"
    else:
        reason = f"{said}: d_cond > |d_prior| is not shown"
    if mark in ("shown", "against") and (problems := _disagreements(changes, adapter)):
        mark, reason = "not shown", f"{reason}, but of ddI: {'; '.join(problems)}"
    return replace(
        finding("conditional", mark, changes.group, adapter, family, reason),
        estimate=cond,
        ci95=changes.d_cond_family.changes[adapter].ci95,
        p=p,
        p_alone=p_alone,
        test=f"ddI > 0 and d_cond + d_prior > 0, the larger p; {family.method}",
    )


def _greater(found: Change) -> float | None:
    return found.p_greater_corrected


def _greater_alone(found: Change) -> float | None:
    return found.p_greater


def _less(found: Change) -> float:
    return 1.0 if found.p_less_corrected is None else found.p_less_corrected


def control_small(control: Changes, adapter: str, margin_nats: float | None) -> Finding:
    """Is the control's change smaller than a small effect?

    Args:
        control: The control group's changes.
        adapter: The adapter that the verdict is about.
        margin_nats: A margin in nats that was fixed before scoring; without one, d_z = 0.2.
    """
    family = family_test(control.clusters({adapter: control.ddi[adapter]}))
    found = equivalence(control.ddi[adapter], control.sources, margin_nats)
    mark: Mark = "not shown"
    if found.ci90 is None:
        mark, reason = "n/a", untested(family)
    elif family.n_sources < FEWEST_SOURCES:
        reason = too_few(family.n_sources)
    else:
        low, high = found.ci90
        to = _decimals_that_tell(found.margin, (low, high))
        said = f"90 % interval of {found.unit if found.unit == 'd_z' else 'ddI'} "
        said += f"[{low:+.{to}f}, {high:+.{to}f}], margin ±{found.margin:.{to}f}"
        if found.within:
            mark, reason = "shown", f"{said}: within"
        elif low > found.margin or high < -found.margin:
            mark, reason = "against", f"{said}: beyond"
        else:
            reason = f"{said}: no change told from 0 is not the same as no change"
    return replace(
        finding("control_small", mark, control.group, adapter, family, reason),
        estimate=found.estimate,
        unit=found.unit,
        ci95=None,
        p=None,
        p_alone=None,
        test="two one-sided tests at 5 %: the 90 % interval within the margin",
    )


def _decimals_that_tell(margin: float, ends: Interval) -> int:
    """Return how many show on which side of the margin an end is: two, unless rounding hides it."""
    return next(
        to for to in range(2, 7)
        if to == 6 or all(round(abs(end), to) != round(margin, to) for end in ends)
    )  # fmt: skip


def entropy(changes: Changes, adapter: str) -> Finding:
    """Did H(X|Y) fall, by more than twice what H(X) moved?"""
    of_given, of_null = changes.entropy_given, changes.entropy_null
    if of_given is None or of_null is None:
        return _without_entropy(changes, adapter)
    family = family_test(changes.clusters(of_given))
    bounds = [
        family_test(changes.clusters(_plus(of_given, of_null, times))).changes[adapter]
        for times in (2.0, -2.0)
    ]
    found = family.changes[adapter]
    given, null = (float(v[adapter].mean()) for v in (of_given, of_null))
    said = f"H(X|Y) {given:+.3f}, H(X) {null:+.3f} nats/token"
    p = max(_less(one) for one in bounds)
    mark: Mark = "not shown"
    if found.p_less_corrected is None:
        mark, reason = "n/a", untested(family)
    elif family.n_sources < FEWEST_SOURCES:
        reason = too_few(family.n_sources)
    elif p <= ALPHA and max(one.mean for one in bounds) < 0:
        mark, reason = "shown", f"{said}: it fell, and H(X) moved by less than half as much"
    elif found.mean > 0 and (found.p_greater_corrected or 0.0) <= ALPHA / 2:
        mark, reason = "against", f"{said}: the conditional entropy rose"
    else:
        reason = f"{said}: a fall of H(X|Y) alone is not shown"
    return replace(
        finding("entropy", mark, changes.group, adapter, family, reason, unit="nats/token"),
        p=None if mark == "n/a" else p,
        p_alone=None,
        test=f"{ENTROPY_TEST}; {family.method}",
    )


def _without_entropy(changes: Changes, adapter: str) -> Finding:
    """Say that the question cannot be asked of an engine that gives log-probabilities alone."""
    family = changes.ddi_family
    reason = "the engine that scored gives no entropy"
    asked = finding("entropy", "n/a", changes.group, adapter, family, reason, unit="nats/token")
    return replace(asked, estimate=None, ci95=None, p=None, p_alone=None, test=ENTROPY_TEST)


def continuations(group: str, values: ByAdapter, sources: Sources, adapter: str) -> Finding:
    """Did log P per token of true continuations rise: is its mean change above 0?"""
    family = family_test(by_source(values, sources))
    mark, reason = directed(family.changes[adapter], family)
    return finding("continuations", mark, group, adapter, family, reason, "nats/token")


def placebo(
    changes: Changes, less: ByAdapter, adapter: str, placebo_of: str, unlike: Sequence[str]
) -> Finding:
    """Is ddI larger than after training on dealt responses, item by item?

    Args:
        changes: Those of the candidates.
        less: ddI less that of the placebo of each candidate, nats.
        adapter: The adapter that the verdict is about.
        placebo_of: Its placebo.
        unlike: What that placebo has not in common with it but should: its epoch, its samples.
    """
    family = family_test(changes.clusters(less))
    mark, reason = directed(family.changes[adapter], family)
    problems = heavy(less[adapter], changes.sources) if mark in ("shown", "against") else []
    problems += [f"{placebo_of} is of other {what}" for what in unlike]
    if problems:
        mark = mark if mark == "n/a" else "not shown"
        reason = f"{reason}, but {'; '.join(problems)}"
    found = finding("placebo", mark, changes.group, adapter, family, reason)
    return replace(found, test=f"ddI less that of {placebo_of}; {found.test}")


def _plus(a: ByAdapter, b: ByAdapter, times: float = 1.0) -> ByAdapter:
    def both(name: str) -> Callable[[], Values]:
        return lambda: a[name] + times * b[name]

    return Moved({name: both(name) for name in a})
