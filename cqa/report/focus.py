"""What the page dwells on, and what tables of several modules share."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from cqa.report.source import Source
from cqa.report.tables import Column

Row = dict[str, Any]
GROUP, ADAPTER = Column("group", "group", "text"), Column("adapter", "adapter", "text")
DOMAIN, N = Column("domain", "domain", "text"), Column("n", "n", "count")


@dataclass(frozen=True, slots=True)
class View:
    """The summary, and which part of it the page dwells on."""

    source: Source
    summary: Row
    primary: str | None  # the group that the question is about
    control: str | None
    shown: str | None  # the adapter that the page dwells on

    @property
    def entry(self) -> Row | None:
        """The statistics of the primary group under the shown adapter."""
        if self.primary is None or self.shown is None:
            return None
        found: Row | None = self.summary["groups"][self.primary].get(self.shown)
        return found

    def entries(self) -> Iterator[tuple[str, str, Row]]:
        """Yield (group, adapter, statistics) of all pairs and options."""
        for group, models in self.summary["groups"].items():
            for adapter, entry in models.items():
                yield group, adapter, entry


def make_view(source: Source, summary: Row) -> View:
    """Choose what the page dwells on: the adapter of the paper's rule, else the last one."""
    groups = [g for g, base in summary["base"].items() if base["n"]]
    primary = "literary" if "literary" in groups else next(iter(groups), None)
    control = "factual" if "factual" in groups and primary != "factual" else None
    if primary in summary["selection"]:
        shown = summary["selection"][primary]["chosen"]
    else:
        shown = source.adapters[-1] if source.adapters else None
    return View(source, summary, primary, control, shown)


def of_shown(view: View) -> Callable[[Row], bool]:
    """Return whether a row is of the base, or of the adapter that the page dwells on."""
    return lambda row: row["adapter"] in (view.shown, "base")
