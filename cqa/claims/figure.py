"""The figure that most studies have."""

from cqa.report.effect_figure import draw_effects as draw_effects
