"""A folder of scores to a folder with a report; no model, no network."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TextIO

from cqa.config import input_paths
from cqa.files import new_file, reported
from cqa.output_folder import check_output, filled, replaced_together
from cqa.report.all_tables import all_tables
from cqa.report.caveats import caveats
from cqa.report.comparison import read_comparison
from cqa.report.config import ReportConfig
from cqa.report.figure_data import figure_rows
from cqa.report.figure_rows import rows_to_csv
from cqa.report.figures import FIGURES
from cqa.report.focus import Focus, make_focus
from cqa.report.item_table import items_table, scored_items
from cqa.report.long_table import LongFile, long_file
from cqa.report.page import Report, html_page, markdown_page
from cqa.report.source import Tap, read_source
from cqa.report.studies import read_studies
from cqa.report.tables import to_latex, write_table_csv
from cqa.report.verdict import make_page
from cqa.schema.verdict import Verdict
from cqa.stats.config import AnalysisConfig
from cqa.stats.summary import summarise

Content = str | bytes | Callable[[TextIO], None]  # the last writes it a piece at a time


@dataclass(frozen=True, slots=True)
class Written:
    """What a report consists of, and what it says."""

    files: list[Path]  # the page first
    verdict: Verdict  # with what was told to the report, which scoring may not have known


def write_report(scores: Path, config: ReportConfig) -> Written:
    """Write report.html, report.md, tables/ and figures/.

    Args:
        scores: A folder that `cqa-fast score` wrote.
        config: Where to write, and what the statistics leave open.

    Raises:
        DataError: The scores are missing or damaged.
        ConfigError: `config.out` is a file, or a folder of something else.
        ResourceError: A file cannot be written.
    """
    check_output(config.out, "report", [("SCORES", scores), *input_paths(config)])
    with _uncollected(), long_file(config.out) as long:
        report = make_report(scores, config, long.take)
        with filled(config.out, "report"), replaced_together(config.out) as staged:
            names = []
            for name, make in _files(report, long):
                write_file(staged / name, make())
                names.append(name)
    return Written([config.out / name for name in names], report.focus.summary.verdict)


@contextmanager
def _uncollected() -> Iterator[None]:
    """Keep Python from looking for garbage in cycles, of which a report makes none to speak of.

    It would look through all items again and again: of 100,000 it takes a fifteenth of the time.
    """
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def _files(report: Report, long: LongFile) -> Iterator[tuple[str, Callable[[], Content]]]:
    """Yield the files by name, the page first, each made when it is its turn."""
    yield "report.html", lambda: html_page(report)
    yield "report.md", lambda: markdown_page(report)
    for table in report.tables:
        yield f"tables/{table.name}.csv", partial(partial, write_table_csv, table)
        yield f"tables/{table.name}.tex", partial(to_latex, table)
    yield "tables/scores_long.csv", lambda: partial(long.write, report.focus.source)
    for name, drawing in report.figures.items():
        yield f"figures/{name}.csv", partial(str, drawing.csv)
        yield f"figures/{name}.svg", partial(str, drawing.svg)
        yield f"figures/{name}.png", partial(bytes, drawing.png)
    for part in report.added:
        for table in part.tables:
            yield f"tables/{table.name}.csv", partial(partial, write_table_csv, table)
            yield f"tables/{table.name}.tex", partial(to_latex, table)
        for figure in part.figures:
            yield f"figures/{figure.name}.svg", partial(str, figure.svg)
            yield f"figures/{figure.name}.png", partial(bytes, figure.png)


def make_report(scores: Path, config: ReportConfig, tap: Tap | None = None) -> Report:
    """Decide everything that the report says, and draw its figures; see `read_source` for `tap`."""
    focus = read_focus(scores, config, tap)
    base = focus.source.meta.models[0]
    added = read_studies(config.study, base)  # before the figures, since they may be refused
    if config.compare is not None:
        added.append(read_comparison(config.compare, base))
    found = scored_items(focus)
    tables = [*all_tables(focus), items_table(focus, found)]
    figures = {
        name: FIGURES[name].redraw(rows_to_csv(rows)) for name, rows in figure_rows(focus).items()
    }
    return Report(focus, make_page(focus), caveats(focus), tables, figures, found, added)


def read_focus(scores: Path, config: ReportConfig, tap: Tap | None = None) -> Focus:
    """Read the files and compute the statistics; what `config` leaves open, scoring has settled."""
    source = read_source(scores, config.run, tap)
    settings = source.settings
    analysis = AnalysisConfig(
        cutoff=config.cutoff or settings.cutoff,
        margin=config.margin or settings.margin,
        choose=config.choose or settings.choose,
        primary=config.primary or settings.primary,
        control=config.control or settings.control,
    )
    source.analysis = analysis
    return make_focus(source, summarise(source.scores, analysis, made=source.made))


def write_file(path: Path, content: Content) -> Path:
    """Write a file whole, its folder made if it is not there; return its path."""
    with reported(path):
        path.parent.mkdir(parents=True, exist_ok=True)
    with new_file(path) as temporary:
        if isinstance(content, bytes):
            temporary.write_bytes(content)
        else:
            with temporary.open("w", encoding="utf-8", newline="") as file:
                file.write(content) if isinstance(content, str) else content(file)
    return path
