"""The figure of a comparison: the right option's share by model, reading and group."""

from __future__ import annotations

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from cqa.report.figure_parts import legend_above, look_of, panels_of, short, with_gaps
from cqa.report.figure_style import MUTED, WIDE, styled
from cqa.schema.compared import READINGS, Comparison, GroupResult

TITLE = "Share of the right option"
ROW_HEIGHT = 0.42  # inches a model
MOST_GROUPS, MOST_MODELS = 12, 30  # that are drawn; the tables hold all


def draw(found: Comparison, *, width: float = WIDE) -> Figure:
    """Draw a panel a group: a row a model, a mark a reading, with its interval over sources.

    Args:
        found: A comparison with a group or more.
        width: Of the figure, in inches.
    """
    groups = list(found.groups.items())[:MOST_GROUPS]
    n_rows = min(len(found.systems), MOST_MODELS)
    with styled():
        figure, axes = panels_of(len(groups), width, 0.9 + ROW_HEIGHT * n_rows)
        for ax, (group, result) in zip(axes, groups, strict=True):
            ax.set_title(f"{short(group)}, {result.n_items} items")
            _draw_group(ax, result)
        legend_above(figure, axes[0], len(READINGS) + 1, width)
    return figure


def left_out(found: Comparison) -> str:
    """Say what is drawn where not all is; nothing where all is."""
    said = [
        f"the first {most} of {n:,} {what}"
        for n, most, what in (
            (len(found.groups), MOST_GROUPS, "groups"),
            (len(found.systems), MOST_MODELS, "models"),
        )
        if n > most
    ]
    return " and ".join(said)


def _draw_group(ax: Axes, result: GroupResult) -> None:
    readings = list(READINGS)
    systems = result.systems[:MOST_MODELS]
    names = [system.system for system in systems]
    chance = next(iter(systems[0].rankings.values())).chance
    ax.axvline(chance, color=MUTED, linewidth=0.9, zorder=1, label="chance")
    for k, reading in enumerate(readings):
        placed = [
            (row + 0.2 * (k - 1), system.rankings[reading])
            for row, system in enumerate(systems)
            if reading in system.rankings
        ]
        if not placed:
            continue
        rows, rankings = [row for row, _ in placed], [ranking for _, ranking in placed]
        means = [ranking.mean_rank_prob for ranking in rankings]
        low = with_gaps(None if r.ci95 is None else r.ci95[0] for r in rankings)
        high = with_gaps(None if r.ci95 is None else r.ci95[1] for r in rankings)
        look = look_of(readings, reading)
        ax.hlines(rows, low, high, color=look["color"], linewidth=1.4)
        ax.plot(means, rows, linestyle="none", label=f"by {reading}", zorder=3, **look)
    ax.set_yticks(range(len(names)), [short(name, 18) for name in names])
    ax.set_ylim(len(names) - 0.5, -0.5)
    ax.set_xlabel("mean share of the right option")
