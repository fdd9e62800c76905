"""How figures look, and how they become SVG, PNG and part of a page."""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import matplotlib as mpl
from matplotlib.figure import Figure
from matplotlib.font_manager import get_font_names

from cqa.escape import for_html

WIDE, NARROW = 6.8, 3.5  # inches
INK, MUTED, GRID, BASE = "#1c2430", "#667085", "#e4e7ec", "#98a2b3"
# Okabe & Ito 2008: told apart under every common colour blindness.
PALETTE = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00")
CJK = ("Noto Sans CJK SC", "Noto Sans SC", "Source Han Sans SC", "PingFang SC", "Microsoft YaHei")
STYLE: Any = {
    "font.size": 9,
    "axes.titlesize": 9,
    "axes.titlelocation": "left",
    "axes.titleweight": "bold",
    "axes.labelsize": 9,
    "axes.edgecolor": MUTED,
    "axes.labelcolor": INK,
    "axes.titlecolor": INK,
    "axes.linewidth": 0.7,
    "axes.facecolor": "none",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": GRID,
    "grid.linewidth": 0.7,
    "text.color": INK,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.labelsize": 8,
    "ytick.labelsize": 8,
    "xtick.major.size": 0,
    "ytick.major.size": 0,
    "legend.frameon": False,
    "legend.fontsize": 8.5,
    "lines.linewidth": 1.6,
    "lines.markersize": 4.5,
    "text.parse_math": False,  # labels are names that users chose
    "svg.fonttype": "none",
    "svg.hashsalt": "cqa-fast",
    "figure.constrained_layout.use": True,
}


@contextmanager
def styled() -> Iterator[None]:
    """Draw in this house's style; a sign that no font here has becomes a box, not a warning."""
    family = ["DejaVu Sans", *(name for name in CJK if name in get_font_names())]
    with mpl.rc_context(STYLE | {"font.family": family}), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        yield


@dataclass(frozen=True, slots=True)
class Drawing:
    """A figure as the bytes of its files, and as parts of a page."""

    csv: str
    svg: str
    png: bytes
    narrow_svg: str
    left_out: str  # what is drawn where not all is, in words


def svg_text(figure: Figure, title: str) -> str:
    """Return a figure as SVG, the same text every time."""
    file = io.StringIO()
    with styled():
        figure.savefig(
            file, format="svg", facecolor="white", metadata={"Date": None, "Title": title}
        )
    figure.set_layout_engine("none")  # what is laid out stays, and the next format is quicker
    return file.getvalue()


def png_bytes(figure: Figure) -> bytes:
    """Return a figure as PNG, the same bytes every time."""
    file = io.BytesIO()
    with styled():
        figure.savefig(file, format="png", dpi=200, facecolor="white", metadata={"Software": None})
    return file.getvalue()


def inline_svg(text: str, prefix: str, label: str) -> str:
    """Return an SVG file for use in a page: its colours as CSS variables, its ids unique."""
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r"<style [^>]*>.*?</style>", "", text, flags=re.DOTALL)
    text = re.sub(r'\bid="', f'id="{prefix}-', text)
    text = re.sub(r'href="#', f'href="#{prefix}-', text)
    text = re.sub(r"url\(#", f"url(#{prefix}-", text)
    for colour, value in _IN_PAGE.items():
        text = text.replace(colour, value)
    view = re.search(r'viewBox="[^"]*"', text)
    head = f'<svg {view and view[0]} role="img" aria-label="{for_html(label)}">'
    return re.sub(r"<svg\b[^>]*>", lambda _: head, text, count=1).strip()


_IN_PAGE = {
    "fill: #ffffff": "fill: none",
    **{colour: f"var(--{name})" for colour, name in (
        (INK, "ink"), (MUTED, "muted"), (GRID, "grid"), (BASE, "base"),
        *((colour, f"c{k}") for k, colour in enumerate(PALETTE)),
    )},
}  # fmt: skip
