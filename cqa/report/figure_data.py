"""What each figure shows: the rows of its CSV file.

The primary group's rows come first, then the control's: a figure gives its colours in this order.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TypeVar

from cqa.report.figure_rows import (
    CandidateBar,
    EffectPoint,
    EpochPoint,
    ItemPoint,
    PartPoint,
    PlotRow,
    SpecificationPoint,
    TextPoint,
)
from cqa.report.focus import Focus
from cqa.run_folder import epoch_of
from cqa.schema.comparison import Comparison
from cqa.schema.result import Interval

T = TypeVar("T")


def figure_rows(focus: Focus) -> dict[str, Sequence[PlotRow]]:
    """Return the rows of every figure that there is data for, by the figure's name."""
    found: dict[str, Sequence[PlotRow]] = {
        "d_by_epoch": d_by_epoch(focus),
        "parts": parts(focus),
        "collapse": collapse(focus),
        "overfitting": overfitting(focus),
        "items": items(focus),
        "continuations": continuations(focus),
        "specifications": specifications(focus),
    }
    return {name: rows for name, rows in found.items() if rows}


def _by_role(focus: Focus, groups: Mapping[str, T]) -> Iterator[tuple[str, T]]:
    """Yield the groups, those with a role first."""
    order = dict.fromkeys((focus.primary, focus.control, *groups))
    return ((group, groups[group]) for group in order if group is not None and group in groups)


def _comparisons(focus: Focus) -> Iterator[tuple[str, str, Comparison]]:
    """Yield (group, adapter, statistics) of all pairs and options."""
    for group, models in _by_role(focus, focus.summary.groups):
        for adapter, entry in models.items():
            yield group, adapter, entry


def _ends(interval: Interval | None) -> tuple[float | None, float | None]:
    return interval or (None, None)


def d_by_epoch(focus: Focus) -> list[EffectPoint]:
    """Return Figure 1, for every group and adapter."""
    return [
        EffectPoint(
            group,
            adapter,
            epoch_of(adapter),
            entry.n,
            entry.effect.d_z,
            *_ends(entry.effect.d_z_ci95),
            entry.wilcoxon.p,
            adapter == focus.highlighted,
        )
        for group, adapter, entry in _comparisons(focus)
    ]


def parts(focus: Focus) -> list[PartPoint]:
    """Return ddI and its conditional and prior part, in nats."""
    rows = []
    for group, adapter, entry in _comparisons(focus):
        named = (
            ("ddI", entry.delta_i_nats.change, entry.delta_i_nats.ci95),
            ("d_cond", entry.mean_d_cond_nats, entry.ci95_d_cond_nats),
            ("d_prior", entry.mean_d_prior_nats, entry.ci95_d_prior_nats),
        )
        rows += [
            PartPoint(group, adapter, epoch_of(adapter), name, mean, *_ends(interval))
            for name, mean, interval in named
        ]
    return rows


def collapse(focus: Focus) -> list[CandidateBar]:
    """Return Figure 2 from data, under the highlighted adapter."""
    rows = []
    for group, adapter, entry in _comparisons(focus):
        if adapter != focus.highlighted:
            continue
        named = (("given_context", entry.candidates.given_context), ("null", entry.candidates.null))
        for where, found in named:
            h = found.entropy_nats
            entropy = (h.before, h.after, h.change, *_ends(h.ci95))
            rows += [
                CandidateBar(group, adapter, where, rank, of.n, of.p.before, of.p.after, *entropy)
                for rank, of in enumerate(found.p_by_rank)
            ]
    return rows


def overfitting(focus: Focus) -> list[EpochPoint]:
    """Return the losses of training and, by epoch, mean ddI, its sd and d_z (section 5.1)."""
    rows: list[EpochPoint] = []
    run = focus.source.run
    if run is not None:
        losses = {"train_loss": run.loss_nats, "eval_loss": run.eval_loss_nats}
        rows += [
            EpochPoint(name, None, epoch, value, None, None)
            for name, by_epoch in losses.items()
            for epoch, value in by_epoch.items()
        ]
    for group, adapter, entry in _comparisons(focus):
        epoch = epoch_of(adapter)
        if epoch is not None:
            mean, effect = entry.delta_i_nats, entry.effect
            rows += [
                EpochPoint("mean_ddi", group, epoch, mean.change, *_ends(mean.ci95)),
                EpochPoint("sd_ddi", group, epoch, entry.sd_ddi_nats, None, None),
                EpochPoint("d_z", group, epoch, effect.d_z, *_ends(effect.d_z_ci95)),
            ]
    return rows if len({row.epoch for row in rows} - {0}) > 1 else []


def items(focus: Focus) -> list[ItemPoint]:
    """Return every item's ddI under the highlighted adapter."""
    adapter = focus.highlighted
    if adapter is None:
        return []
    rows = []
    for group, models in _by_role(focus, focus.source.scores.items):
        if adapter not in models:
            continue
        base = models[None].only(models[adapter])
        ddi = models[adapter].only(base).column("delta_i_nats") - base.column("delta_i_nats")
        rows += [
            ItemPoint(group, adapter, item_id, change)
            for item_id, change in zip(base, ddi.tolist(), strict=True)
        ]
    return rows


def continuations(focus: Focus) -> list[TextPoint]:
    """Return the change of log-probability per token under the highlighted adapter (Table 2)."""
    adapter = focus.highlighted
    if adapter is None:
        return []
    rows = []
    for group, models in _by_role(focus, focus.summary.continuations):
        if adapter not in models:
            continue
        entry = models[adapter]
        tests = focus.text_changes[group].get(adapter, {})
        named = [*entry.domains.items()] if len(entry.domains) > 1 else []
        for domain, part in (*named, (None, entry)):
            ci95 = tests[domain].ci95 if domain in tests else None
            change = part.per_token_nats.change
            rows.append(TextPoint(group, domain, adapter, part.n, change, *_ends(ci95)))
    return rows


def specifications(focus: Focus) -> list[SpecificationPoint]:
    """Return every way of asking the main questions, under the highlighted adapter."""
    adapter = focus.highlighted
    if adapter is None:
        return []
    return [
        SpecificationPoint(
            one.question, one.per, one.null, one.test, adapter, one.estimate, one.p, one.says,
            one.agrees,
        )
        for one in focus.specifications
    ]  # fmt: skip
