"""Every table of the report, made of the summary's numbers."""

from __future__ import annotations

from collections.abc import Mapping

from cqa.report.focus import ADAPTER, DOMAIN, GROUP, STRATUM, Focus, N
from cqa.report.pair_tables import (
    accuracy,
    equivalence,
    interaction,
    more_tests,
    parts,
    table_1,
    variants,
)
from cqa.report.part_tables import domains, languages, strata
from cqa.report.robustness import contamination_table, specifications
from cqa.report.run_tables import choice, over_seeds, shrinkage
from cqa.report.tables import Column, Placed, Table, tabulate
from cqa.schema.comparison import BaseGroup, TextChange
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
UNKNOWN = PairedChange(None, None, None, None)  # of a quantity that the engine does not give


def all_tables(focus: Focus) -> list[Table]:
    """Return every table that has lines."""
    tables = [
        table_1(focus),
        more_tests(focus),
        interaction(focus),
        equivalence(focus),
        parts(focus),
        _entropy(focus),
        variants(focus),
        shrinkage(focus),
        over_seeds(focus),
        choice(focus),
        specifications(focus),
        contamination_table(focus),
        accuracy(focus),
        domains(focus),
        languages(focus),
        table_2(focus),
        strata(focus),
        _strata_texts(focus),
        _groups(focus),
    ]
    return [table for table in tables if table.lines]


def _entropy(focus: Focus) -> Table:
    rows = []
    for row in focus.comparisons():
        candidates, tokens = row.result.candidates, row.result.entropy_per_token
        quantities = {
            "H_cand(X|Y), nats/item": candidates.given_context.entropy_nats,
            "H_cand(X), nats/item": candidates.null.entropy_nats,
            "H(X|Y), nats/token": tokens.given_context if tokens else UNKNOWN,
            "H(X), nats/token": tokens.null if tokens else UNKNOWN,
        }
        rows += [Placed(q, row.group, row.adapter, name) for name, q in quantities.items()]
    for group, models in focus.summary.continuations.items():
        for adapter, entry in models.items():
            if adapter != "base":
                name = "H(X|Y) of true continuations, nats/token"
                rows.append(Placed(entry.entropy_per_token_nats or UNKNOWN, group, adapter, name))
    columns: tuple[Column[Placed[PairedChange]], ...] = (
        GROUP,
        ADAPTER,
        Column("quantity", "entropy", lambda r: r.part, "text"),
        Column("before", "base", lambda r: r.result.before, "fine_number"),
        Column("after", "under adapter", lambda r: r.result.after, "fine_number"),
        Column("change", "change", lambda r: r.result.change, "fine"),
        Column("ci95", "95 % CI", lambda r: r.result.ci95, "fine_interval"),
    )
    title = "Entropy before and after"
    note = "CI: t, items as independent; the verdict on H(X|Y) is by the deciding test"
    return tabulate("entropy", title, columns, rows, note, adapters=focus.shown)


def table_2(focus: Focus) -> Table:
    """Return the paper's Table 2: every domain, and each group combined."""
    tested, by_holm = _tested(focus)
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


Part = tuple[str, str, str]  # group, adapter, domain or "all"


def _key(row: Placed[TextChange]) -> Part:
    return row.group, row.adapter or "", row.part or ""


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


def _tested(focus: Focus) -> tuple[dict[Part, Change], dict[Part, float | None]]:
    """Return the deciding test of every row, and Holm's p of the domains of a group."""
    tested: dict[Part, Change] = {}
    by_holm: dict[Part, float | None] = {}
    for group, changes in focus.text_changes.items():
        for adapter, tests in changes.items():
            tested |= {(group, adapter, domain or "all"): c for domain, c in tests.items()}
            domains = [domain for domain in tests if domain is not None]
            corrected = holm([tests[domain].p_greater_corrected for domain in domains])
            by_holm |= {(group, adapter, d): p for d, p in zip(domains, corrected, strict=True)}
    return tested, by_holm


def _text_rows(focus: Focus) -> list[Placed[TextChange]]:
    """Return the rows of Table 2; of the base itself where nothing else was scored."""
    continuations = focus.summary.continuations
    if all(len(models) == 1 for models in continuations.values()):
        return [
            Placed(_base_alone(models["base"]), group, "base", "all")
            for group, models in continuations.items()
        ]
    rows: list[Placed[TextChange]] = []
    for group, models in continuations.items():
        for adapter, entry in models.items():
            if adapter == "base":
                continue
            domains: list[tuple[str, TextChange]] = list(entry.domains.items())
            if len(domains) != 1:
                domains.append(("all", entry))
            elif domains[0][1].n < entry.n:
                domains = [("all", entry)]
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


def _strata_texts(focus: Focus) -> Table:
    rows = [
        Placed(entry, group, adapter, name)
        for name, part in focus.summary.strata.items()
        for group, models in part.continuations.items()
        for adapter, entry in models.items()
        if adapter != "base"
    ]
    tested, by_holm = _tested_strata(focus) if rows else ({}, {})
    ci95, p_corrected = _tested_columns(tested)
    columns: tuple[Texts, ...] = (
        STRATUM,
        GROUP,
        ADAPTER,
        N,
        CHANGE_NATS,
        ci95,
        p_corrected,
        Column("p_holm", "p, Holm", lambda r: by_holm.get(_key(r)), "p"),
        CI_NATS,
    )
    note = (
        "95 % CI and p, corrected: the deciding test of each stratum, over sources and for all "
        "adapters at once, greater; Holm: p, corrected also for the strata of the group"
    )
    title = f"Continuations before and after {focus.summary.cutoff}"
    return tabulate("strata_continuations", title, columns, rows, note, adapters=focus.shown)


def _tested_strata(focus: Focus) -> tuple[dict[Part, Change], dict[Part, float | None]]:
    """Return the deciding test of every group's strata, and Holm's p over them."""
    day = read_cutoff(focus.summary.cutoff or "")
    tested: dict[Part, Change] = {}
    by_holm: dict[Part, float | None] = {}
    for group, models in focus.source.scores.texts.items():
        own: dict[str, dict[str, Change]] = {}  # by adapter and stratum
        for name in STRATA:
            kept = {
                model: {i: s for i, s in texts.items() if stratum(s.published_at, day) == name}
                for model, texts in models.items()
            }
            for adapter, tests in text_changes(kept).items() if kept[None] else ():
                own.setdefault(adapter, {})[name] = tests[None]
        for adapter, changes in own.items():
            corrected = holm([change.p_greater_corrected for change in changes.values()])
            tested |= {(group, adapter, name): change for name, change in changes.items()}
            by_holm |= {(group, adapter, n): p for n, p in zip(changes, corrected, strict=True)}
    return tested, by_holm


def _groups(focus: Focus) -> Table:
    columns: tuple[Column[Placed[BaseGroup]], ...] = (
        GROUP,
        Column("n", "n", lambda r: r.result.n, "count"),
        Column("n_sources", "named sources", lambda r: r.result.n_sources, "count"),
        Column("languages", "languages", _languages, "text"),
        Column("mean_delta_i", "dI base, nats", lambda r: r.result.mean_delta_i_nats, "number"),
        Column("sign_accuracy", "dI > 0, base", lambda r: r.result.sign_accuracy, "share"),
        Column(
            "detectable",
            "detectable d_z at 80 %",
            lambda r: r.result.power.detectable_d_z_at_80,
            "number",
        ),
        Column("power", "power at d_z = 0.5", lambda r: r.result.power.at_d_z.medium, "share"),
        Column(
            "tokens_right",
            "right, tokens",
            lambda r: r.result.lengths.n_tokens.mean_right,
            "number",
        ),
        Column(
            "tokens_wrong",
            "wrong, tokens",
            lambda r: r.result.lengths.n_tokens.mean_wrong,
            "number",
        ),
        Column(
            "bytes_right", "right, bytes", lambda r: r.result.lengths.n_bytes.mean_right, "number"
        ),
        Column(
            "bytes_wrong", "wrong, bytes", lambda r: r.result.lengths.n_bytes.mean_wrong, "number"
        ),
        Column(
            "merges",
            "boundary merges",
            lambda r: r.result.n_boundary_merge / r.result.n,
            "share",
        ),
    )
    note = "Power of the one-sided paired t-test at 5 %; lengths are means over options"
    rows = [Placed(base, group) for group, base in focus.summary.base.items()]
    return tabulate("groups", "The items", columns, rows, note)


def _languages(row: Placed[BaseGroup]) -> str:
    return ", ".join(row.result.languages)
