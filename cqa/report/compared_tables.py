"""The tables of a comparison, for files, page and terminal."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple

from cqa.escape import for_markdown
from cqa.report.tables import Column, Placed, Table, shown_cells, tabulate, to_markdown
from cqa.schema.compared import (
    READINGS,
    Agreement,
    Comparison,
    Contrast,
    Missing,
    Ranking,
    System,
    SystemResult,
    TextsResult,
)
from cqa.schema.result import Interval
from cqa.text import aligned, counted, named

NOTE = (
    "On the items that all models have. Share: softmax over the options, of the right one; its "
    "95 % CI is over sources. Permuted: the same of an option drawn at random, which is chance "
    "where all is well. With fewer than ten sources no interval is to be trusted, and none is given"
)


class RankingRow(NamedTuple):
    """One model under one reading."""

    system: SystemResult
    reading: str
    ranking: Ranking


def _group_column(key: str = "group") -> Column[Placed[Any]]:
    return Column(key, "group", lambda r: r.group, "text")


RANKINGS: tuple[Column[Placed[RankingRow]], ...] = (
    _group_column(),
    Column("model", "model", lambda r: r.result.system.system, "text"),
    Column("reading", "by", lambda r: r.result.reading, "text"),
    Column("mean_rank_prob", "share of right",
           lambda r: r.result.ranking.mean_rank_prob, "fine_number"),
    Column("ci95", "95 % CI", lambda r: r.result.ranking.ci95, "number_interval"),
    Column("accuracy", "accuracy", lambda r: r.result.ranking.accuracy, "share"),
    Column("permuted_mean_rank_prob", "permuted",
           lambda r: r.result.ranking.permuted_mean_rank_prob, "fine_number"),
    Column("permuted_ci95", "95 % CI", lambda r: r.result.ranking.permuted_ci95, "number_interval"),
    Column("chance", "chance", lambda r: r.result.ranking.chance, "fine_number"),
    Column("bits_per_byte", "bits/byte of right",
           lambda r: r.result.system.bits_per_byte, "fine_number"),
)  # fmt: skip
CONTRASTS: tuple[Column[Placed[Contrast]], ...] = (
    _group_column(),
    Column("model", "model", lambda r: r.result.system, "text"),
    Column("reading", "by", lambda r: r.result.reading, "text"),
    Column("n_items", "items", lambda r: r.result.n_items, "count"),
    Column("n_sources", "sources", lambda r: r.result.n_sources, "count"),
    Column("n_only_model", "of it alone", lambda r: r.result.n_only_system, "count"),
    Column("n_only_reference", "of the reference alone",
           lambda r: r.result.n_only_reference, "count"),
    Column("rank_prob_difference", "share", lambda r: r.result.rank_prob_difference, "fine"),
    Column("ci95", "95 % CI", lambda r: r.result.ci95, "fine_interval"),
    Column("p", "p", lambda r: r.result.p, "p"),
    Column("p_holm", "p, Holm", lambda r: r.result.p_holm, "p"),
    Column("accuracy_difference", "accuracy", lambda r: r.result.accuracy_difference, "fine"),
    Column("mcnemar_p", "p, McNemar", lambda r: r.result.mcnemar_p, "p"),
    Column("mcnemar_p_holm", "p, Holm", lambda r: r.result.mcnemar_p_holm, "p"),
)  # fmt: skip
TEXTS: tuple[Column[Placed[TextsResult]], ...] = (
    _group_column(),
    Column("model", "model", lambda r: r.result.system, "text"),
    Column("n_texts", "texts", lambda r: r.result.n_texts, "count"),
    Column("bits_per_byte", "bits/byte", lambda r: r.result.bits_per_byte, "fine_number"),
)
_SAME = {True: "yes", False: "no", None: "n/a: a server has them"}
AGREEMENTS: tuple[Column[Placed[Agreement]], ...] = (
    Column("model", "model", lambda r: r.result.system, "text"),
    Column("other", "other", lambda r: r.result.other, "text"),
    Column("same_model", "same weights", lambda r: _SAME[r.result.same_model], "text"),
    Column("n_options", "options", lambda r: r.result.n_options, "count"),
    Column("largest_difference_nats", "largest difference, nats",
           lambda r: r.result.largest_difference_nats, "small"),
)  # fmt: skip
MISSING: tuple[Column[Placed[Missing]], ...] = (
    _group_column(),
    Column("model", "model", lambda r: r.result.system, "text"),
    Column("id", "id", lambda r: r.result.id, "text"),
    Column("reason", "reason", lambda r: r.result.reason, "text"),
)


def _template(system: System) -> str | None:
    if system.tokenizer_digest is None:
        return None
    return (system.template_digest or "plain")[:12]


def _given(reading: str, row: Placed[System]) -> str:
    """Say whether a model gives a reading, and why not."""
    if reading in row.result.readings:
        return "yes"
    is_chat = row.result.engine == "chat"
    return "n/a: a chat scores no text" if is_chat else "n/a: not asked for letters"


CAPABILITIES: tuple[Column[Placed[System]], ...] = (
    Column("model", "model", lambda r: r.result.name, "text"),
    Column("base", "base", lambda r: r.result.model, "text"),
    Column("engine", "engine", lambda r: r.result.engine, "text"),
    Column("dtype", "dtype", lambda r: r.result.dtype, "text"),
    Column("batch_invariant", "same bits in any batch",
           lambda r: "yes" if r.result.batch_invariant else "not promised", "text"),
    Column("template", "template", lambda r: _template(r.result), "text"),
    *(
        Column(reading, reading, partial(_given, reading), "text")
        for reading in READINGS
    ),
    Column("bits_per_byte", "bits/byte", partial(_given, "sum"), "text"),
)  # fmt: skip


def all_tables(found: Comparison) -> list[Table]:
    """Return the tables; one without a line is left out."""
    rankings = [
        Placed(RankingRow(system, reading, system.rankings[reading]), group)
        for group, result in found.groups.items()
        for reading in READINGS
        for system in result.systems
        if reading in system.rankings
    ]
    contrasts = [Placed(c, group) for group, r in found.groups.items() for c in r.contrasts]
    less = f"Less {found.reference}, pair by pair, on the items that both have"
    tables = [
        tabulate("systems", "Models", CAPABILITIES, [Placed(s, "") for s in found.systems]),
        tabulate("rankings", "How the options are ranked", RANKINGS, rankings, NOTE),
        tabulate(
            "contrasts", less, CONTRASTS, contrasts,
            "p of the share: sign flips and bootstrap-t over sources, two-sided. McNemar's takes "
            "items as independent. Holm's are over the models of a reading",
        ),
        tabulate(
            "continuations", "True continuations", TEXTS,
            [Placed(t, t.group) for t in found.continuations],
        ),
        tabulate(
            "agreements", "Log-probabilities of two folders with one tokenizer", AGREEMENTS,
            [Placed(a, "") for a in found.agreements],
            "Of the same weights, the difference is what engine, dtype and quantisation make",
        ),
        tabulate(
            "missing", "Items that a model lacks", MISSING,
            [Placed(m, m.group) for m in found.missing],
        ),
    ]  # fmt: skip
    return [table for table in tables if table.lines]


def caveats(found: Comparison) -> Iterator[str]:
    """Yield what would mislead a reader of the numbers alone."""
    scoring = [system for system in found.systems if system.tokenizer_digest is not None]
    if 0 < len(scoring) < len(found.systems):
        yield (
            "A chat that chose letters and a model that scores texts have no reading in common: "
            "their accuracies stand side by side, and no difference is tested."
        )
    if len({system.template_digest for system in scoring}) > 1:
        yield "The models were asked with different templates."
    if len({system.tokenizer_digest for system in scoring}) > 1:
        yield (
            "The tokenizers differ: log-probabilities of a text are comparable, and so are shares; "
            "per token they are not."
        )
    for group, result in found.groups.items():
        for system in result.systems:
            for reading, ranking in system.rankings.items():
                if not interval_holds(ranking.permuted_ci95, ranking.chance):
                    yield (
                        f"{named(group)}, {system.system} by {reading}: an option drawn at random "
                        f"has a share of {ranking.permuted_mean_rank_prob:.3f}, not "
                        f"{ranking.chance:.3f}: chance alone, one time in twenty, or a fault."
                    )
    for name, n in Counter(item.system for item in found.missing).items():
        yield f"{name} lacks {counted(n, 'item')} that another model has; none is pooled."


def interval_holds(interval: Interval | None, value: float) -> bool:
    """Whether an interval holds a value; one that is not there holds all."""
    return interval is None or interval[0] <= value <= interval[1]


def markdown_page(found: Comparison, tables: Sequence[Table], has_figure: bool) -> str:
    """Return the comparison as Markdown."""
    parts = ["# Comparison", "\n".join(f"* {for_markdown(text)}" for text in caveats(found))]
    if has_figure:
        parts.append("![Share of the right option](figures/rank_prob.svg)")
    for table in tables:
        parts += [
            f"## {for_markdown(table.title)}",
            to_markdown(table),
            for_markdown(table.full_note),
        ]
    return "\n\n".join(part for part in parts if part) + "\n"


def compare_text(found: Comparison) -> str:
    """Return the comparison as text for a terminal."""
    parts = []
    for table in all_tables(found):
        if table.name not in ("rankings", "contrasts", "continuations", "agreements"):
            continue
        rows = [shown_cells(table, line) for line in table.shown_lines]
        head = [column.heading for column in table.columns]
        parts.append(f"{table.title}\n" + aligned(head, rows))
    parts += [f"note: {text}" for text in caveats(found)]
    return "\n\n".join(parts)
