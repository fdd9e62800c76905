"""Writing a report, and reading its tables."""

import csv
import io
from html.parser import HTMLParser
from pathlib import Path

from cqa.report.config import ReportConfig
from cqa.report.write import write_report


def report_on(folder: Path, out: Path, **settings) -> list[Path]:
    return write_report(folder, ReportConfig(out=out, **settings)).files


def rows_of(path: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(path.read_text(encoding="utf-8"))))


class Page(HTMLParser):
    """The elements, attributes and texts of a page."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict]] = []
        self.texts: list[str] = []
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.texts.append(data)
