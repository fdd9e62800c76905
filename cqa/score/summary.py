"""Score rows to the paper's statistics: one entry per group and adapter (Tables 1 and 2)."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from cqa.score.information import contrast
from cqa.score.resampling import (
    choose_epoch,
    leave_one_out_choice,
    max_t_sign_flip,
    permutation_welch,
)
from cqa.score.stats import cohen_d_z, d_z_interval, paired_t, t_interval, welch, wilcoxon

Row = dict[str, Any]
MANY_EPOCHS = 2  # more models than base and one adapter: there is something to choose


@dataclass(frozen=True, slots=True)
class ItemScore:
    """What the statistics need of one item under one model."""

    delta_i_nats: float
    conditional_nats: float  # S(good|y) - mean S(bad|y)
    prior_nats: float  # the same after the null context


@dataclass(frozen=True, slots=True)
class TextScore:
    """What the statistics need of one continuation under one model."""

    logp_nats: float
    n_tokens: int
    n_bytes: int
    domain: str | None


ByModel = dict[str | None, dict[str, ItemScore]]


class Scores:
    """Rows sorted by kind, group and adapter; ids join a base row with an adapter's."""

    def __init__(self, rows: Iterable[Row]) -> None:
        """Read rows; where an id comes twice under one model, the last line counts."""
        self.items: dict[str, ByModel] = {}
        self.texts: dict[str, dict[str | None, dict[str, TextScore]]] = {}
        for row in rows:
            if row["kind"] == "continuation":
                by_model = self.texts.setdefault(row["group"], {}).setdefault(row["adapter"], {})
                option = row["options"][0]
                by_model[row["id"]] = TextScore(
                    option["logp_given_context_nats"], option["n_tokens"], option["n_bytes"],
                    row["domain"],
                )  # fmt: skip
            else:
                scores = self.items.setdefault(row["group"], {}).setdefault(row["adapter"], {})
                scores[row["id"]] = ItemScore(
                    row["delta_i_nats"],
                    _contrast_of(row, "logp_given_context_nats"),
                    _contrast_of(row, "logp_null_nats"),
                )


def _contrast_of(row: Row, key: str) -> float:
    return contrast([option[key] for option in row["options"]], row["answer"])


def summarise(scores: Scores) -> Row:
    """Return summary.json: every group under the base and under every adapter."""
    return {
        "unit": "nats",
        "base": {group: _base_entry(models[None]) for group, models in scores.items.items()},
        "groups": {
            group: {
                name: compare_items(models[None], by_id)
                for name, by_id in models.items()
                if name is not None
            }
            for group, models in scores.items.items()
        },
        "selection": {
            group: _selection(models)
            for group, models in scores.items.items()
            if len(models) > MANY_EPOCHS
        },
        "interaction": _interactions(scores),
        "continuations": {
            group: {
                name or "base": _texts_entry(models[None], by_id) for name, by_id in models.items()
            }
            for group, models in scores.texts.items()
        },
    }


def _differences(models: ByModel) -> dict[str, list[float]]:
    """Return ddI by adapter, over the items that every model scored, in one order."""
    base = models[None]
    ids = [i for i in base if all(i in by_id for by_id in models.values())]
    return {
        name: [by_id[i].delta_i_nats - base[i].delta_i_nats for i in ids]
        for name, by_id in models.items()
        if name is not None
    }


def _selection(models: ByModel) -> Row:
    """Return what choosing among the adapters costs: corrected p, and how stable the choice is."""
    ddi = _differences(models)
    corrected = max_t_sign_flip(ddi)
    return {
        "chosen": choose_epoch(ddi),
        "rule": "smallest one-sided Wilcoxon p, then largest d_z; exploratory",
        "p_corrected": corrected.p_corrected,
        "method": f"max-T sign-flip, {corrected.method}",
        "chosen_with_one_item_left_out": leave_one_out_choice(ddi),
    }


def _interactions(scores: Scores) -> Row:
    """Return, per adapter, whether literary items change more than factual ones."""
    if not {"literary", "factual"} <= set(scores.items):
        return {}
    literary, factual = (_differences(scores.items[g]) for g in ("literary", "factual"))
    return {
        name: {
            **asdict(welch(literary[name], factual[name])),
            "p_permutation": permutation_welch(literary[name], factual[name]),
        }
        for name in literary
        if name in factual and min(len(literary[name]), len(factual[name])) > 1
    }


def _base_entry(base: Mapping[str, ItemScore]) -> Row:
    values = [score.delta_i_nats for score in base.values()]
    return {
        "n": len(values),
        "mean_delta_i_nats": _mean(values),
        "sign_accuracy": _mean([float(value > 0) for value in values]),
    }


def compare_items(base: Mapping[str, ItemScore], adapted: Mapping[str, ItemScore]) -> Row:
    """Return the statistics of ddI = dI_B - dI_A over the items that both models scored."""
    ids = [item_id for item_id in base if item_id in adapted]
    a, b = [base[i] for i in ids], [adapted[i] for i in ids]
    ddi = [y.delta_i_nats - x.delta_i_nats for x, y in zip(a, b, strict=True)]
    t = paired_t(ddi)
    d_z = cohen_d_z(ddi)
    return {
        "n": len(ids),
        "mean_delta_i_base_nats": _mean([x.delta_i_nats for x in a]),
        "mean_delta_i_nats": _mean([y.delta_i_nats for y in b]),
        "mean_ddi_nats": _mean(ddi),
        "mean_d_cond_nats": _mean(
            [y.conditional_nats - x.conditional_nats for x, y in zip(a, b, strict=True)]
        ),
        "mean_d_prior_nats": _mean(
            [y.prior_nats - x.prior_nats for x, y in zip(a, b, strict=True)]
        ),
        "sign_accuracy_base": _mean([float(x.delta_i_nats > 0) for x in a]),
        "sign_accuracy": _mean([float(y.delta_i_nats > 0) for y in b]),
        "wilcoxon": asdict(wilcoxon(ddi)),
        "t": asdict(t),
        "d_z": d_z,
        "d_z_ci95": None if d_z is None else list(d_z_interval(d_z, len(ids))),
        "ci95_nats": _listed(t_interval(ddi)),
    }


def _texts_entry(base: Mapping[str, TextScore], adapted: Mapping[str, TextScore]) -> Row:
    ids = [item_id for item_id in base if item_id in adapted]
    domains = sorted({d for i in ids if (d := base[i].domain) is not None})
    return {
        **_texts_stats(base, adapted, ids),
        "domains": {
            domain: _texts_stats(base, adapted, [i for i in ids if base[i].domain == domain])
            for domain in domains
        },
    }


def _texts_stats(
    base: Mapping[str, TextScore], adapted: Mapping[str, TextScore], ids: list[str]
) -> Row:
    """Return Table 2's row: per-token log-probability before and after, and its change."""
    a = [base[i].logp_nats / base[i].n_tokens for i in ids]
    b = [adapted[i].logp_nats / adapted[i].n_tokens for i in ids]
    change = [y - x for x, y in zip(a, b, strict=True)]
    per_byte = [adapted[i].logp_nats / adapted[i].n_bytes / math.log(2) for i in ids]
    return {
        "n": len(ids),
        "mean_logp_per_token_base_nats": _mean(a),
        "mean_logp_per_token_nats": _mean(b),
        "mean_dlogp_per_token_nats": _mean(change),
        "ci95_nats": _listed(t_interval(change)),
        "mean_dlogp_per_token_bits": _mean(change) / math.log(2),
        "mean_logp_per_byte_bits": _mean(per_byte),
    }


def _mean(values: list[float]) -> float:
    return float(np.mean(values))


def _listed(interval: tuple[float, float] | None) -> list[float] | None:
    return None if interval is None else list(interval)
