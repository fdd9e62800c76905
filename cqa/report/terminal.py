"""The summary as text: one table per group, units in the headings."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from cqa.escape import for_terminal
from cqa.schema.comparison import BaseGroup, Comparison, TextChange, TextComparison
from cqa.schema.result import Interval
from cqa.schema.summary import ScoreSummary, StratumCounts, Summary
from cqa.schema.verdict import GroupFamily
from cqa.text import aligned, counted, interval, named, p_value, part_name, rank_sum, signed

ITEM_HEADINGS = [
    "model", "dI nats", "sign acc.", "ddI nats", "95 % CI", "d_cond", "d_prior", "W+", "p", "d_z",
]  # fmt: skip
TEXT_HEADINGS = ["model", "texts", "n", "log P nats/token", "change", "95 % CI", "bits/byte"]


def summary_text(scored: ScoreSummary) -> str:
    """Return Table 1 for every group of pairs, and Table 2 for every group of continuations."""
    summary = scored.statistics
    parts = [
        _items_table(group, summary.base[group], models, summary.families.get(group))
        for group, models in summary.groups.items()
    ]
    parts += [_texts_table(group, models) for group, models in summary.continuations.items()]
    caveats = list(_caveats(scored))
    if caveats:
        parts.append("\n".join(map(for_terminal, caveats)))
    if any(summary.groups.values()):
        parts.append(
            "dI = I(good) - I(bad); ddI = dI of the adapter - dI of the base = d_cond - d_prior.\n"
            "95 % CI: of the deciding test, simultaneous over all adapters.\n"
            f"W+ and p: the paper's signed-rank test, one-sided, {_methods(summary)}."
        )
    return "\n\n".join(parts)


def _methods(summary: Summary) -> str:
    """Say where p is exact and where it is not."""
    found = {
        group: next(iter(models.values())).wilcoxon.method
        for group, models in summary.groups.items()
        if models
    }
    if len(set(found.values())) == 1:
        return next(iter(found.values()))
    return ", ".join(f"{group}: {method}" for group, method in found.items())


def _caveats(scored: ScoreSummary) -> Iterator[str]:
    """Say what the deciding tests say, and what a reader should be wary of."""
    summary = scored.statistics
    yield from _verdict(summary)
    if summary.roles.caveat:
        yield summary.roles.caveat
    if scored.n_too_long:
        counts = ", ".join(f"{n} {group}" for group, n in scored.n_too_long.items())
        yield f"left out, over the model's positions (--too-long drop): {counts}"
    if scored.n_unscored:
        counts = ", ".join(f"{n} {group}" for group, n in scored.n_unscored.items())
        yield f"incomplete: left out, since they could not be scored: {counts} (meta.json says why)"
    if scored.n_rejected:
        yield f"left out, malformed or not to be encoded (--on-error skip): {scored.n_rejected}"
    if isinstance(n := summary.n_by_date, StratumCounts):
        yield (
            f"published by {summary.cutoff}: {n.before}, after it: {n.after}, unknown: "
            f"{n.unknown}; pooled here, apart in summary.json and in the report"
        )


def _verdict(summary: Summary) -> Iterator[str]:
    yield summary.verdict.headline
    for finding in summary.verdict.findings:
        p = "" if finding.p is None else f"p {_equals(finding.p)}; "
        head = f"{finding.mark:<9}  {finding.name}, {finding.group}"
        of = f"{finding.n_items} items, {finding.n_sources} sources"
        yield f"  {head}: {p}{finding.reason} ({of})"
    for group, family in summary.families.items():
        for adapter, n in family.incomplete.items():
            yield f"{group}: {adapter} has {n} of {family.n_items} items; no test is of it"


def _items_table(
    group: str, base: BaseGroup, models: Mapping[str, Comparison], family: GroupFamily | None
) -> str:
    rows = [["base", signed(base.mean_delta_i_nats), _share(base.sign_accuracy)]]
    rows += [
        [
            name,
            signed(entry.delta_i_nats.after),
            _share(entry.signs.sign_accuracy),
            signed(entry.delta_i_nats.change),
            interval(_simultaneous(family, name)),
            signed(entry.mean_d_cond_nats),
            signed(entry.mean_d_prior_nats),
            rank_sum(entry.wilcoxon.w_plus),
            _p(entry.wilcoxon.p),
            signed(entry.effect.d_z),
        ]
        for name, entry in models.items()
    ]
    return f"{named(group)}: {counted(base.n, 'item')}\n" + aligned(ITEM_HEADINGS, rows)


def _simultaneous(family: GroupFamily | None, adapter: str) -> Interval | None:
    """Return the interval of the deciding test, if the adapter is part of it."""
    change = family.changes.get(adapter) if family else None
    return change.ci95_nats if change else None


def _texts_table(group: str, models: Mapping[str, TextComparison]) -> str:
    rows = []
    for name, entry in models.items():
        parts: list[tuple[str | None, TextChange]] = [(None, entry)]
        if len(entry.domains) > 1:
            parts += entry.domains.items()
        for domain, part in parts:
            nats, bits = part.per_token_nats, part.per_byte_bits
            moved = ["", ""] if name == "base" else [signed(nats.change), interval(nats.ci95)]
            cells = [name, part_name(domain), str(part.n), _number(nats.after), *moved]
            rows.append([*cells, _number(bits.after and -bits.after)])
    return f"{named(group)}: continuations\n" + aligned(TEXT_HEADINGS, rows)


def _p(value: float) -> str:
    return p_value(value).replace(" ", "")


def _equals(value: float) -> str:
    text = p_value(value)
    return text if text.startswith("<") else f"= {text}"


def _share(value: float | None) -> str:
    return "n/a" if value is None else f"{100 * value:.0f} %"


def _number(value: float | None) -> str:
    return "n/a" if value is None else f"{value:.3f}"
