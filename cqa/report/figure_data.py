"""What each figure shows, as flat rows: the CSV from which alone it is drawn."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from cqa.report.focus import View
from cqa.report.source import epoch_of

Row = dict[str, Any]


def figure_rows(view: View) -> dict[str, list[Row]]:
    """Return the rows of every figure that there is data for, by the figure's name."""
    found = {
        "d_by_epoch": d_by_epoch(view),
        "parts": parts(view),
        "collapse": collapse(view),
        "overfitting": overfitting(view),
        "items": items(view),
        "continuations": continuations(view),
    }
    return {name: rows for name, rows in found.items() if rows}


def _bounds(interval: Sequence[float | None] | None) -> Row:
    low, high = interval or (None, None)
    return {"low": low, "high": high}


def d_by_epoch(view: View) -> list[Row]:
    """Return Figure 1: d_z of ddI with its interval, for every group and adapter."""
    return [
        {
            "group": group,
            "adapter": adapter,
            "epoch": epoch_of(adapter),
            "n": entry["n"],
            "d_z": entry["d_z"],
            **_bounds(entry["d_z_ci95"]),
            "p": entry["wilcoxon"]["p"],
            "shown": adapter == view.shown,
        }
        for group, adapter, entry in view.entries()
    ]


def parts(view: View) -> list[Row]:
    """Return ddI and its conditional and prior part, in nats."""
    names = {
        "ddI": ("mean_ddi_nats", "ci95_nats"),
        "d_cond": ("mean_d_cond_nats", "ci95_d_cond_nats"),
        "d_prior": ("mean_d_prior_nats", "ci95_d_prior_nats"),
    }
    return [
        {
            "group": group,
            "adapter": adapter,
            "epoch": epoch_of(adapter),
            "part": name,
            "mean_nats": entry[mean],
            **_bounds(entry[interval]),
        }
        for group, adapter, entry in view.entries()
        for name, (mean, interval) in names.items()
    ]


def collapse(view: View) -> list[Row]:
    """Return Figure 2 from data: mean p over an item's candidates, and their entropy."""
    rows = []
    for group, adapter, entry in view.entries():
        if adapter != view.shown:
            continue
        for where in ("given_context", "null"):
            candidates = entry["candidates"][where]
            h = candidates["entropy_nats"]
            entropy = {
                "h_base_nats": h["before"],
                "h_adapter_nats": h["after"],
                "h_change_nats": h["change"],
            }
            low, high = h["ci95"] or (None, None)
            for rank, p in enumerate(candidates["p_by_rank"]):
                rows.append(
                    {
                        "group": group,
                        "adapter": adapter,
                        "where": where,
                        "rank": rank,
                        "n": p["n"],
                        "p_base": p["before"],
                        "p_adapter": p["after"],
                        **entropy,
                        "h_low": low,
                        "h_high": high,
                    }
                )
    return rows


def overfitting(view: View) -> list[Row]:
    """Return the losses of training and, by epoch, mean ddI, its sd and d_z (section 5.1)."""
    rows: list[Row] = []
    run = view.source.run
    if run is not None:
        losses = {"train_loss": run.loss_nats, "eval_loss": run.eval_loss_nats}
        rows += [
            {"quantity": name, "group": None, "epoch": epoch, "value": value, **_bounds(None)}
            for name, by_epoch in losses.items()
            for epoch, value in by_epoch.items()
        ]
    quantities = {
        "mean_ddi": ("mean_ddi_nats", "ci95_nats"),
        "sd_ddi": ("sd_ddi_nats", None),
        "d_z": ("d_z", "d_z_ci95"),
    }
    for group, adapter, entry in view.entries():
        epoch = epoch_of(adapter)
        if epoch is not None:
            rows += [
                {
                    "quantity": name,
                    "group": group,
                    "epoch": epoch,
                    "value": entry[key],
                    **_bounds(entry[interval] if interval else None),
                }
                for name, (key, interval) in quantities.items()
            ]
    return rows if len({row["epoch"] for row in rows}) > 1 else []


def items(view: View) -> list[Row]:
    """Return every item's ddI under the shown adapter."""
    if view.shown is None:
        return []
    rows = []
    for group, models in view.source.scores.items.items():
        base, adapted = models[None], models.get(view.shown, {})
        rows += [
            {
                "group": group,
                "adapter": view.shown,
                "id": item_id,
                "ddi_nats": adapted[item_id].delta_i_nats - score.delta_i_nats,
            }
            for item_id, score in base.items()
            if item_id in adapted
        ]
    return rows


def continuations(view: View) -> list[Row]:
    """Return the change of log-probability per token under the shown adapter (Table 2)."""
    rows = []
    for group, models in view.summary["continuations"].items():
        entry = models.get(view.shown or "")
        if entry is None:
            continue
        domains = list(entry["domains"].items())
        for domain, part in [*domains, (None, entry)] if len(domains) > 1 else [(None, entry)]:
            rows.append(
                {
                    "group": group,
                    "domain": domain,
                    "adapter": view.shown,
                    "n": part["n"],
                    "change_nats_per_token": part["mean_dlogp_per_token_nats"],
                    **_bounds(part["ci95_nats"]),
                }
            )
    return rows
