"""The figure of a study: effects, null controls and their differences, by model."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from cqa.report.figure_parts import look_of, panels_of, short, with_gaps
from cqa.report.figure_style import MUTED, WIDE, styled
from cqa.schema.claims import Effect, StudyResult

MARK_HEIGHT = 0.13  # inches a mark
LABEL_HEIGHT = 0.17
LONGEST_LABEL = 46
MOST_MODELS = 30


def draw_effects(
    result: StudyResult, panels: Sequence[Sequence[str]] = (), *, width: float = WIDE
) -> Figure:
    """Draw effects of all items with their intervals: a row a model, a mark a measure.

    Args:
        result: Whose effects.
        panels: The names of the measures in each panel; by default as the result says.
        width: Of the figure, in inches.
    """
    shown = [e for e in result.effects if e.group is None and e.ci95 is not None]
    models = list(dict.fromkeys(e.adapter for e in shown))[:MOST_MODELS]
    panels = panels or result.panels
    named = [[n for n in names if any(e.name == n for e in shown)] for names in panels]
    parted = [
        list(dict.fromkeys(e.name for e in shown if (e.part == "change") is change))
        for change in (False, True)
    ]
    kept = [names for names in (named if panels else parted) if names]
    most = max(map(len, kept), default=0)
    height = 0.9 + (0.15 + MARK_HEIGHT * most) * max(len(models), 1) + LABEL_HEIGHT * most
    with styled():
        figure, axes = panels_of(max(len(kept), 1), width, height)
        for ax, names in zip(axes, kept or [[]], strict=True):
            ax.axvline(0, color=MUTED, linewidth=0.9, zorder=1)
            for k, name in enumerate(names):
                held = {e.adapter: e for e in shown if e.name == name}
                _draw(ax, held, models, k, names, _label(result, name))
            ax.set_yticks(range(len(models)), [short(m or "base", 18) for m in models])
            ax.set_ylim(max(len(models), 1) - 0.5, -0.5)
            ax.set_xlabel("over all items, 95 % interval")
            if names:
                ax.legend(loc="lower left", bbox_to_anchor=(0, 1), borderaxespad=0.2)
    return figure


def _draw(
    ax: Axes,
    held: dict[str | None, Effect],
    models: list[str | None],
    k: int,
    names: list[str],
    label: str,
) -> None:
    places = [
        row + 0.8 * ((k + 0.5) / len(names) - 0.5) for row, m in enumerate(models) if m in held
    ]
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
    label = next((e.label for e in result.effects if e.name == name), name)
    return short(label, LONGEST_LABEL)
