"""Every table of the report, made of the summary's numbers."""

from __future__ import annotations

from cqa.report.focus import ADAPTER, GROUP, Focus
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
from cqa.report.text_tables import languages_texts, strata_texts, table_2
from cqa.schema.comparison import BaseGroup
from cqa.schema.result import PairedChange

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
        strata_texts(focus),
        languages_texts(focus),
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
            lambda r: r.result.n_boundary_mismatch / r.result.n,
            "share",
        ),
    )
    note = "Power of the one-sided paired t-test at 5 %; lengths are means over options"
    rows = [Placed(base, group) for group, base in focus.summary.base.items()]
    return tabulate("groups", "The items", columns, rows, note)


def _languages(row: Placed[BaseGroup]) -> str:
    return ", ".join(row.result.languages)
