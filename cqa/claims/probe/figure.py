"""The figure of probes: AUC by layer, with where it lies when labels are swapped."""

from __future__ import annotations

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from cqa.claims.probe.row import POSITIONS, ProbedLayer, ProbeResult
from cqa.report.figure_parts import legend_above, look_of, panels_of, short
from cqa.report.figure_style import MUTED, PALETTE, WIDE, styled

TITLES = {"mean": "mean of the option's tokens", "last": "last token of the option"}
MOST_MODELS = len(PALETTE)


def draw_layers(result: ProbeResult) -> Figure:
    """Draw a line a model, the base first; of many adapters the first few."""
    models = list(dict.fromkeys(layer.adapter for layer in result.layers))[:MOST_MODELS]
    names = [model or "base" for model in models]
    text = next((e.value for e in result.effects if e.name == "text" and e.adapter is None), None)
    with styled():
        figure, axes = panels_of(len(POSITIONS), WIDE, 2.9, share_y=True)
        for ax, position in zip(axes, POSITIONS, strict=True):
            ax.axhline(0.5, color=MUTED, linewidth=0.9, zorder=1)
            if text is not None:
                ax.axhline(
                    text, color=MUTED, linestyle="--", zorder=1, label="length, bytes, S (base)"
                )
            for k, model in enumerate(models):
                held = [
                    one
                    for one in result.layers
                    if one.adapter == model and one.position == position
                ]
                _draw(ax, held, short(names[k], 18), look_of(names, names[k])["color"])
            ax.set_title(TITLES[position])
            ax.set_xlabel("layer (0: embeddings)")
        axes[0].set_ylabel("AUC out of fold; band: labels swapped")
        legend_above(figure, axes[0], len(models) + 1, WIDE)
    return figure


def _draw(ax: Axes, held: list[ProbedLayer], label: str, color: str) -> None:
    x = [one.layer for one in held]
    ax.fill_between(
        x, [one.null95[0] for one in held], [one.null95[1] for one in held], color=color,
        alpha=0.12, linewidth=0,
    )  # fmt: skip
    ax.plot(x, [one.auc for one in held], color=color, label=label, zorder=3)
