"""The tables of true continuations: the paper's Table 2 over sources, and its parts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from cqa.report.focus import ADAPTER, DOMAIN, GROUP, LANGUAGE, STRATUM, Focus, N
from cqa.report.tables import Column, Placed, Table, tabulate
from cqa.schema.comparison import TextChange
from cqa.schema.result import PairedChange
from cqa.stats.deciding import Change
from cqa.stats.strata import STRATA, read_cutoff, stratum
from cqa.stats.text_tests import holm, text_changes

Texts = Column[Placed[TextChange]]
CHANGE_NATS: Texts = Column(
    "mean_dlogp_per_token_nats",
    "change, nats/token",
    lambda r: r.result.per_token_nats.change,
    "fine",
)
CI_NATS: Texts = Column(
    "ci95_nats",
    "t CI, nats/token (paper)",
    lambda r: r.result.per_token_nats.ci95,
    "fine_interval",
)
# group, adapter, and domain, stratum or language; None is the whole group
Part = tuple[str, str, str | None]
Tests = tuple[dict[Part, Change], dict[Part, float | None]]  # by part: its test, and Holm's p


def table_2(focus: Focus) -> Table:
    """Return the paper's Table 2: every domain, and each group combined."""
    tested, by_holm = _with_holm(focus.text_changes)
    ci95, p_corrected = _tested_columns(tested)
    columns: tuple[Texts, ...] = (
        GROUP,
        DOMAIN,
        ADAPTER,
        N,
        Column(
            "mean_logp_per_token_base_nats",
            "log P base, nats/token",
            lambda r: r.result.per_token_nats.before,
            "fine_number",
        ),
        Column(
            "mean_logp_per_token_nats",
            "log P adapter, nats/token",
            lambda r: r.result.per_token_nats.after,
            "fine_number",
        ),
        CHANGE_NATS,
        ci95,
        p_corrected,
        Column("p_holm", "p, Holm over domains", lambda r: by_holm.get(_key(r)), "p"),
        CI_NATS,
        Column(
            "mean_dlogp_per_token_bits",
            "change, bits/token",
            lambda r: r.result.per_token_bits.change,
            "fine",
        ),
        Column(
            "ci95_per_token_bits",
            "95 % CI, bits/token",
            lambda r: r.result.per_token_bits.ci95,
            "fine_interval",
        ),
        Column(
            "mean_dlogp_per_byte_bits",
            "change, bits/byte",
            lambda r: r.result.per_byte_bits.change,
            "fine",
        ),
        Column(
            "ci95_per_byte_bits",
            "95 % CI, bits/byte",
            lambda r: r.result.per_byte_bits.ci95,
            "fine_interval",
        ),
    )
    note = (
        "Mean log-probability per token of true continuations. 95 % CI and p, corrected: the "
        "deciding test, over sources and simultaneous over all adapters, greater; Holm: p, "
        "corrected also for the domains of the group. t CI, and those in bits: as in the paper, of "
        "one adapter alone with texts as independent"
    )
    title, rows = "True continuations (the paper's Table 2)", _text_rows(focus)
    return tabulate("table_2", title, columns, rows, note, adapters=focus.shown)


def _key(row: Placed[TextChange]) -> Part:
    return row.group, row.adapter or "", row.part


def _tested_columns(tested: Mapping[Part, Change]) -> tuple[Texts, Texts]:
    """Return the interval and p of the deciding test of each row."""
    return (
        Column(
            "ci95_simultaneous_nats",
            "95 % CI, nats/token",
            lambda r: c.ci95 if (c := tested.get(_key(r))) else None,
            "fine_interval",
        ),
        Column(
            "p_corrected",
            "p, corrected",
            lambda r: c.p_greater_corrected if (c := tested.get(_key(r))) else None,
            "p",
        ),
    )


def _with_holm(by_group: Mapping[str, Mapping[str, Mapping[str | None, Change]]]) -> Tests:
    """Return the deciding test of every part, and Holm's p over the parts of a group."""
    tested: dict[Part, Change] = {}
    by_holm: dict[Part, float | None] = {}
    for group, changes in by_group.items():
        for adapter, tests in changes.items():
            tested |= {(group, adapter, part): c for part, c in tests.items()}
            parts = [part for part in tests if part is not None]
            corrected = holm([tests[part].p_greater_corrected for part in parts])
            by_holm |= {(group, adapter, n): p for n, p in zip(parts, corrected, strict=True)}
    return tested, by_holm


def _text_rows(focus: Focus) -> list[Placed[TextChange]]:
    """Return the rows of Table 2; of the base itself where nothing else was scored."""
    continuations = focus.summary.continuations
    if all(len(models) == 1 for models in continuations.values()):
        return [
            Placed(_base_alone(models["base"]), group, "base")
            for group, models in continuations.items()
        ]
    rows: list[Placed[TextChange]] = []
    for group, models in continuations.items():
        for adapter, entry in models.items():
            if adapter == "base":
                continue
            domains: list[tuple[str | None, TextChange]] = list(entry.domains.items())
            if len(domains) != 1:
                domains.append((None, entry))
            elif domains[0][1].n < entry.n:
                domains = [(None, entry)]
            rows += [Placed(part, group, adapter, domain) for domain, part in domains]
    return rows


def _base_alone(entry: TextChange) -> TextChange:
    """Return what is known without an adapter: of the base compared with itself, the base."""

    def before(change: PairedChange) -> PairedChange:
        return PairedChange(change.before, None, None, None)

    return TextChange(
        n=entry.n,
        per_token_nats=before(entry.per_token_nats),
        per_token_bits=before(entry.per_token_bits),
        per_byte_bits=before(entry.per_byte_bits),
        entropy_per_token_nats=None if (h := entry.entropy_per_token_nats) is None else before(h),
    )


def strata_texts(focus: Focus) -> Table:
    """Return the change of continuations before and after the cutoff."""
    rows = [
        Placed(entry, group, adapter, name)
        for name, part in focus.summary.strata.items()
        for group, models in part.continuations.items()
        for adapter, entry in models.items()
        if adapter != "base"
    ]
    title = f"Continuations before and after {focus.summary.cutoff}"
    tests = _tested_strata(focus) if rows else ({}, {})
    return _part_table(focus, "strata_continuations", title, STRATUM, rows, tests, "strata")


def languages_texts(focus: Focus) -> Table:
    """Return the change of continuations by language, for every group of several languages."""
    rows: list[Placed[TextChange]] = [
        Placed(part, group, adapter, name)
        for group, models in focus.summary.continuations.items()
        for adapter, entry in models.items()
        for name, part in entry.languages.items()
        if adapter != "base"
    ]
    changes = {
        group: text_changes(focus.source.scores.texts[group], focus.summary.candidates, "lang")
        for group in dict.fromkeys(row.group for row in rows)
    }
    title = "Continuations by language"
    return _part_table(
        focus, "languages_continuations", title, LANGUAGE, rows, _with_holm(changes), "languages"
    )


def _part_table(
    focus: Focus,
    name: str,
    title: str,
    part: Texts,
    rows: Sequence[Placed[TextChange]],
    tests: Tests,
    parts: str,
) -> Table:
    tested, by_holm = tests
    ci95, p_corrected = _tested_columns(tested)
    p_holm: Texts = Column("p_holm", "p, Holm", lambda r: by_holm.get(_key(r)), "p")
    columns = (part, GROUP, ADAPTER, N, CHANGE_NATS, ci95, p_corrected, p_holm, CI_NATS)
    note = (
        f"95 % CI and p, corrected: the deciding test of each part, over sources and for all "
        f"adapters at once, greater; Holm: p, corrected also for the {parts} of the group"
    )
    return tabulate(name, title, columns, rows, note, adapters=focus.shown)


def _tested_strata(focus: Focus) -> Tests:
    """Return the deciding test of every group's strata, and Holm's p over them."""
    day = read_cutoff(focus.summary.cutoff or "")
    by_group: dict[str, dict[str, dict[str | None, Change]]] = {}
    for group, models in focus.source.scores.texts.items():
        own = by_group.setdefault(group, {})
        for name in STRATA:
            kept = {
                model: {i: s for i, s in texts.items() if stratum(s.published_at, day) == name}
                for model, texts in models.items()
            }
            tested = text_changes(kept, focus.summary.candidates) if kept[None] else {}
            for adapter, tests in tested.items():
                own.setdefault(adapter, {})[name] = tests[None]
    return _with_holm(by_group)
