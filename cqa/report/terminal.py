"""The summary as text: one table per group, units in the headings."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from cqa.schema.comparison import BaseGroup, Comparison, TextChange, TextComparison
from cqa.schema.summary import ScoreSummary, StratumCounts, Summary
from cqa.text import aligned, counted, interval, p_value, rank_sum, signed

ITEM_HEADINGS = [
    "model", "dI nats", "sign acc.", "ddI nats", "95 % CI", "d_cond", "d_prior", "W+", "p", "d_z",
]  # fmt: skip
TEXT_HEADINGS = ["model", "texts", "n", "log P nats/token", "change", "95 % CI", "bits/byte"]


def summary_text(scored: ScoreSummary) -> str:
    """Return Table 1 for every group of pairs, and Table 2 for every group of continuations."""
    summary = scored.statistics
    parts = [
        _items_table(group, summary.base[group], models) for group, models in summary.groups.items()
    ]
    parts += [_texts_table(group, models) for group, models in summary.continuations.items()]
    caveats = list(_caveats(scored))
    if caveats:
        parts.append("\n".join(caveats))
    if any(summary.groups.values()):
        parts.append(
            "dI = I(good) - I(bad); ddI = dI of the adapter - dI of the base = d_cond - d_prior;\n"
            f"p is one-sided (greater), signed-rank distribution, {_methods(summary)}; intervals "
            "are t, 95 %."
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
    """Say what the choice of an epoch costs, and whether the groups really differ."""
    summary = scored.statistics
    yield from _choices(summary)
    yield from _interactions(summary)
    if summary.roles.caveat:
        yield summary.roles.caveat
    if scored.n_too_long:
        counts = ", ".join(f"{n} {group}" for group, n in scored.n_too_long.items())
        yield f"left out, over the model's positions (--too-long drop): {counts}"
    if isinstance(n := summary.n_by_date, StratumCounts):
        yield (
            f"published by {summary.cutoff}: {n.before}, after it: {n.after}, unknown: "
            f"{n.unknown}; pooled here, apart in summary.json and in the report"
        )


def _choices(summary: Summary) -> Iterator[str]:
    primary = summary.roles.primary
    for group, selection in summary.selection.items():
        if primary in summary.selection and group != primary:
            continue
        chosen, votes = selection.chosen, selection.chosen_with_one_item_left_out
        p, corrected = summary.groups[group][chosen].wilcoxon.p, selection.p_corrected[chosen]
        yield (
            f"{group}: {chosen} has the smallest p (p {_equals(p)}); corrected for having looked "
            f"at {selection.n_adapters} adapters, p {_equals(corrected)} (max-T); still chosen in "
            f"{votes[chosen]} of {summary.base[group].n} when one item is left out"
        )


def _interactions(summary: Summary) -> Iterator[str]:
    roles, several = summary.roles, len(summary.interaction) > 1
    for name, test in summary.interaction.items():
        welch = test.welch
        looked = f", {_p(test.p_corrected)} corrected (max-T)" if several else ""
        if welch.ci95 is not None and welch.p_two_sided is not None:
            yield (
                f"{roles.primary} - {roles.control}, {name}: {signed(welch.difference)} nats "
                f"{interval(welch.ci95)}, two-sided p {_equals(welch.p_two_sided)} (Welch), "
                f"{_p(test.p_permutation)} (permutation)" + looked
            )


def _items_table(group: str, base: BaseGroup, models: Mapping[str, Comparison]) -> str:
    rows = [["base", signed(base.mean_delta_i_nats), _share(base.sign_accuracy)]]
    rows += [
        [
            name,
            signed(entry.delta_i_nats.after),
            _share(entry.signs.sign_accuracy),
            signed(entry.delta_i_nats.change),
            interval(entry.delta_i_nats.ci95),
            signed(entry.mean_d_cond_nats),
            signed(entry.mean_d_prior_nats),
            rank_sum(entry.wilcoxon.w_plus),
            _p(entry.wilcoxon.p),
            signed(entry.effect.d_z),
        ]
        for name, entry in models.items()
    ]
    return f"{group}: {counted(base.n, 'item')}\n" + aligned(ITEM_HEADINGS, rows)


def _texts_table(group: str, models: Mapping[str, TextComparison]) -> str:
    rows = []
    for name, entry in models.items():
        parts: list[tuple[str, TextChange]] = [("all", entry)]
        if len(entry.domains) > 1:
            parts += entry.domains.items()
        for domain, part in parts:
            nats, bits = part.per_token_nats, part.per_byte_bits
            moved = ["", ""] if name == "base" else [signed(nats.change), interval(nats.ci95)]
            cells = [name, domain, str(part.n), _number(nats.after), *moved]
            rows.append([*cells, _number(bits.after and -bits.after)])
    return f"{group}: continuations\n" + aligned(TEXT_HEADINGS, rows)


def _p(value: float) -> str:
    return p_value(value).replace(" ", "")


def _equals(value: float) -> str:
    text = p_value(value)
    return text if text.startswith("<") else f"= {text}"


def _share(value: float | None) -> str:
    return "n/a" if value is None else f"{100 * value:.0f} %"


def _number(value: float | None) -> str:
    return "n/a" if value is None else f"{value:.3f}"
