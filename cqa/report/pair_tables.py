"""Tables of pairs and several options: the paper's Table 1, and what it lacks."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from cqa.report.focus import ADAPTER, DOMAIN, GROUP, N, View, of_shown
from cqa.report.tables import Column, Table
from cqa.stats.compare import READINGS

Row = dict[str, Any]
DI_BASE = Column("mean_delta_i_base_nats", "dI base, nats", "number")
DDI, CI = Column("mean_ddi_nats", "ddI, nats"), Column("ci95_nats", "95 % CI, nats", "interval")
W_PLUS, P = Column("w_plus", "W+", "w"), Column("p", "p, one-sided", "p")
D_Z = Column("d_z", "d_z")


def change_row(group: str, adapter: str, entry: Row) -> Row:
    """Return an entry of the summary as a row, its signed-rank test beside the rest."""
    test = {key: entry["wilcoxon"][key] for key in ("w_plus", "p")}
    return {"group": group, "adapter": adapter, **entry, **test}


def table_1(view: View) -> Table:
    """Return the paper's Table 1, with what it lacks."""
    selection = view.summary["selection"]
    rows = [
        change_row(group, adapter, entry)
        | {"p_corrected": selection.get(group, {}).get("p_corrected", {}).get(adapter)}
        for group, adapter, entry in view.entries()
    ]
    columns = (
        GROUP,
        ADAPTER,
        N,
        DI_BASE,
        Column("mean_delta_i_nats", "dI adapter, nats", "number"),
        DDI,
        CI,
        W_PLUS,
        P,
        Column("p_corrected", "p, max-T", "p"),
        D_Z,
        Column("d_z_ci95", "95 % CI of d_z", "interval"),
    )
    note = (
        "ddI = dI under the adapter − dI under the base, mean over items. p: signed-rank test, "
        "greater; p, max-T: sign-flip test of the mean, corrected for all adapters of the group. "
        "CI: t, of one adapter alone; of d_z: noncentral t"
        + _approximated((group, entry) for group, _, entry in view.entries())
    )
    return Table(
        "table_1",
        "Change of conditional mutual information (the paper's Table 1)",
        columns,
        rows,
        note,
    )


def _approximated(entries: Iterable[tuple[str, Row]]) -> str:
    """Name the parts, each given with its entry, whose p is not exact; nothing where all are."""
    rough = sorted({name for name, entry in entries if entry["wilcoxon"]["method"] != "exact"})
    return f". Normal approximation of p: {', '.join(rough)}" if rough else ""


def more_tests(view: View) -> Table:
    """Return what other tests, intervals and effect sizes say of the same change."""
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
    return Table("other_tests", "Other tests and effect sizes", columns, rows, note, of_shown(view))


def interaction(view: View) -> Table:
    """Return the tests of literary minus factual."""
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


def equivalence(view: View) -> Table:
    """Return the tests of whether a change is small."""
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
    return Table("equivalence", "Is a change small?", columns, rows, note, of_shown(view))


def parts(view: View) -> Table:
    """Return the change's conditional and prior part."""
    rows = [{"group": g, "adapter": a, **entry} for g, a, entry in view.entries()]
    columns = (
        GROUP,
        ADAPTER,
        DDI,
        Column("mean_d_cond_nats", "d_cond, nats"),
        Column("ci95_d_cond_nats", "95 % CI, nats", "interval"),
        Column("mean_d_prior_nats", "d_prior, nats"),
        Column("ci95_d_prior_nats", "95 % CI, nats", "interval"),
    )
    note = "ddI = d_cond − d_prior: the change after the context minus the change after ∅"
    return Table("parts", "Conditional and prior part", columns, rows, note, of_shown(view))


def readings(view: View) -> Table:
    """Return the change under other readings of dI."""
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
        P,
        D_Z,
    )
    note = "The same items read in other ways; a finding that holds in one reading only is weak"
    return Table("readings", "Other readings of dI", columns, rows, note, of_shown(view))


def accuracy(view: View) -> Table:
    """Return how often the right option comes first, under the base and under every adapter."""
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
    title = "How often the right option is first"
    return Table("accuracy", title, columns, rows, note, of_shown(view))


def strata(view: View) -> Table:
    """Return the change before and after the cutoff."""
    rows = [
        {"stratum": stratum, **change_row(group, adapter, entry)}
        for stratum, part in view.summary["strata"].items()
        for group, models in part["groups"].items()
        for adapter, entry in models.items()
    ]
    columns = (Column("stratum", "published", "text"), GROUP, ADAPTER, N, DDI, CI, W_PLUS, P, D_Z)
    title = f"Pairs before and after {view.summary['cutoff']}"
    return Table("strata", title, columns, rows, "", of_shown(view))


def domains(view: View) -> Table:
    """Return the change by domain and of all items, for every group of two domains or more."""
    parts = [
        (group, adapter, domain, part)
        for group, adapter, entry in view.entries()
        if entry["domains"]
        for domain, part in (*entry["domains"].items(), ("all", entry))
    ]
    rows = [change_row(group, adapter, part) | {"domain": d} for group, adapter, d, part in parts]
    columns = (GROUP, DOMAIN, ADAPTER, N, DI_BASE, DDI, CI, P)
    note = (
        "Descriptive: no p here is corrected, neither for the number of domains nor for that of "
        "adapters, and a difference of two domains is not tested. CI: t; p: signed-rank test, "
        "greater. Items without a domain are in “all” alone"
        + _approximated((f"{group}, {domain}", part) for group, _, domain, part in parts)
    )
    return Table("domains", "Pairs by domain", columns, rows, note, of_shown(view))
