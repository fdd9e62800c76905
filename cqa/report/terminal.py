"""The summary as text: one table per group, units in the headings."""

from __future__ import annotations

from typing import Any

from cqa.text import aligned, interval, signed

Row = dict[str, Any]
ITEM_HEADINGS = [
    "model", "dI nats", "sign acc.", "ddI nats", "95 % CI", "d_cond", "d_prior", "W+", "p", "d_z",
]  # fmt: skip


def summary_text(summary: Row) -> str:
    """Return Table 1 for every group of pairs, and Table 2 for every group of continuations."""
    parts = [
        _items_table(group, summary["base"][group], models)
        for group, models in summary["groups"].items()
    ]
    parts += [_texts_table(group, models) for group, models in summary["continuations"].items()]
    cautions = _cautions(summary)
    if cautions:
        parts.append("\n".join(cautions))
    if any(summary["groups"].values()):
        parts.append(
            "dI = I(good) - I(bad); ddI = dI of the adapter - dI of the base = d_cond - d_prior;\n"
            f"p is one-sided (greater), signed-rank distribution, {_methods(summary)}; intervals "
            "are t, 95 %."
        )
    return "\n\n".join(parts)


def _methods(summary: Row) -> str:
    """Say where p is exact and where it is not."""
    found: dict[str, str] = {
        group: next(iter(models.values()))["wilcoxon"]["method"]
        for group, models in summary["groups"].items()
        if models
    }
    if len(set(found.values())) == 1:
        return next(iter(found.values()))
    return ", ".join(f"{group}: {method}" for group, method in found.items())


def _cautions(summary: Row) -> list[str]:
    """Say what the choice of an epoch costs, and whether the groups really differ."""
    lines = []
    choices = summary["selection"]
    for group in ["literary"] if "literary" in choices else list(choices):
        selection = choices[group]
        chosen = selection["chosen"]
        p, corrected = (
            _equals(p)
            for p in (
                summary["groups"][group][chosen]["wilcoxon"]["p"],
                selection["p_corrected"][chosen],
            )
        )
        votes, n = selection["chosen_with_one_item_left_out"], summary["base"][group]["n"]
        lines.append(
            f"{group}: {chosen} has the smallest p (p {p}); corrected for having looked at "
            f"{len(selection['p_corrected'])} adapters, p {corrected} (max-T); "
            f"still chosen in {votes[chosen]} of {n} when one item is left out"
        )
    several = len(summary["interaction"]) > 1
    for name, test in summary["interaction"].items():
        looked = f", {_p(test['p_corrected'])} corrected (max-T)" if several else ""
        if test["ci95"] is not None:
            lines.append(
                f"literary - factual, {name}: {signed(test['difference'])} nats "
                f"{interval(test['ci95'])}, two-sided p {_equals(test['p_two_sided'])} (Welch), "
                f"{_p(test['p_permutation'])} (permutation)" + looked
            )
    if left_out := summary.get("n_too_long"):
        counts = ", ".join(f"{n} {group}" for group, n in left_out.items())
        lines.append(f"left out, over the model's positions (--too-long drop): {counts}")
    if summary["cutoff"] is not None:
        n = summary["n_by_date"]
        lines.append(
            f"published by {summary['cutoff']}: {n['before']}, after it: {n['after']}, unknown: "
            f"{n['unknown']}; pooled here, apart in summary.json and in the report"
        )
    return lines


def _items_table(group: str, base: Row, models: dict[str, Row]) -> str:
    rows = [["base", signed(base["mean_delta_i_nats"]), _share(base["sign_accuracy"])]]
    for name, entry in models.items():
        test = entry["wilcoxon"]
        rows.append(
            [
                name,
                signed(entry["mean_delta_i_nats"]),
                _share(entry["sign_accuracy"]),
                signed(entry["mean_ddi_nats"]),
                interval(entry["ci95_nats"]),
                signed(entry["mean_d_cond_nats"]),
                signed(entry["mean_d_prior_nats"]),
                f"{test['w_plus']:g}",
                _p(test["p"]),
                signed(entry["d_z"]),
            ]
        )
    return f"{group}: {base['n']} items\n" + aligned(ITEM_HEADINGS, rows)


def _texts_table(group: str, models: dict[str, Row]) -> str:
    head = ["model", "texts", "n", "log P nats/token", "change", "95 % CI", "bits/byte"]
    rows = []
    for name, entry in models.items():
        parts = [("all", entry), *entry["domains"].items()]
        if len(parts) == 2:
            parts = parts[:1]
        for domain, part in parts:
            changed = [] if name == "base" else [
                signed(part["mean_dlogp_per_token_nats"]), interval(part["ci95_nats"])
            ]  # fmt: skip
            cells = [name, domain, str(part["n"]), f"{part['mean_logp_per_token_nats']:.3f}"]
            cells += changed or ["", ""]
            rows.append([*cells, f"{-part['mean_logp_per_byte_bits']:.3f}"])
    return f"{group}: continuations\n" + aligned(head, rows)


def _p(value: float) -> str:
    return "<0.001" if value < 0.001 else f"{value:.3f}"


def _equals(value: float) -> str:
    return "< 0.001" if value < 0.001 else f"= {value:.3f}"


def _share(value: float) -> str:
    return f"{100 * value:.0f} %"
