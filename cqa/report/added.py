"""A section of a report that is made of another folder: a study, or a comparison."""

from __future__ import annotations

from dataclasses import dataclass

from cqa.report.tables import Table
from cqa.schema.claims import StudyFinding


@dataclass(frozen=True, slots=True)
class AddedFigure:
    """A figure as its files, and for wide and narrow windows."""

    name: str  # of its files
    title: str
    caption: str
    svg: str
    narrow_svg: str
    png: bytes


@dataclass(frozen=True, slots=True)
class AddedPart:
    """What the section says, and its files."""

    name: str  # its place in the page
    title: str
    facts: list[str]  # what stands above the tables
    answers: list[tuple[StudyFinding, str]]  # every finding, with the model that it is of
    figures: list[AddedFigure]
    tables: list[Table]
