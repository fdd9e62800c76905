"""Tables of parts of a group of pairs: by domain, by language, before and after the cutoff."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Literal, NamedTuple

from cqa.report.focus import ADAPTER, DOMAIN, GROUP, LANGUAGE, STRATUM, Focus, N
from cqa.report.pair_tables import CI, DDI, DI_BASE, W_PLUS, P, Parts, approximated
from cqa.report.tables import Column, Placed, Table, tabulate
from cqa.schema.comparison import Change, Comparison
from cqa.schema.result import Interval
from cqa.stats.parts import changes_by_part
from cqa.stats.strata import read_cutoff, stratum
from cqa.stats.text_tests import holm
from cqa.text import part_name

Key = tuple[str, str, str | None]  # group, adapter, part; None is the whole group
NOTE = (
    "95 % CI and p, corrected: the deciding test of each part, over sources and simultaneous over "
    "all adapters, greater. p, Holm: corrected also for the {parts} of the group; a difference of "
    "two {parts} is not tested. Wilcoxon: as in the paper, of one part and adapter alone with "
    "items as independent"
)


class Tested(NamedTuple):
    """The deciding test of a part under one adapter."""

    ci95: Interval | None
    p_corrected: float | None
    p_holm: float | None  # corrected also for the other parts


def domains(focus: Focus) -> Table:
    """Return the change by domain and of all items, for every group of two domains or more."""
    rows = _rows(focus, lambda entry: entry.domains)
    tests = _tested(focus, lambda focus, group: _labels(focus, group, "domain"))
    note = NOTE.format(parts="domains") + ". Items without a domain are in “all” alone"
    return _table(focus, "domains", "Pairs by domain", DOMAIN, rows, tests, note)


def languages(focus: Focus) -> Table:
    """Return the change by language and of all items, for every group of several languages."""
    rows = _rows(focus, lambda entry: entry.languages)
    tests = _tested(focus, lambda focus, group: _labels(focus, group, "lang"))
    note = NOTE.format(parts="languages") + ". Items without a language are in “all” alone"
    return _table(focus, "languages", "Pairs by language", LANGUAGE, rows, tests, note)


def strata(focus: Focus) -> Table:
    """Return the change before and after the cutoff."""
    cutoff = focus.summary.cutoff
    rows: list[Placed[Change]] = [
        Placed(entry, group, adapter, name)
        for name, part in focus.summary.strata.items()
        for group, models in part.groups.items()
        for adapter, entry in models.items()
    ]
    title = f"Pairs before and after {cutoff}"
    tests = _tested(focus, _strata) if rows else {}
    return _table(focus, "strata", title, STRATUM, rows, tests, NOTE.format(parts="strata"))


def _rows(focus: Focus, of: Callable[[Comparison], Mapping[str, Change]]) -> list[Placed[Change]]:
    rows: list[Placed[Change]] = []
    for row in focus.comparisons():
        if held := of(row.result):
            parts = [*held.items(), (None, row.result)]
            rows += [Placed(part, row.group, row.adapter, name) for name, part in parts]
    return rows


def _labels(focus: Focus, group: str, label: Literal["domain", "lang"]) -> Sequence[str | None]:
    scores = focus.source.scores
    rows = scores.items[group][None].rows
    return scores.facts.labels(label, rows)


def _strata(focus: Focus, group: str) -> Sequence[str | None]:
    scores = focus.source.scores
    day = read_cutoff(focus.summary.cutoff or "")
    dates = scores.facts.labels("published_at", scores.items[group][None].rows)
    return [stratum(date, day) for date in dates]


def _tested(
    focus: Focus, parts_of: Callable[[Focus, str], Sequence[str | None]]
) -> dict[Key, Tested]:
    """Return the deciding test of every part, and Holm's p over the parts of a group."""
    scores = focus.source.scores
    found: dict[Key, Tested] = {}
    for group, family in focus.summary.families.items():
        parts = parts_of(focus, group)
        tests = changes_by_part(scores.items[group], scores.facts, parts, family.changes)
        for adapter in next(iter(tests.values()), {}):
            own = {part: changes[adapter] for part, changes in tests.items()}
            corrected = holm([change.p_greater_corrected for change in own.values()])
            found |= {
                (group, adapter, part): Tested(change.ci95, change.p_greater_corrected, p)
                for (part, change), p in zip(own.items(), corrected, strict=True)
            }
        for adapter, whole in family.changes.items():
            found[group, adapter, None] = Tested(whole.ci95_nats, whole.p_corrected, None)
    return found


def _table(
    focus: Focus,
    name: str,
    title: str,
    part: Parts,
    rows: Sequence[Placed[Change]],
    tests: Mapping[Key, Tested],
    note: str,
) -> Table:
    def of(row: Placed[Change]) -> Tested:
        return tests.get((row.group, row.adapter or "", row.part), Tested(None, None, None))

    columns: tuple[Parts, ...] = (
        GROUP,
        part,
        ADAPTER,
        N,
        DI_BASE,
        DDI,
        Column("ci95_simultaneous_nats", "95 % CI, nats", lambda r: of(r).ci95, "interval"),
        Column("p_corrected", "p, corrected", lambda r: of(r).p_corrected, "p"),
        Column("p_holm", "p, Holm", lambda r: of(r).p_holm, "p"),
        CI,
        W_PLUS,
        P,
    )
    note += approximated((f"{row.group}, {part_name(row.part)}", row.result) for row in rows)
    return tabulate(name, title, columns, rows, note, adapters=focus.shown)
