"""What the page puts first, and what tables of several modules share."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from cqa.report.source import Source
from cqa.report.tables import Column, Placed
from cqa.schema.comparison import Change, Comparison, TextChange
from cqa.schema.summary import Summary
from cqa.schema.verdict import Choice, GroupFamily, Interaction
from cqa.stats.deciding import Change as DecidingChange
from cqa.stats.specification import Specification, specification_curve
from cqa.stats.text_tests import text_changes
from cqa.text import part_name

GROUP: Column[Placed[Any]] = Column("group", "group", lambda r: r.group, "text")
ADAPTER: Column[Placed[Any]] = Column("adapter", "adapter", lambda r: r.adapter, "text")
DOMAIN: Column[Placed[Any]] = Column("domain", "domain", lambda r: part_name(r.part), "text")
STRATUM: Column[Placed[Any]] = Column("stratum", "published", lambda r: r.part, "text")
LANGUAGE: Column[Placed[Any]] = Column("lang", "language", lambda r: part_name(r.part), "text")
N: Column[Placed[Change | TextChange]] = Column("n", "n", lambda r: r.result.n, "count")


@dataclass(frozen=True)
class Focus:
    """The summary, and which part of it the page puts first."""

    source: Source
    summary: Summary
    highlighted: str | None  # the adapter that the verdict is on

    @property
    def primary(self) -> str | None:
        """The group that the question is about."""
        return self.summary.roles.primary

    @property
    def control(self) -> str | None:
        """The group that it is compared with."""
        return self.summary.roles.control

    @property
    def comparison(self) -> Comparison | None:
        """The statistics of the primary group under the highlighted adapter."""
        return self.of(self.primary)

    def of(self, group: str | None) -> Comparison | None:
        """Return the statistics of a group under the highlighted adapter."""
        return self.summary.groups.get(group or "", {}).get(self.highlighted or "")

    @property
    def selection(self) -> Choice | None:
        """What the choice of the highlighted adapter cost; None where there was none."""
        return self.summary.selection.get(self.primary or "")

    @property
    def family(self) -> GroupFamily | None:
        """The deciding test of the primary group."""
        return self.summary.families.get(self.primary or "")

    @property
    def interaction(self) -> Interaction | None:
        """The primary group minus the control under the highlighted adapter."""
        return self.summary.interaction.get(self.highlighted or "")

    @property
    def n_seeds(self) -> int:
        """The training seeds that the highlighted adapter's epoch has all primary items under."""
        effects = self.summary.seeds.get(self.primary or "", ())
        return next((e.n_seeds for e in effects if self.highlighted in e.adapters.values()), 1)

    @property
    def shown(self) -> tuple[str | None, ...]:
        """What most tables of the page are of: the highlighted adapter, or the base alone."""
        return self.highlighted, "base"

    @cached_property
    def specifications(self) -> list[Specification]:
        """The verdict's main questions asked in every way; nothing where they cannot be asked."""
        items = self.source.scores.items
        groups = [g for g in (self.primary, self.control) if g is not None]
        if self.highlighted is None or not groups or self.primary is None:
            return []
        return specification_curve(
            items, self.source.scores.facts, groups, self.highlighted, self.summary
        )

    @cached_property
    def text_changes(self) -> dict[str, dict[str, dict[str | None, DecidingChange]]]:
        """The deciding test of continuations: by group, adapter and domain (None is the group)."""
        candidates, texts = self.summary.candidates, self.source.scores.texts
        return {group: text_changes(models, candidates) for group, models in texts.items()}

    def comparisons(self) -> Iterator[Placed[Comparison]]:
        """Yield the statistics of all pairs and options."""
        for group, models in self.summary.groups.items():
            for adapter, comparison in models.items():
                yield Placed(comparison, group, adapter)


def make_focus(source: Source, summary: Summary) -> Focus:
    """Put first what the verdict is about."""
    return Focus(source, summary, summary.highlighted)
