"""What the finding hangs on: how it was asked, and items that the base may have seen."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from cqa.report.focus import ADAPTER, GROUP, Focus
from cqa.report.tables import Column, Placed, Table, show, tabulate
from cqa.schema.verdict import Finding
from cqa.stats import findings
from cqa.stats.contamination import STANDS_OUT, Standing, standings
from cqa.stats.specification import Specification, share_that_agrees
from cqa.stats.verdict import changes_of


def specifications(focus: Focus) -> Table:
    """Return every way of asking, what it answers, and how many answer as the verdict does."""
    columns: tuple[Column[Placed[Specification]], ...] = (
        Column("question", "question", lambda r: _asked(focus, r.result), "text"),
        Column("per", "dI as", lambda r: r.result.per, "text"),
        Column("null", "∅", lambda r: r.result.null, "text"),
        Column("test", "test", lambda r: r.result.test, "text"),
        ADAPTER,
        Column("estimate", "estimate", lambda r: r.result.estimate, "fine"),
        Column("unit", "unit", lambda r: r.result.unit, "text"),
        Column("p", "p", lambda r: r.result.p, "p"),
        Column("says", "answer", lambda r: r.result.says, "text"),
        Column("agrees", "as the verdict", lambda r: _yes(r.result.agrees), "text"),
    )
    rows = [Placed(one, focus.primary or "", focus.highlighted) for one in focus.specifications]
    note = (
        f"{agreement(focus)}. p of the change is one-sided, of the difference two-sided; only the "
        f"deciding test pays for the other adapters and takes sources as units. null2: the "
        f"second null context"
    )
    title = "The same question in other ways (specification curve)"
    return tabulate("specifications", title, columns, rows, note)


def agreement(focus: Focus) -> str:
    """Say which share of the specifications answers as the verdict does."""
    said = []
    for question in ("change", "selective"):
        share = share_that_agrees(focus.specifications, question)
        if share is not None:
            n = sum(one.question == question for one in focus.specifications)
            said.append(f"{question}: {show(share, 'share')} of {n}")
    return f"Specifications that answer as the verdict: {'; '.join(said) or 'n/a'}"


def _asked(focus: Focus, one: Specification) -> str:
    primary = focus.primary or ""
    return primary if one.question == "change" else f"{primary} − {focus.control}"


def _yes(value: bool | None) -> str | None:
    return None if value is None else ("yes" if value else "no")


@dataclass(frozen=True, slots=True)
class Contamination:
    """Which items of a group stand out by Min-K%, and the finding without them."""

    group: str
    n_items: int
    out: dict[str, Standing]
    without: Finding | None  # of the primary group, where any stands out


def contamination(focus: Focus) -> list[Contamination]:
    """Return the groups whose items all have stored tokens under the base."""
    found = []
    scores = focus.source.scores
    for group, models in scores.items.items():
        min_k = models[None].column("min_k")
        if np.isnan(min_k).any():
            continue
        standing = standings(dict(zip(models[None], min_k.tolist(), strict=True)))
        if standing is None:
            continue
        out = {i: s for i, s in standing.items() if s.stands_out}
        without = None
        if out and group == focus.primary and focus.highlighted is not None:
            gone = [scores.facts.numbers[i] for i in out]
            rest = {name: m.take(~np.isin(m.rows, gone)) for name, m in models.items()}
            changes = changes_of(group, rest, scores.facts)
            if changes is not None and focus.highlighted in changes.ddi:
                without = findings.change(changes, focus.highlighted)
        found.append(Contamination(group, len(standing), out, without))
    return found


def contamination_table(focus: Focus) -> Table:
    """Return the items that the base may have seen."""
    columns: tuple[Column[Placed[Standing]], ...] = (
        GROUP,
        Column("id", "item", lambda r: r.part, "text"),
        Column("min_k_nats_per_token", "Min-20 %, nats/token", lambda r: r.result.min_k, "number"),
        Column("robust_z", "robust z", lambda r: r.result.robust_z),
    )
    rows = [
        Placed(standing, one.group, None, item_id)
        for one in contamination(focus)
        for item_id, standing in sorted(one.out.items(), key=lambda pair: -pair[1].min_k)
    ]
    note = (
        "Min-K% (Shi et al. 2023) of the right option alone under the base: the mean "
        "log-probability of the fifth of its tokens that are least expected. Named are items whose "
        f"robust z (0.6745 times the distance from the group's median in MADs) exceeds {STANDS_OUT}"
    )
    title = "Items that the base may have been trained on"
    return tabulate("contamination", title, columns, rows, note)
