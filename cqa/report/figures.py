"""The figures, each drawn from the rows of its CSV file and nothing else."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Generic, TypeVar

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator

from cqa.report.figure_parts import (
    band,
    in_order,
    label_axis,
    legend_above,
    look_of,
    panels_of,
    places_of,
    short,
    with_gaps,
    zero_line,
)
from cqa.report.figure_rows import (
    CandidateBar,
    EffectPoint,
    EpochPoint,
    ItemPoint,
    PartPoint,
    PlotRow,
    SpecificationPoint,
    TextPoint,
    rows_from_csv,
)
from cqa.report.figure_style import (
    BASE,
    INK,
    MUTED,
    NARROW,
    PALETTE,
    WIDE,
    Drawing,
    png_bytes,
    styled,
    svg_text,
)

R = TypeVar("R", bound=PlotRow)
MOST_GROUPS = 12  # in a figure, as is all that follows; its CSV file has every row
MOST_POINTS = 400  # of a group
MOST_ROWS = 60
PARTS = {"ddI": (INK, "o"), "d_cond": (PALETTE[2], "^"), "d_prior": (PALETTE[3], "s")}


def d_by_epoch(rows: Sequence[EffectPoint], width: float) -> Figure:
    """Draw Figure 1: d_z over epochs with its 95 % band, one line per group."""
    figure = Figure(figsize=(width, 3.1 if width > 5 else 3.4))
    ax = figure.add_subplot()
    groups, (places, by_epoch) = in_order(row.group for row in rows), places_of(rows)
    for k, group in enumerate(groups):
        mine = sorted((row for row in rows if row.group == group), key=lambda r: places[r.adapter])
        shift = 0.1 * k if len(places) == 1 else 0.0
        x = [places[row.adapter] + shift for row in mine]
        look = look_of(groups, group)
        band(ax, x, [(row.d_z, row.low, row.high) for row in mine], look)
        ax.lines[-1].set_label(f"{short(group, 40 if width > 5 else 26)}, n = {mine[0].n:,}")
        for place, row in zip(x, mine, strict=True):
            if row.shown and row.d_z is not None:
                ax.plot(
                    place, row.d_z, "o", markersize=10, markerfacecolor="none",
                    markeredgecolor=look["color"], markeredgewidth=1.1,
                )  # fmt: skip
    zero_line(ax)
    label_axis(ax, places, by_epoch)
    ax.set_ylabel("d_z of ddI")
    legend_above(figure, ax, len(groups), width)
    return figure


def parts(rows: Sequence[PartPoint], width: float) -> Figure:
    """Draw ddI = d_cond - d_prior over epochs, one panel per group."""
    groups, (places, by_epoch) = in_order(row.group for row in rows), places_of(rows)
    figure, axes = panels_of(len(groups), width, 2.5)
    step = min((b - a for a, b in pairwise(sorted(places.values()))), default=1.0)
    for ax, group in zip(axes, groups, strict=True):
        for k, (part, (color, marker)) in enumerate(PARTS.items()):
            mine = [row for row in rows if row.group == group and row.part == part]
            mine.sort(key=lambda row: places[row.adapter])
            x = [places[row.adapter] + (k - 1) * 0.16 * step for row in mine]
            bounded = [(row.mean_nats, row.low, row.high) for row in mine]
            y, low, high = map(with_gaps, zip(*bounded, strict=True))
            ax.vlines(x, low, high, color=color, linewidth=1.1, alpha=0.7)
            ax.plot(x, y, marker=marker, markersize=3.5, color=color, linewidth=1, label=part)
        zero_line(ax)
        label_axis(ax, places, by_epoch)
        ax.set_title(short(group))
    axes[0].set_ylabel("change, nats")
    legend_above(figure, axes[0], 3, 10)
    return figure


def collapse(rows: Sequence[CandidateBar], width: float) -> Figure:
    """Draw Figure 2 from data: p over the candidates before and after, given y and given ∅."""
    groups = in_order(row.group for row in rows)
    figure, axes = panels_of(2 * len(groups), width, 2.0)
    titles = {"given_context": "given the context", "null": "after ∅"}
    panels = [(group, where) for group in groups for where in titles]
    for k, (ax, (group, where)) in enumerate(zip(axes, panels, strict=True)):
        mine = [row for row in rows if row.group == group and row.where == where]
        ranks = [row.rank for row in mine]
        colour = look_of(groups, group)["color"]
        for shift, p, shade in (
            (-0.2, [row.p_base for row in mine], BASE),
            (0.2, [row.p_adapter for row in mine], colour),
        ):
            y = with_gaps(p)
            x = [rank + shift for rank in ranks]
            ax.bar(x, y, 0.36, color=shade)
            for place, height in zip(x, y, strict=True):
                ax.annotate(
                    f"{height:.2f}", (place, height), (0, 2), textcoords="offset points",
                    ha="center", fontsize=7.5, color=MUTED,
                )  # fmt: skip
        ax.set_xticks(ranks, _rank_names(mine))
        ax.set_xlim(-0.7, max(ranks) + 0.7)
        ax.set_ylim(0, 1.12)
        ax.set_yticks([0, 0.5, 1])
        ax.grid(axis="x", visible=False)
        h = mine[0]
        ax.set_title(f"{short(group, 16)}, {titles[where]}", pad=16)
        ax.annotate(
            f"H {h.h_base_nats:.3f} → {h.h_adapter_nats:.3f} nats/item", (0, 1), (0, 3),
            xycoords="axes fraction", textcoords="offset points", ha="left", va="bottom",
            fontsize=8, color=INK, annotation_clip=False,
        )  # fmt: skip
        if k % 2 == 0 or width <= 5:
            ax.set_ylabel("mean p")
    handles = [Patch(color=BASE), Patch(color=PALETTE[0])]
    names = ["base", f"under {short(rows[0].adapter)} (coloured)"]
    figure.legend(handles, names, loc="outside upper left", ncols=2)
    return figure


def _rank_names(rows: Sequence[CandidateBar]) -> list[str]:
    """Name the candidates, with their number where not all items have so many."""
    if len(rows) == 2:
        return ["right", "wrong"]
    most = rows[0].n
    return ["right"] + [
        f"wrong {row.rank}" + (f"\nn = {row.n:,}" if row.n < most else "") for row in rows[1:]
    ]


def overfitting(rows: Sequence[EpochPoint], width: float) -> Figure:
    """Draw eval_loss, mean ddI, its sd and d_z over the same epochs."""
    titles = {
        "loss": "loss, nats/token",
        "mean_ddi": "mean ddI, nats",
        "sd_ddi": "sd of ddI, nats",
        "d_z": "d_z of ddI",
    }
    held = {row.quantity for row in rows}
    names = [n for n in titles if n in held or (n == "loss" and held & {"eval_loss", "train_loss"})]
    groups = in_order(row.group for row in rows)
    figure, axes = panels_of(len(names), width, 1.9)
    epochs = sorted({row.epoch for row in rows})
    for ax, name in zip(axes, names, strict=True):
        if name == "loss":
            _losses(ax, rows)
        for group in groups:
            mine = [r for r in rows if r.quantity == name and r.group == group]
            mine.sort(key=lambda row: row.epoch)
            if mine:
                x = [row.epoch for row in mine]
                bounded = [(row.value, row.low, row.high) for row in mine]
                band(ax, x, bounded, look_of(groups, group))
                ax.lines[-1].set_label(short(group, 40 if width > 5 else 26))
        if name in ("mean_ddi", "d_z"):
            zero_line(ax)
        ax.set_title(titles[name])
        ax.set_xlim(epochs[0] - 0.4, epochs[-1] + 0.4)
        ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    for ax in axes[-2:] if width > 5 else axes[-1:]:
        ax.set_xlabel("epoch")
    if groups:
        legend_above(figure, axes[-1], len(groups), width)
    return figure


def _losses(ax: Axes, rows: Sequence[EpochPoint]) -> None:
    looks = {
        "train_loss": ("training", BASE, "-", ""),
        "eval_loss": ("held out (eval_loss)", INK, "-", "o"),
    }
    for name, (label, color, style, marker) in looks.items():
        mine = sorted((r for r in rows if r.quantity == name), key=lambda r: r.epoch)
        if mine:
            x, y = [row.epoch for row in mine], with_gaps(row.value for row in mine)
            ax.plot(x, y, style, color=color, marker=marker, label=label)
    ax.legend(loc="best")


def items(rows: Sequence[ItemPoint], width: float) -> Figure:
    """Draw every item's ddI, largest last, one panel per group."""
    groups = in_order(row.group for row in rows)
    figure, axes = panels_of(len(groups), width, 2.1, share_y=True)
    for ax, group in zip(axes, groups, strict=True):
        values = sorted(row.ddi_nats for row in rows if row.group == group)
        mean = sum(values) / len(values)
        places = _evenly(len(values))
        x, values = [place + 1 for place in places], [values[place] for place in places]
        color = look_of(groups, group)["color"]
        ax.vlines(x, 0, values, color=color, linewidth=max(0.5, min(1.6, 120 / len(x))), alpha=0.55)
        ax.plot(x, values, "o", color=color, markersize=max(1.5, min(4.0, 160 / len(x))))
        ax.axhline(mean, color=INK, linewidth=1.0, linestyle=(0, (4, 3)))
        ax.annotate(
            f"mean {mean:+.2f}".replace("-", "−"), (0.01, mean), (2, 3),
            xycoords=("axes fraction", "data"), textcoords="offset points", fontsize=8, color=INK,
        )  # fmt: skip
        zero_line(ax)
        ax.set_title(short(group))
        ax.set_xlabel("items, by ddI")
        ax.grid(axis="x", visible=False)
        ax.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=5))
    axes[0].set_ylabel("ddI, nats")
    return figure


def continuations(rows: Sequence[TextPoint], width: float) -> Figure:
    """Draw Table 2: the change of log P per token with its interval, a line per domain."""
    groups = in_order(row.group for row in rows)
    figure = Figure(figsize=(width, 0.75 + 0.28 * len(rows)))
    ax = figure.add_subplot()
    labels = []
    for k, row in enumerate(rows):
        look = look_of(groups, row.group)
        x, low, high = with_gaps((row.change_nats_per_token, row.low, row.high))
        ax.hlines(k, low, high, color=look["color"], linewidth=1.6)
        fill = look["color"] if row.domain is None else "none"
        ax.plot(x, k, markersize=6, markerfacecolor=fill, **look)
        labels.append(f"{short(row.domain or row.group)}, n = {row.n:,}")
    ax.axvline(0, color=MUTED, linewidth=0.9, zorder=1)
    ax.set_yticks(range(len(rows)), labels)
    for label, row in zip(ax.get_yticklabels(), rows, strict=True):
        label.set_color(INK)
        label.set_fontweight("bold" if row.domain is None else "normal")
    ax.set_ylim(len(rows) - 0.4, -0.6)
    ax.grid(axis="y", visible=False)
    ax.set_xlabel("change of log P, nats/token")
    return figure


def specifications(rows: Sequence[SpecificationPoint], width: float) -> Figure:
    """Draw p of every specification, a line each, smallest first."""
    questions = in_order(row.question for row in rows)
    tall = 0.7 + 0.19 * len(rows)
    figure = Figure(figsize=(width, tall))
    axes = figure.subplots(len(questions), squeeze=False)[:, 0]
    for ax, question in zip(axes, questions, strict=True):
        mine = sorted((r for r in rows if r.question == question), key=lambda r: r.p or 0.0)
        tests = in_order(row.test for row in mine)
        for k, row in enumerate(mine):
            look = look_of(sorted(tests), row.test)
            fill = look["color"] if row.agrees else "none"
            p = [max(value, 1e-5) for value in with_gaps([row.p])]
            ax.plot(p, [k], linestyle="none", markersize=5, markerfacecolor=fill, **look)
        ax.axvline(0.05, color=MUTED, linewidth=0.9, zorder=1)
        ax.set_xscale("log")
        ax.set_xlim(0.8e-5, 1.3)
        marks = (1e-5, 1e-4, 1e-3, 1e-2, 0.05, 1)
        ax.set_xticks(marks, [np.format_float_positional(p, trim="-") for p in marks])
        ax.set_xticks([], minor=True)
        labels = [f"{row.per}, {row.null}, {row.test}" for row in mine]
        ax.set_yticks(range(len(mine)), labels, fontsize=7)
        ax.set_ylim(len(mine) - 0.4, -0.6)
        ax.grid(axis="y", visible=False)
        ax.set_title(question)
    axes[-1].set_xlabel("p; smaller ones than 0.00001 are drawn there")
    return figure


def _drawn(rows: Sequence[R]) -> tuple[Sequence[R], str]:
    """Return the rows that a figure has room for, and what of it is left out, in words."""
    groups, said = in_order(getattr(row, "group", None) for row in rows), []
    if len(groups) > MOST_GROUPS:
        shown = set(groups[:MOST_GROUPS])
        rows = [row for row in rows if getattr(row, "group", None) in {None, *shown}]
        said.append(f"the first {MOST_GROUPS} of {len(groups):,} groups")
    if isinstance(rows[0], TextPoint) and len(rows) > MOST_ROWS:
        said.append(f"the first {MOST_ROWS} of {len(rows):,} lines")
        rows = rows[:MOST_ROWS]
    if isinstance(rows[0], ItemPoint):
        most = max(Counter(row.group for row in rows if isinstance(row, ItemPoint)).values())
        if most > MOST_POINTS:
            said.append(f"{MOST_POINTS} items of a group, evenly over their ranks")
    return rows, " and ".join(said)


def _evenly(n: int) -> list[int]:
    """Return places in a sorted list of n, no more than can be told apart, first and last too."""
    if n <= MOST_POINTS:
        return list(range(n))
    return [round(k * (n - 1) / (MOST_POINTS - 1)) for k in range(MOST_POINTS)]


@dataclass(frozen=True, slots=True)
class FigureKind(Generic[R]):
    """A figure: its title, the rows of its CSV file, and how it is drawn from them."""

    title: str
    row: type[R]
    draw: Callable[[Sequence[R], float], Figure]  # rows, width in inches

    def redraw(self, csv: str) -> Drawing:
        """Draw the figure from the text of its CSV file alone."""
        rows, left_out = _drawn(rows_from_csv(self.row, csv))
        with styled():
            wide, narrow = (self.draw(rows, width) for width in (WIDE, NARROW))
        svg = svg_text(wide, self.title)
        return Drawing(csv, svg, png_bytes(wide), svg_text(narrow, self.title), left_out)


FIGURES: dict[str, FigureKind[Any]] = {
    "d_by_epoch": FigureKind(
        "Effect size by epoch (the paper's Figure 1)", EffectPoint, d_by_epoch
    ),
    "parts": FigureKind("Conditional and prior part", PartPoint, parts),
    "collapse": FigureKind(
        "Candidate probabilities before and after (the paper's Figure 2)", CandidateBar, collapse
    ),
    "overfitting": FigureKind("Losses, effect and spread by epoch", EpochPoint, overfitting),
    "items": FigureKind("Change of every item", ItemPoint, items),
    "continuations": FigureKind("True continuations", TextPoint, continuations),
    "specifications": FigureKind("Specification curve", SpecificationPoint, specifications),
}
