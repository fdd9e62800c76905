"""What the figures have in common: colours, axes, names, panels and legends."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TypedDict

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from cqa.escape import for_svg
from cqa.report.figure_rows import EffectPoint, PartPoint
from cqa.report.figure_style import MUTED, PALETTE

MARKERS = ("o", "s", "^", "D", "v", "P")
MOST_NAMES = 40  # along an axis
LEGEND_MARK, LEGEND_CHARACTER = 0.5, 0.068  # inches of an entry: its mark, and a wide character
Bounded = tuple[float | None, float | None, float | None]  # a value and its interval


class Look(TypedDict):
    """How a group's marks look, as matplotlib takes it."""

    color: str
    marker: str


def look_of(groups: Sequence[str], group: str) -> Look:
    """Return how a group is drawn, the same in every figure."""
    k = groups.index(group)
    return {"color": PALETTE[k % len(PALETTE)], "marker": MARKERS[k % len(MARKERS)]}


def in_order(groups: Iterable[str | None]) -> list[str]:
    """Return the groups in the order of the rows, so that one has its colour in every figure."""
    return list(dict.fromkeys(group for group in groups if group is not None))


def places_of(rows: Sequence[EffectPoint | PartPoint]) -> tuple[dict[str, float], bool]:
    """Return each adapter's place: its epoch, or its rank where not all have an epoch of theirs."""
    epochs = {row.adapter: row.epoch for row in rows}
    numbers = [float(epoch) for epoch in epochs.values() if epoch is not None]
    if len(set(numbers)) == len(epochs):
        return dict(zip(epochs, numbers, strict=True)), True
    return {adapter: float(k) for k, adapter in enumerate(epochs)}, False


def label_axis(ax: Axes, places: dict[str, float], by_epoch: bool) -> None:
    """Mark the adapters' places: epochs as numbers, else names, as many as there is room for."""
    if by_epoch:
        ax.set_xlabel("epoch")
        if len(places) <= 13:
            ax.set_xticks(sorted(places.values()), [f"{p:g}" for p in sorted(places.values())])
        else:
            ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    else:
        step = -(-len(places) // MOST_NAMES)
        named = list(places.items())[::step]
        ax.set_xticks([p for _, p in named], [short(name) for name, _ in named], rotation=20)
    if len(places) == 1:
        (place,) = places.values()
        ax.set_xlim(place - 1, place + 1)


def short(name: str, limit: int = 22) -> str:
    """Return a name that a user gave as it is drawn: in a line, its end if it is too long."""
    line = for_svg(name[-500:])
    line = line if len(line) <= limit else f"…{line[1 - limit :]}"
    return f" {line}" if line.startswith("_") else line  # matplotlib hides labels that begin so


def zero_line(ax: Axes) -> None:
    """Draw where nothing changes."""
    ax.axhline(0, color=MUTED, linewidth=0.9, zorder=1)


def with_gaps(values: Iterable[float | None]) -> list[float]:
    """Return numbers, what is absent as a gap."""
    return [float("nan") if value is None else value for value in values]


def band(ax: Axes, x: Sequence[float], points: Sequence[Bounded], look: Look) -> None:
    """Draw values with their interval: a line in a band, or a lone mark on a bar."""
    y, low, high = map(with_gaps, zip(*points, strict=True))
    if len(points) == 1:
        ax.vlines(x, low, high, color=look["color"], linewidth=1.4)
    else:
        ax.fill_between(x, low, high, color=look["color"], alpha=0.16, linewidth=0)
    ax.plot(x, y, zorder=3, **look)


def legend_above(figure: Figure, ax: Axes, n: int, width: float) -> None:
    """Put the legend of n entries over the panels, in as many columns as fit the width."""
    handles, labels = ax.get_legend_handles_labels()
    longest = LEGEND_MARK + LEGEND_CHARACTER * max(map(len, labels), default=0)
    columns = max(1, min(n, 4 if width > 5 else 2, int(width / longest)))
    figure.legend(handles, labels, loc="outside upper left", ncols=columns)


def panels_of(
    n: int, width: float, height: float, *, share_y: bool = False
) -> tuple[Figure, list[Axes]]:
    """Return n panels: side by side where there is room, else one below the other."""
    columns = min(n, 2) if width > 5 else 1
    lines = -(-n // columns)
    figure = Figure(figsize=(width, height * lines + 0.35))
    axes = figure.subplots(lines, columns, squeeze=False, sharey=share_y)
    flat: list[Axes] = list(axes.flat)
    for spare in flat[n:]:
        spare.remove()
    return figure, flat[:n]
