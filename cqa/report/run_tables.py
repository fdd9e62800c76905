"""Tables of what stands between the adapters and a verdict: shrinkage, seeds, the choice."""

from __future__ import annotations

from cqa.report.focus import ADAPTER, GROUP, Focus
from cqa.report.tables import Column, Placed, Table, tabulate
from cqa.schema.comparison import Shrinkage
from cqa.schema.verdict import Choice, SeedEffect


def shrinkage(focus: Focus) -> Table:
    """Return how much of each ddI is what dI was before, made smaller."""
    columns: tuple[Column[Placed[Shrinkage]], ...] = (
        GROUP,
        ADAPTER,
        Column("slope", "slope of dI_B on dI_A", lambda r: r.result.slope, "number"),
        Column("slope_ci95", "95 % CI", lambda r: r.result.slope_ci95, "interval"),
        Column(
            "mean_delta_i_base_nats",
            "dI base, nats",
            lambda r: r.result.mean_delta_i_base_nats,
            "number",
        ),
        Column("by_shrinkage_nats", "by shrinkage, nats", lambda r: r.result.by_shrinkage_nats),
        Column("rest_nats", "rest of ddI, nats", lambda r: r.result.rest_nats),
        Column("rest_ci95_nats", "95 % CI, nats", lambda r: r.result.rest_ci95_nats, "interval"),
    )
    note = (
        "Least squares over items, errors over sources. By shrinkage: (slope − 1) times the "
        "base's dI, which is above 0 wherever dI was below and is drawn towards 0; the rest is "
        "what an item with dI = 0 gains. Intervals are approximate with few or unequal sources"
    )
    rows = [
        Placed(row.result.shrinkage, row.group, row.adapter)
        for row in focus.comparisons()
        if row.result.shrinkage is not None
    ]
    return tabulate("shrinkage", "Is the change shrinkage of dI?", columns, rows, note)


def over_seeds(focus: Focus) -> Table:
    """Return each epoch of runs that differ in their seed only, over items and seeds."""
    columns: tuple[Column[Placed[SeedEffect]], ...] = (
        GROUP,
        Column("epoch", "epoch", lambda r: r.result.epoch, "count"),
        Column("kind", "of", lambda r: "placebo" if r.result.placebo else "run", "text"),
        Column("seeds", "seeds", lambda r: ", ".join(r.result.adapters), "text"),
        Column("mean_ddi_nats", "ddI, nats", lambda r: r.result.mean_ddi_nats),
        Column("ci95_nats", "95 % CI, nats", lambda r: r.result.ci95_nats, "interval"),
        Column("p", "p, one-sided", lambda r: r.result.p, "p"),
        Column(
            "sd_of_seeds_nats", "sd of seeds, nats", lambda r: r.result.sd_of_seeds_nats, "number"
        ),
        Column("n_items", "items", lambda r: r.result.n_items, "count"),
        Column("n_sources", "sources", lambda r: r.result.n_sources, "count"),
    )
    note = (
        "Mean over items and seeds, both taken as samples: variance cluster-robust in two ways, t "
        "with one degree of freedom less than the scarcer of sources and seeds. p is not "
        "corrected for several epochs"
    )
    rows = [
        Placed(effect, group)
        for group, effects in focus.summary.seeds.items()
        for effect in effects
    ]
    return tabulate("seeds", "Over training seeds", columns, rows, note)


def choice(focus: Focus) -> Table:
    """Return what the choice of an adapter is worth."""
    columns: tuple[Column[Placed[Choice]], ...] = (
        GROUP,
        Column("chosen", "chosen", lambda r: r.result.chosen, "text"),
        Column("n_adapters", "of", lambda r: r.result.n_adapters, "count"),
        Column("rule", "by", lambda r: r.result.rule, "text"),
        Column(
            "share",
            "chosen again",
            lambda r: r.result.chosen_when_drawn_anew.get(r.result.chosen),
            "share",
        ),
        Column(
            "cross_fitted_ddi_nats",
            "cross-fitted ddI, nats",
            lambda r: f.mean_ddi_nats if (f := r.result.cross_fitted) else None,
        ),
        Column(
            "cross_fitted_ci95_nats",
            "95 % CI, nats",
            lambda r: f.ci95_nats if (f := r.result.cross_fitted) else None,
            "interval",
        ),
        Column(
            "cross_fitted_p",
            "p, one-sided",
            lambda r: f.p if (f := r.result.cross_fitted) else None,
            "p",
        ),
        Column("paper_choice", "the paper's choice", lambda r: r.result.paper_choice, "text"),
    )
    note = (
        "Chosen again: share of samples of the sources, drawn anew, that make the same choice. "
        "Cross-fitted: each item under the adapter that the other sources chose, so that no item "
        "has a say in its own; its interval is approximate (about 90 % where no adapter is better) "
        "and so is its p"
    )
    rows = [Placed(found, group) for group, found in focus.summary.selection.items()]
    return tabulate("choice", "The choice of an adapter", columns, rows, note)
