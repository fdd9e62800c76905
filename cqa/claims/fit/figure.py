"""The figure of audience fit: the residual of every work and audience, a panel a model."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from cqa.claims.fit.measures import Placed
from cqa.report.figure_parts import panels_of, short
from cqa.report.figure_style import WIDE, styled

MOST_MODELS, MOST_WORKS, MOST_AUDIENCES = 4, 40, 20
ROW_HEIGHT = 0.17  # inches a work


def draw_residuals(placed: Sequence[Placed]) -> Figure:
    """Draw the residual per byte: the base and the first adapters, the first works and audiences.

    Args:
        placed: Of every model, work and audience.
    """
    models = list(dict.fromkeys(p.adapter for p in placed))[:MOST_MODELS]
    works = list(dict.fromkeys(p.id for p in placed))
    audiences = list(dict.fromkeys(p.audience for p in placed))
    values = {(p.adapter, p.id, p.audience): p.residual_nats_per_byte for p in placed}
    rows, columns = works[:MOST_WORKS], audiences[:MOST_AUDIENCES]
    tables = [np.array([[values[m, w, a] for a in columns] for w in rows]) for m in models]
    limit = max(float(np.abs(table).max()) for table in tables) or 1.0
    with styled():
        figure, axes = panels_of(len(models), WIDE, 1.6 + ROW_HEIGHT * len(rows))
        for ax, model, table in zip(axes, models, tables, strict=True):
            image = ax.imshow(table, cmap="RdBu", vmin=-limit, vmax=limit, aspect="auto")
            ax.set_title(short(model or "base"))
            _label(ax, rows, columns, len(works))
        figure.colorbar(image, ax=axes, label="residual, nats/byte", shrink=0.8)
    return figure


def _label(ax: Axes, rows: Sequence[str], columns: Sequence[str], n_works: int) -> None:
    ax.grid(False)
    ax.set_xticks(range(len(columns)), [short(name, 14) for name in columns], rotation=30)
    ax.set_yticks(range(len(rows)), [short(name, 14) for name in rows])
    if n_works > len(rows):
        ax.set_ylabel(f"the first {len(rows)} of {n_works} works")
