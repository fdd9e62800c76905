"""Studies of the paper's other claims as parts of a report: read, checked, tabulated and drawn."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from cqa.errors import DataError, ModelError
from cqa.files import inside, read_json
from cqa.report.added import AddedFigure, AddedPart
from cqa.report.effect_figure import draw_effects
from cqa.report.figure_style import NARROW, WIDE, png_bytes, svg_text
from cqa.report.tables import Column, Line, Table
from cqa.schema.claims import Effect, StudyResult
from cqa.schema.meta import ScoredModel
from cqa.text import counted, listed, named, part_name

RESULT = "study.json"
_AGAIN = "the command that wrote it writes it again"
_NAME = re.compile("[a-z]{1,40}")  # files of the report are called by it
COLUMNS: tuple[Column[Effect], ...] = (
    Column("measure", "measure", lambda e: e.label, "text"),
    Column("part", "part", lambda e: e.part, "text"),
    Column("adapter", "model", lambda e: e.adapter or "base", "text"),
    Column("group", "group", lambda e: part_name(e.group), "text"),
    Column("n_items", "n", lambda e: e.n, "count"),
    Column("n_sources", "sources", lambda e: e.n_sources, "count"),
    Column("mean", "mean", lambda e: e.value, "fine"),
    Column("ci95", "95 % CI", lambda e: e.ci95, "fine_interval"),
    Column("p", "p", lambda e: e.p, "p"),
    Column("p_against", "p, other way", lambda e: e.p_against, "p"),
)


def read_studies(folders: Sequence[Path], base: ScoredModel) -> list[AddedPart]:
    """Read folders that `cqa-fast study` wrote, of the base that a report is about.

    Args:
        folders: One of each study.
        base: The report's.

    Raises:
        DataError: A folder holds no study, or two hold the same one.
        ModelError: A study is of another base or another tokenizer.
    """
    parts: dict[str, AddedPart] = {}
    for folder in folders:
        result = _read(folder, base)
        if result.study in parts:
            raise DataError(
                f"expected each study once, got `{result.study}` again", where=str(folder),
                hint="make a report of each",
            )  # fmt: skip
        parts[result.study] = _part(result, base)
    return list(parts.values())


def _read(folder: Path, base: ScoredModel) -> StudyResult:
    path = inside(folder, RESULT)
    if not path.is_file():
        raise DataError(
            f"expected a folder that cqa-fast study wrote, got one without {RESULT}",
            where=str(folder),
            hint="a study that was stopped has none; the same command continues it",
        )
    try:
        result = StudyResult.from_json(read_json(path), str(path))
    except DataError as error:
        raise DataError(error.message, where=error.where, hint=_AGAIN) from None
    if not (_NAME.fullmatch(result.study) and result.models and result.models[0].adapter is None):
        raise DataError(
            "expected a study's name, and its base before its adapters, got other fields",
            where=str(path), hint=_AGAIN,
        )  # fmt: skip
    for asked in result.models[:1]:
        for name in ("model", "tokenizer"):
            if getattr(asked, name) != getattr(base, name):
                what = "base model" if name == "model" else name
                raise ModelError(
                    f"expected a study of the {what} that was scored, got one of another",
                    where=str(folder),
                )
    return result


def _part(result: StudyResult, base: ScoredModel) -> AddedPart:
    name = f"study_{result.study}"
    table = Table(
        name, f"Effects beside their null control: {result.study}", COLUMNS,
        [Line(tuple(c.value(e) for c in COLUMNS), e.adapter) for e in result.effects],
        "p is one-sided, in the direction of the claim, corrected for all models of the study",
    )  # fmt: skip
    figure, narrow = (draw_effects(result, width=width) for width in (WIDE, NARROW))
    title = f"{result.study}: effects and null controls"
    drawn = AddedFigure(
        name, "Effects and null controls",
        "Means over items with intervals that hold together for all models.",
        svg_text(figure, title), svg_text(narrow, title), png_bytes(figure),
    )  # fmt: skip
    said = [
        f"{result.claim} ({counted(result.n_items, 'item')}). Null control: "
        f"{result.null_control}.",
        *result.notes, result.caution, _other_code(result, base),
    ]  # fmt: skip
    return AddedPart(
        name, f"Study: {result.study}", [text for text in said if text],
        [(f, named(f.adapter or "base")) for f in result.findings], [drawn], [table],
    )  # fmt: skip


def _other_code(result: StudyResult, base: ScoredModel) -> str:
    """Say in what the study's base was asked otherwise than it was scored."""
    other = [
        name
        for name in ("template", "dtype", "device", "backend")
        for asked in result.models[:1]
        if getattr(asked, name) != getattr(base, name)
    ]
    return f"Asked with another {listed(other)} than the scores" if other else ""
