"""Every table of the report, made of the summary's numbers."""

from __future__ import annotations

from typing import Any

from cqa.report.focus import ADAPTER, DOMAIN, GROUP, N, View, of_shown
from cqa.report.pair_tables import (
    accuracy,
    domains,
    equivalence,
    interaction,
    more_tests,
    parts,
    readings,
    strata,
    table_1,
)
from cqa.report.tables import Column, Table

Row = dict[str, Any]


def all_tables(view: View) -> list[Table]:
    """Return every table that has rows."""
    tables = [
        table_1(view),
        more_tests(view),
        interaction(view),
        equivalence(view),
        parts(view),
        _entropy(view),
        readings(view),
        accuracy(view),
        domains(view),
        table_2(view),
        strata(view),
        _strata_texts(view),
        _groups(view),
    ]
    return [table for table in tables if table.rows]


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
    return Table("entropy", "Entropy before and after", columns, rows, "", of_shown(view))


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
        DOMAIN,
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
    title = "True continuations (the paper's Table 2)"
    return Table("table_2", title, columns, rows, note, of_shown(view))


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
    return Table("strata_continuations", title, columns, rows, "", of_shown(view))


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
