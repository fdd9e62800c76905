"""Every head as a square: what the base takes from y beyond the null, and what adapters change."""

from __future__ import annotations

from collections.abc import Sequence

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import BoundaryNorm
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from cqa.claims.attention.heads import HeadTable, as_array, below
from cqa.report.figure_parts import panels_of, short
from cqa.report.figure_style import INK, WIDE, styled
from cqa.stats.tests import ALPHA

MOST_PANELS = 4
LEVELS = 21  # few enough that the squares stay vectors, odd so that one is zero
SMALLEST = 1e-9  # half a scale where all heads are zero


def draw_heads(tables: Sequence[HeadTable]) -> Figure:
    """Draw tables of heads, the last ones left out beyond four; a dot marks p < 0.05 either way.

    Args:
        tables: The base's excess, then the changes by the adapters.
    """
    shown = tables[:MOST_PANELS]
    changed = [as_array(t.values) for t in shown if t.part == "change"]
    with styled():
        height = 1.3 + 0.07 * max(len(t.values) for t in shown)
        figure, axes = panels_of(len(shown), WIDE, height)
        for ax, table in zip(axes, shown, strict=True):
            values = as_array(table.values)
            scale = np.abs(changed if table.part == "change" else values).max()
            _draw(figure, ax, table, values, max(float(scale), SMALLEST))
    return figure


def _draw(
    figure: Figure, ax: Axes, table: HeadTable, values: np.ndarray[tuple[int, int]], scale: float
) -> None:
    n_layers, n_heads = values.shape
    norm = BoundaryNorm(np.linspace(-scale, scale, LEVELS + 1), LEVELS)
    mesh = ax.pcolormesh(
        np.arange(n_heads + 1) - 0.5, np.arange(n_layers + 1) - 0.5, values, norm=norm,
        cmap=mpl.colormaps["PuOr_r"].resampled(LEVELS),
    )  # fmt: skip
    marked = [*below(table.p, ALPHA), *below(table.p_against, ALPHA)]
    ax.plot(
        [head for _, head in marked], [layer for layer, _ in marked], linestyle="none",
        marker="o", markersize=3.5, markerfacecolor=INK, markeredgecolor="white",
        markeredgewidth=0.7,
    )  # fmt: skip
    ax.grid(visible=False)
    ax.set_ylim(n_layers - 0.5, -0.5)
    for axis in (ax.xaxis, ax.yaxis):
        axis.set_major_locator(MaxNLocator(8, integer=True))
    ax.set_xlabel("head")
    ax.set_ylabel("layer")
    ax.set_title("base" if table.adapter is None else f"{short(table.adapter, 24)} − base")
    bar = figure.colorbar(mesh, ax=ax, ticks=[-scale, 0, scale], format="%.2g")
    bar.set_label("contribution, own − other")
    bar.minorticks_off()
    bar.outline.set_visible(False)
