"""The figure that most studies have: effect, null control and their difference, by model."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from cqa.report.figure_parts import look_of, panels_of, short, with_gaps
from cqa.report.figure_style import MUTED, WIDE, styled
from cqa.schema.claims import Effect, StudyResult

ROW_HEIGHT = 0.5  # inches a model
MOST_MODELS = 30


def draw_effects(result: StudyResult, panels: Sequence[Sequence[str]]) -> Figure:
    """Draw means of all items with their intervals: a row a model, a mark a measure.

    Args:
        result: Whose effects.
        panels: The names of the measures in each panel.
    """
    shown = [e for e in result.effects if e.group is None and e.ci95 is not None]
    models = list(dict.fromkeys(e.adapter for e in shown))[:MOST_MODELS]
    with styled():
        figure, axes = panels_of(len(panels), WIDE, 1.1 + ROW_HEIGHT * max(len(models), 1))
        for ax, names in zip(axes, panels, strict=True):
            ax.axvline(0, color=MUTED, linewidth=0.9, zorder=1)
            for k, name in enumerate(names):
                held = {e.adapter: e for e in shown if e.name == name}
                _draw(ax, held, models, k, list(names), _label(result, name))
            ax.set_yticks(range(len(models)), [short(m or "base", 18) for m in models])
            ax.set_ylim(len(models) - 0.5, -0.5)
            ax.set_xlabel("mean over items, 95 % interval")
            ax.legend(loc="upper center", bbox_to_anchor=(0.5, -0.25))
    return figure


def _draw(
    ax: Axes,
    held: dict[str | None, Effect],
    models: list[str | None],
    k: int,
    names: list[str],
    label: str,
) -> None:
    places = [row + 0.22 * (k - (len(names) - 1) / 2) for row, m in enumerate(models) if m in held]
    found = [held[m] for m in models if m in held]
    look = look_of(names, names[k])
    ax.hlines(
        places, with_gaps(e.ci95 and e.ci95[0] for e in found),
        with_gaps(e.ci95 and e.ci95[1] for e in found), color=look["color"], linewidth=1.4,
    )  # fmt: skip
    ax.plot(
        with_gaps(e.value for e in found), places, linestyle="none", label=label, zorder=3, **look
    )


def _label(result: StudyResult, name: str) -> str:
    return next((e.label for e in result.effects if e.name == name), name)
