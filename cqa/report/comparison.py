"""A comparison of models as a part of a report: read, checked, tabulated and drawn."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from cqa.errors import DataError, ModelError
from cqa.files import inside, read_json
from cqa.report.added import AddedFigure, AddedPart
from cqa.report.compared_figure import TITLE, draw, left_out
from cqa.report.compared_tables import all_tables, caveats
from cqa.report.figure_style import NARROW, WIDE, png_bytes, svg_text
from cqa.schema.compared import Comparison
from cqa.schema.meta import ScoredModel
from cqa.text import listed

RESULT = "compare.json"
NAME = "comparison"
CAPTION = (
    "Softmax over the options, of the right one, mean over items with its 95 % interval over "
    "sources. The line is chance."
)


def read_comparison(folder: Path, base: ScoredModel) -> AddedPart:
    """Read a folder that `cqa-fast compare` wrote, in which the base of a report is a model.

    Args:
        folder: The comparison's.
        base: The report's.

    Raises:
        DataError: The folder holds no comparison, or a damaged one.
        ModelError: The base is none of its models.
    """
    path = inside(folder, RESULT)
    if not path.is_file():
        raise DataError(
            f"expected a folder that cqa-fast compare wrote, got one without {RESULT}",
            where=str(folder),
        )
    found = Comparison.from_json(read_json(path), str(path))
    own = [
        system.name
        for system in found.systems
        if (system.model_digest, system.tokenizer_digest) == (base.model, base.tokenizer)
    ]
    if not own:
        raise ModelError(
            "expected a comparison with the base model that was scored, got one of others",
            where=str(folder),
            hint="name the folder of these scores to cqa-fast compare too",
        )
    tables = [replace(table, name=f"compare_{table.name}") for table in all_tables(found)]
    return AddedPart(
        NAME, "Beside other models", list(_facts(found, own)), [], list(_figures(found)), tables
    )


def _facts(found: Comparison, own: list[str]) -> Iterator[str]:
    yield f"On this report's base: {listed(own)}. The reference is {found.reference}."
    yield from caveats(found)


def _figures(found: Comparison) -> Iterator[AddedFigure]:
    if not found.groups:
        return
    wide, narrow = (draw(found, width=width) for width in (WIDE, NARROW))
    part = left_out(found)
    yield AddedFigure(
        "compare_rank_prob", TITLE, f"{CAPTION} Drawn are {part}." if part else CAPTION,
        svg_text(wide, TITLE), svg_text(narrow, TITLE), png_bytes(wide),
    )  # fmt: skip
