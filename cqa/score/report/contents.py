"""The summary's numbers as tables."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from cqa.score.compare import READINGS
from cqa.score.report.source import Source
from cqa.score.report.tables import Column, Table

Row = dict[str, Any]


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


GROUP, ADAPTER = Column("group", "group", "text"), Column("adapter", "adapter", "text")
N = Column("n", "n", "count")


def all_tables(view: View) -> list[Table]:
    """Return every table that has rows."""
    tables = [
        table_1(view),
        _more_tests(view),
        _interaction(view),
        _equivalence(view),
        _parts(view),
        _entropy(view),
        _readings(view),
        _accuracy(view),
        table_2(view),
        _strata(view),
        _strata_texts(view),
        _groups(view),
    ]
    return [table for table in tables if table.rows]


def table_1(view: View) -> Table:
    """Return the paper's Table 1, with what it lacks."""
    selection = view.summary["selection"]
    rows = [
        {
            "group": group,
            "adapter": adapter,
            **entry,
            "w_plus": entry["wilcoxon"]["w_plus"],
            "p": entry["wilcoxon"]["p"],
            "p_corrected": selection.get(group, {}).get("p_corrected", {}).get(adapter),
        }
        for group, adapter, entry in view.entries()
    ]
    rough = sorted({g for g, _, e in view.entries() if e["wilcoxon"]["method"] != "exact"})
    columns = (
        GROUP,
        ADAPTER,
        N,
        Column("mean_delta_i_base_nats", "dI base, nats", "number"),
        Column("mean_delta_i_nats", "dI adapter, nats", "number"),
        Column("mean_ddi_nats", "ddI, nats"),
        Column("ci95_nats", "95 % CI, nats", "interval"),
        Column("w_plus", "W+", "w"),
        Column("p", "p, one-sided", "p"),
        Column("p_corrected", "p, max-T", "p"),
        Column("d_z", "d_z"),
        Column("d_z_ci95", "95 % CI of d_z", "interval"),
    )
    note = (
        "ddI = dI under the adapter − dI under the base, mean over items. p: signed-rank test, "
        "greater; p, max-T: sign-flip test of the mean, corrected for all adapters of the group. "
        "CI: t, of one adapter alone; of d_z: noncentral t"
        + (f". Normal approximation of p: {', '.join(rough)}" if rough else "")
    )
    return Table(
        "table_1",
        "Change of conditional mutual information (the paper's Table 1)",
        columns,
        rows,
        note,
    )


def _more_tests(view: View) -> Table:
    rows = []
    for group, adapter, entry in view.entries():
        by_source = entry["by_source"] or {}
        sources = by_source.get("wilcoxon_of_source_means", {})
        rows.append(
            {
                "group": group,
                "adapter": adapter,
                **entry,
                "p_t": entry["t"]["p_one_sided"],
                "p_sign": entry["sign_test"]["p"],
                "n_sources": by_source.get("n_sources"),
                "ci95_by_source": by_source.get("bca95_nats"),
                "p_by_source": sources.get("p"),
            }
        )
    columns = (
        GROUP,
        ADAPTER,
        Column("p_t", "t-test, p", "p"),
        Column("p_sign", "sign test, p", "p"),
        Column("bca95_nats", "BCa 95 % CI, nats", "interval"),
        Column("n_sources", "clusters", "count"),
        Column("ci95_by_source", "BCa by source, nats", "interval"),
        Column("p_by_source", "source means, p", "p"),
        Column("hedges_g_z", "Hedges g_z"),
        Column("d_av", "d_av"),
        Column("sign_accuracy_base", "dI > 0, base", "share"),
        Column("sign_accuracy", "dI > 0, adapter", "share"),
        Column("n_sign_gained", "gained", "count"),
        Column("n_sign_lost", "lost", "count"),
    )
    note = (
        "All p are one-sided (greater). By source: whole sources are resampled, or averaged; an "
        "item without source_id is a cluster of its own"
    )
    return Table(
        "other_tests", "Other tests and effect sizes", columns, rows, note, _of_shown(view)
    )


def _of_shown(view: View) -> Any:
    return lambda row: row["adapter"] == view.shown


def _interaction(view: View) -> Table:
    rows = [{"adapter": adapter, **test} for adapter, test in view.summary["interaction"].items()]
    columns = (
        ADAPTER,
        Column("difference", "literary − factual, nats"),
        Column("ci95", "95 % CI, nats", "interval"),
        Column("t", "Welch t", "number"),
        Column("df", "df", "number"),
        Column("p_two_sided", "p, two-sided", "p"),
        Column("p_permutation", "p, permutation", "p"),
        Column("p_corrected", "p, max-T", "p"),
    )
    note = (
        "Welch's t on ddI, and a studentised permutation test, both two-sided and of one row "
        "alone; p, max-T: the permutation test corrected for all rows, which the verdict uses"
    )
    return Table("interaction", "Literary minus factual", columns, rows, note)


def _equivalence(view: View) -> Table:
    rows = [
        {"group": group, "adapter": adapter, "mean": entry["mean_ddi_nats"], **entry["equivalence"]}
        for group, adapter, entry in view.entries()
    ]
    columns = (
        GROUP,
        ADAPTER,
        Column("mean", "ddI, nats"),
        Column("ci90_nats", "90 % CI, nats", "interval"),
        Column("margin_nats", "margin ±, nats", "number"),
        Column("margin_rule", "margin from", "text"),
        Column("p", "TOST p", "p"),
        Column("smallest_margin_nats", "smallest margin at p = 0.05, nats", "number"),
    )
    note = (
        "A small p shows that the mean change is nearer to 0 than the margin. It is not corrected "
        "for several adapters: the shown one was not chosen by these tests, and “small under "
        "every adapter” needs every p to be small"
    )
    return Table("equivalence", "Is a change small?", columns, rows, note, _of_shown(view))


def _parts(view: View) -> Table:
    rows = [{"group": g, "adapter": a, **entry} for g, a, entry in view.entries()]
    columns = (
        GROUP,
        ADAPTER,
        Column("mean_ddi_nats", "ddI, nats"),
        Column("mean_d_cond_nats", "d_cond, nats"),
        Column("ci95_d_cond_nats", "95 % CI, nats", "interval"),
        Column("mean_d_prior_nats", "d_prior, nats"),
        Column("ci95_d_prior_nats", "95 % CI, nats", "interval"),
    )
    note = "ddI = d_cond − d_prior: the change after the context minus the change after ∅"
    return Table("parts", "Conditional and prior part", columns, rows, note, _of_shown(view))


def _entropy(view: View) -> Table:
    rows = []
    for group, adapter, entry in view.entries():
        candidates, tokens = entry["candidates"], entry["entropy_per_token"]
        quantities = {
            "H_cand(X|Y), nats/item": candidates["given_context"]["entropy_nats"],
            "H_cand(X), nats/item": candidates["null"]["entropy_nats"],
            "H(X|Y), nats/token": tokens["given_context"],
            "H(X), nats/token": tokens["null"],
        }
        for name, values in quantities.items():
            rows.append({"group": group, "adapter": adapter, "quantity": name, **values})
    for group, models in view.summary["continuations"].items():
        for adapter, entry in models.items():
            if adapter != "base":
                name = "H(X|Y) of true continuations, nats/token"
                values = entry["entropy_per_token_nats"]
                rows.append({"group": group, "adapter": adapter, "quantity": name, **values})
    columns = (
        GROUP,
        ADAPTER,
        Column("quantity", "entropy", "text"),
        Column("before", "base", "fine_number"),
        Column("after", "under adapter", "fine_number"),
        Column("change", "change", "fine"),
        Column("ci95", "95 % CI", "fine_interval"),
    )
    return Table("entropy", "Entropy before and after", columns, rows, "", _of_shown(view))


def _readings(view: View) -> Table:
    rows = []
    for group, adapter, entry in view.entries():
        headline = {
            "reading": "sum over tokens, ∅ = null token, nats (headline)",
            "mean_ddi": entry["mean_ddi_nats"],
            "ci95": entry["ci95_nats"],
            "p": entry["wilcoxon"]["p"],
            "d_z": entry["d_z"],
        }
        others = [{"reading": READINGS[name], **r} for name, r in entry["readings"].items()]
        rows += [{"group": group, "adapter": adapter, **row} for row in (headline, *others)]
    columns = (
        GROUP,
        ADAPTER,
        Column("reading", "reading of dI", "text"),
        Column("mean_ddi", "ddI", "fine"),
        Column("ci95", "95 % CI", "fine_interval"),
        Column("p", "p, one-sided", "p"),
        Column("d_z", "d_z"),
    )
    note = "The same items read in other ways; a finding that holds in one reading only is weak"
    return Table("readings", "Other readings of dI", columns, rows, note, _of_shown(view))


def _accuracy(view: View) -> Table:
    rows = []
    for group, base in view.summary["base"].items():
        chance = {"group": group, "n": base["n"], "chance": base["accuracy_by_chance"]}
        models = {"base": base["accuracy"]} | {
            adapter: entry["accuracy"] for adapter, entry in view.summary["groups"][group].items()
        }
        for adapter, found in models.items():
            shares = {name: value["share"] for name, value in found.items()}
            bounds = {f"{name}_ci95": value["ci95"] for name, value in found.items()}
            rows.append({**chance, "adapter": adapter, **shares, **bounds})
    columns = (
        GROUP,
        ADAPTER,
        N,
        Column("chance", "by chance", "share"),
        Column("sum", "largest S(x|y)", "share"),
        Column("sum_ci95", "95 % CI", "shares"),
        Column("per_byte", "largest S(x|y) / byte", "share"),
        Column("per_byte_ci95", "95 % CI", "shares"),
    )
    note = (
        "Share of items whose right option comes first among its item's options: lm-eval's acc and "
        "acc_bytes where options are written alike; Wilson intervals. Accuracy and dI answer "
        "different questions: the first may be won by the prior alone"
    )

    def shown(row: Row) -> bool:
        return row["adapter"] in (view.shown, "base")

    return Table("accuracy", "How often the right option is first", columns, rows, note, shown)


def table_2(view: View) -> Table:
    """Return the paper's Table 2: every domain, and each group combined."""
    rows = []
    for group, models in view.summary["continuations"].items():
        for adapter, entry in models.items():
            if adapter == "base":
                continue
            domains = list(entry["domains"].items())
            parts = [*domains, ("all", entry)] if len(domains) > 1 else [("all", entry)]
            if len(domains) == 1 and domains[0][1]["n"] == entry["n"]:
                parts = [(domains[0][0], entry)]
            rows += [{"group": group, "adapter": adapter, "domain": d, **p} for d, p in parts]
    if all(len(models) == 1 for models in view.summary["continuations"].values()):
        rows = [
            {"group": group, "adapter": "base", "domain": "all", "n": models["base"]["n"]}
            | {k: v for k, v in models["base"].items() if "base" in k}
            for group, models in view.summary["continuations"].items()
        ]
    columns = (
        GROUP,
        Column("domain", "domain", "text"),
        ADAPTER,
        N,
        Column("mean_logp_per_token_base_nats", "log P base, nats/token", "fine_number"),
        Column("mean_logp_per_token_nats", "log P adapter, nats/token", "fine_number"),
        Column("mean_dlogp_per_token_nats", "change, nats/token", "fine"),
        Column("ci95_nats", "95 % CI, nats/token", "fine_interval"),
        Column("mean_dlogp_per_token_bits", "change, bits/token", "fine"),
        Column("ci95_per_token_bits", "95 % CI, bits/token", "fine_interval"),
        Column("mean_dlogp_per_byte_bits", "change, bits/byte", "fine"),
        Column("ci95_per_byte_bits", "95 % CI, bits/byte", "fine_interval"),
    )
    note = "Mean log-probability per token of true continuations; intervals are t over texts"

    def shown(row: Row) -> bool:
        return row["adapter"] in (view.shown, "base")

    return Table("table_2", "True continuations (the paper's Table 2)", columns, rows, note, shown)


def _strata(view: View) -> Table:
    rows = []
    for stratum, part in view.summary["strata"].items():
        for group, models in part["groups"].items():
            for adapter, entry in models.items():
                test = {"w_plus": entry["wilcoxon"]["w_plus"], "p": entry["wilcoxon"]["p"]}
                rows.append({"stratum": stratum, "group": group, "adapter": adapter} | entry | test)
    columns = (
        Column("stratum", "published", "text"),
        GROUP,
        ADAPTER,
        N,
        Column("mean_ddi_nats", "ddI, nats"),
        Column("ci95_nats", "95 % CI, nats", "interval"),
        Column("w_plus", "W+", "w"),
        Column("p", "p, one-sided", "p"),
        Column("d_z", "d_z"),
    )
    title = f"Pairs before and after {view.summary['cutoff']}"
    return Table("strata", title, columns, rows, "", _of_shown(view))


def _strata_texts(view: View) -> Table:
    rows = [
        {"stratum": stratum, "group": group, "adapter": adapter, **entry}
        for stratum, part in view.summary["strata"].items()
        for group, models in part["continuations"].items()
        for adapter, entry in models.items()
        if adapter != "base"
    ]
    columns = (
        Column("stratum", "published", "text"),
        GROUP,
        ADAPTER,
        N,
        Column("mean_dlogp_per_token_nats", "change, nats/token", "fine"),
        Column("ci95_nats", "95 % CI, nats/token", "fine_interval"),
    )
    title = f"Continuations before and after {view.summary['cutoff']}"
    return Table("strata_continuations", title, columns, rows, "", _of_shown(view))


def _groups(view: View) -> Table:
    rows = []
    for group, base in view.summary["base"].items():
        lengths = base["lengths"]
        rows.append(
            {
                "group": group,
                **base,
                "detectable": base["power"]["detectable_d_z_at_80"],
                "power": base["power"]["at_d_z"]["0.5"],
                "tokens_right": lengths["n_tokens"]["mean_right"],
                "tokens_wrong": lengths["n_tokens"]["mean_wrong"],
                "bytes_right": lengths["n_bytes"]["mean_right"],
                "bytes_wrong": lengths["n_bytes"]["mean_wrong"],
                "merges": base["n_boundary_merge"] / base["n"],
            }
        )
    columns = (
        GROUP,
        N,
        Column("n_sources", "named sources", "count"),
        Column("sign_accuracy", "dI > 0, base", "share"),
        Column("detectable", "detectable d_z at 80 %", "number"),
        Column("power", "power at d_z = 0.5", "share"),
        Column("tokens_right", "right, tokens", "number"),
        Column("tokens_wrong", "wrong, tokens", "number"),
        Column("bytes_right", "right, bytes", "number"),
        Column("bytes_wrong", "wrong, bytes", "number"),
        Column("merges", "boundary merges", "share"),
    )
    note = "Power of the one-sided paired t-test at 5 %; lengths are means over options"
    return Table("groups", "The items", columns, rows, note)
