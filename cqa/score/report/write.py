"""A folder of scores to a folder with a report; no model, no network."""

from __future__ import annotations

from pathlib import Path

from cqa.errors import ConfigError
from cqa.files import new_file, reported
from cqa.score.config import ReportConfig
from cqa.score.report.canvas import rows_from_csv, rows_to_csv, save
from cqa.score.report.cautions import cautions
from cqa.score.report.contents import all_tables, make_view
from cqa.score.report.details import items_table, scored_items
from cqa.score.report.figure_data import figure_rows
from cqa.score.report.figures import draw
from cqa.score.report.page import Report, html_page, markdown_page
from cqa.score.report.source import read_source
from cqa.score.report.tables import to_csv, to_latex
from cqa.score.report.verdict import make_verdict
from cqa.score.summary import summarise


def write_report(scores: Path, config: ReportConfig) -> list[Path]:
    """Write report.html, report.md, tables/ and figures/; return the paths, the page first.

    Args:
        scores: A folder that `cqa-fast score` wrote.
        config: Where to write, and what the statistics leave open.

    Raises:
        DataError: The scores are missing or damaged.
        ConfigError: `config.out` is a file.
        ResourceError: A file cannot be written.
    """
    report = make_report(scores, config)
    if config.out.exists() and not config.out.is_dir():
        raise ConfigError("expected --out to be a folder, got a file", where=str(config.out))
    texts = {"report.html": html_page(report), "report.md": markdown_page(report)}
    for table in report.tables:
        texts[f"tables/{table.name}.csv"] = to_csv(table)
        texts[f"tables/{table.name}.tex"] = to_latex(table)
    for name, rows in report.figures.items():
        texts[f"figures/{name}.csv"] = rows_to_csv(rows)
    written = []
    for name, text in texts.items():
        written.append(_prepared(config.out / name))
        with new_file(written[-1]) as temporary:
            temporary.write_text(text, encoding="utf-8")
    for name in report.figures:
        written += redraw(config.out / "figures" / f"{name}.csv")
    return written


def make_report(scores: Path, config: ReportConfig) -> Report:
    """Read the files and decide everything that the report says."""
    source = read_source(scores, config.run)
    cutoff = config.cutoff or source.meta["settings"].get("cutoff")
    margin = config.margin or source.meta["settings"].get("margin")
    view = make_view(source, summarise(source.scores, cutoff=cutoff, margin_nats=margin))
    found = scored_items(view)
    tables = [*all_tables(view), items_table(view, found)]
    return Report(view, make_verdict(view), cautions(view), tables, figure_rows(view), found)


def redraw(path: Path) -> list[Path]:
    """Draw a figure from its CSV file alone, beside it, as SVG and PNG."""
    name = path.stem
    figure = draw(name, rows_from_csv(path.read_text(encoding="utf-8")))
    written = []
    for kind in (".svg", ".png"):
        with new_file(path.with_suffix(kind)) as temporary:
            save(figure, temporary, kind, name=name)
        written.append(path.with_suffix(kind))
    return written


def _prepared(path: Path) -> Path:
    with reported(path):
        path.parent.mkdir(parents=True, exist_ok=True)
    return path
