"""One group of pairs under the base and under an adapter: everything the report says of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from scipy import stats as scipy_stats

from cqa.schema.rows import ItemRow
from cqa.stats.information import contrast, delta_i_best_wrong, entropy, softmax
from cqa.stats.resampling import bca_interval
from cqa.stats.tests import (
    cohen_d_av,
    cohen_d_z,
    d_z_interval,
    detectable_d_z,
    hedges_correction,
    paired_t,
    power_of_t,
    sign_test,
    spread,
    t_interval,
    tost,
    wilcoxon,
    wilson_interval,
)

Row = dict[str, Any]
MARGIN_SHARE = 0.2  # of the base's spread: Cohen's "small", fixed before any adapter is seen
LENGTHS = ("n_tokens", "n_bytes", "n_chars")
READINGS = {  # other readings of dI, listed beside the sum over tokens after the first null
    "null2": "sum over tokens, ∅ = null token + newline, nats",
    "per_token": "mean over tokens, nats/token",
    "per_byte": "mean over bytes, nats/byte",
    "per_char": "mean over characters, nats/char",
    "best_wrong": "sum over tokens, against the strongest wrong option, nats",
}


ACCURACIES = {  # what ranks an item's options: lm-eval's acc and acc_bytes
    "sum": "S(x|y)",
    "per_byte": "S(x|y) / bytes of x",
}


@dataclass(frozen=True, slots=True)
class ItemScore:
    """What the statistics need of one item under one model; option 0 of `p_*` is the right one."""

    delta_i_nats: float
    conditional_nats: float  # S(good|y) - mean S(bad|y)
    prior_nats: float  # the same after the null context
    readings: tuple[float, ...]  # dI in the order of READINGS
    entropy_given_nats: float  # per token, over the tokens of all options
    entropy_null_nats: float
    p_given: tuple[float, ...]  # softmax of S(x|y) over the candidates
    p_null: tuple[float, ...]
    first_by: tuple[bool, ...]  # whether the right option has the largest S(x|y), by ACCURACIES


@dataclass(frozen=True, slots=True)
class ItemFacts:
    """What is known of an item whatever the model."""

    domain: str | None
    source_id: str | None
    published_at: str | None
    right_lengths: tuple[int, ...]  # in the order of LENGTHS
    wrong_lengths: tuple[float, ...]  # means over the wrong options
    boundary_merge: bool


def item_score(row: ItemRow) -> ItemScore:
    """Reduce a row of scores.jsonl to what the statistics need.

    Raises:
        ValueError: It is a continuation, which has no right option.
    """
    answer, delta_i, options = row.answer, row.delta_i_nats, row.options
    if answer is None or delta_i is None:
        raise ValueError(f"expected a choice, got the continuation `{row.id}`")
    given = [o.logp_given_context_nats for o in options]
    null = [o.logp_null_nats for o in options]
    pmi = [o.pmi_nats for o in options]
    lengths = [(o.n_tokens, o.n_bytes, o.n_chars) for o in options]  # in the order of LENGTHS
    pmi2 = [o.logp_given_context_nats - o.logp_null2_nats for o in options]
    n_tokens = sum(o.n_tokens for o in options)
    order = [answer, *(k for k in range(len(options)) if k != answer)]
    p_given, p_null = softmax(given), softmax(null)
    return ItemScore(
        delta_i_nats=delta_i,
        conditional_nats=contrast(given, answer),
        prior_nats=contrast(null, answer),
        readings=(
            contrast(pmi2, answer),
            *(
                contrast([i / n for i, n in zip(pmi, by_length, strict=True)], answer)
                for by_length in zip(*lengths, strict=True)
            ),
            delta_i_best_wrong(pmi, answer),
        ),
        entropy_given_nats=sum(o.entropy_given_context_nats for o in options) / n_tokens,
        entropy_null_nats=sum(o.entropy_null_nats for o in options) / n_tokens,
        p_given=tuple(p_given[k] for k in order),
        p_null=tuple(p_null[k] for k in order),
        first_by=tuple(
            max(range(len(s)), key=s.__getitem__) == answer
            for s in (given, [o.logp_given_context_nats / o.n_bytes for o in options])
        ),
    )


def item_facts(row: ItemRow) -> ItemFacts:
    """Return what a row says of its item."""
    lengths = [(o.n_tokens, o.n_bytes, o.n_chars) for o in row.options]
    wrong = [counts for k, counts in enumerate(lengths) if k != row.answer]
    return ItemFacts(
        row.domain,
        row.source_id,
        row.published_at,
        lengths[row.answer or 0],
        tuple(float(np.mean(counts)) for counts in zip(*wrong, strict=True)),
        any(option.boundary_merge for option in row.options),
    )


def base_entry(base: Mapping[str, ItemScore], facts: Mapping[str, ItemFacts]) -> Row:
    """Return what a group is before any adapter: dI, its power, and how even its options are."""
    values = [score.delta_i_nats for score in base.values()]
    n, n_right = len(values), sum(value > 0 for value in values)
    return {
        "n": n,
        "mean_delta_i_nats": mean(values),
        "sd_delta_i_nats": spread(values),
        "sign_accuracy": n_right / n,
        "sign_accuracy_ci95": listed(wilson_interval(n_right, n)),
        "accuracy": _accuracy(list(base.values())),
        "accuracy_by_chance": float(np.mean([1 / len(score.p_given) for score in base.values()])),
        "power": {
            "test": "one-sided paired t, alpha 0.05",
            "detectable_d_z_at_80": detectable_d_z(n),
            "at_d_z": {f"{d_z:g}": power_of_t(d_z, n) for d_z in (0.2, 0.5, 0.8)},
        },
        "lengths": _lengths([facts[i] for i in base]),
        "n_boundary_merge": sum(facts[i].boundary_merge for i in base),
        "n_sources": len({facts[i].source_id for i in base} - {None}) or None,
        "n_without_source": sum(facts[i].source_id is None for i in base),
    }


def _lengths(facts: Sequence[ItemFacts]) -> Row:
    """Return mean lengths of right and wrong options; a sum favours whatever is shorter."""
    lengths = {}
    for k, key in enumerate(LENGTHS):
        right = [float(f.right_lengths[k]) for f in facts]
        wrong = [f.wrong_lengths[k] for f in facts]
        lengths[key] = {
            "mean_right": mean(right),
            "mean_wrong": mean(wrong),
            "n_right_longer": sum(a > b for a, b in zip(right, wrong, strict=True)),
            "n_right_shorter": sum(a < b for a, b in zip(right, wrong, strict=True)),
        }
    return lengths


def compare_items(
    base: Mapping[str, ItemScore],
    adapted: Mapping[str, ItemScore],
    facts: Mapping[str, ItemFacts],
    margin_nats: float | None = None,
) -> Row:
    """Return the statistics of ddI = dI_B - dI_A over the items that both models scored.

    Args:
        base: Scores under model A, by item id.
        adapted: Scores under model B.
        facts: Lengths and sources of the items.
        margin_nats: Equivalence margin; by default a fifth of the base's sd of dI.
    """
    ids = [item_id for item_id in base if item_id in adapted]
    a, b = [base[i] for i in ids], [adapted[i] for i in ids]
    readings = [
        ([x.readings[k] for x in a], [y.readings[k] for y in b]) for k in range(len(READINGS))
    ]

    def both(value: Callable[[ItemScore], float]) -> tuple[list[float], list[float]]:
        return [value(x) for x in a], [value(y) for y in b]

    before, after = both(lambda s: s.delta_i_nats)
    ddi = differences(before, after)
    d_cond, d_prior = (
        differences(*both(value))
        for value in (lambda s: s.conditional_nats, lambda s: s.prior_nats)
    )
    return {
        **_change_of_delta_i(before, after),
        "sd_ddi_nats": spread(ddi),
        "mean_d_cond_nats": mean(d_cond),
        "mean_d_prior_nats": mean(d_prior),
        "ci95_d_cond_nats": listed(t_interval(d_cond)),
        "ci95_d_prior_nats": listed(t_interval(d_prior)),
        "bca95_nats": listed(bca_interval(ddi)),
        "by_source": _by_source(ddi, [facts[i].source_id for i in ids]),
        "domains": _by_domain(before, after, [facts[i].domain for i in ids]),
        **_signs(before, after),
        "accuracy_base": _accuracy(a),
        "accuracy": _accuracy(b),
        "t": asdict(paired_t(ddi)),
        "sign_test": asdict(sign_test(ddi)),
        **_effect_sizes(before, after),
        "equivalence": _equivalence(before, ddi, margin_nats),
        "entropy_per_token": {
            "given_context": change(*both(lambda s: s.entropy_given_nats)),
            "null": change(*both(lambda s: s.entropy_null_nats)),
        },
        "candidates": _candidates(a, b),
        "readings": {name: _reading(*r) for name, r in zip(READINGS, readings, strict=True)},
        "ddi_against_length_rho": _length_rho(ddi, [facts[i] for i in ids]),
    }


def _change_of_delta_i(before: Sequence[float], after: Sequence[float]) -> Row:
    """Return the change of dI with its interval and test: of a group, or of a part of one."""
    ddi = differences(before, after)
    return {
        "n": len(ddi),
        "mean_delta_i_base_nats": mean(before),
        "mean_delta_i_nats": mean(after),
        "mean_ddi_nats": mean(ddi),
        "ci95_nats": listed(t_interval(ddi)),
        "wilcoxon": asdict(wilcoxon(ddi)),
    }


def _by_domain(
    before: Sequence[float], after: Sequence[float], domains: Sequence[str | None]
) -> Row:
    """Return the change by domain; nothing where there are not two, for one is the whole group."""
    parts: dict[str, tuple[list[float], list[float]]] = {}
    for x, y, domain in zip(before, after, domains, strict=True):
        if domain is not None:
            was, now = parts.setdefault(domain, ([], []))
            was.append(x)
            now.append(y)
    return {d: _change_of_delta_i(*parts[d]) for d in sorted(parts)} if len(parts) > 1 else {}


def _signs(before: Sequence[float], after: Sequence[float]) -> Row:
    n = len(before)
    hits = [[value > 0 for value in values] for values in (before, after)]
    moved = [(x, y) for x, y in zip(*hits, strict=True) if x != y]
    return {
        "sign_accuracy_base": sum(hits[0]) / n if n else None,
        "sign_accuracy": sum(hits[1]) / n if n else None,
        "sign_accuracy_base_ci95": listed(wilson_interval(sum(hits[0]), n)),
        "sign_accuracy_ci95": listed(wilson_interval(sum(hits[1]), n)),
        "n_sign_gained": sum(y for _, y in moved),
        "n_sign_lost": sum(x for x, _ in moved),
    }


def _accuracy(scores: Sequence[ItemScore]) -> Row:
    """Return the share of items whose right option ranks first, the earliest among equals."""
    n = len(scores)
    shares: Row = {}
    for k, name in enumerate(ACCURACIES):
        n_first = sum(score.first_by[k] for score in scores)
        interval = listed(wilson_interval(n_first, n))
        shares[name] = {"share": n_first / n if n else None, "ci95": interval}
    return shares


def _effect_sizes(before: Sequence[float], after: Sequence[float]) -> Row:
    ddi = differences(before, after)
    d_z, correction = cohen_d_z(ddi), hedges_correction(len(ddi))
    interval = None if d_z is None else d_z_interval(d_z, len(ddi))

    def corrected(value: float) -> float | None:
        return None if correction is None else value * correction

    return {
        "d_z": d_z,
        "d_z_ci95": listed(interval),
        "hedges_g_z": None if d_z is None else corrected(d_z),
        "hedges_g_z_ci95": None if interval is None else [corrected(bound) for bound in interval],
        "d_av": cohen_d_av(before, after),
    }


def _equivalence(before: Sequence[float], ddi: Sequence[float], margin: float | None) -> Row:
    rule = "given" if margin is not None else f"{MARGIN_SHARE:g} sd of the base's dI"
    sd = spread(before)
    if margin is None and sd:
        margin = MARGIN_SHARE * sd
    if margin is None:
        return dict.fromkeys(("margin_nats", "p", "ci90_nats", "smallest_margin_nats")) | {
            "margin_rule": rule
        }
    test = tost(ddi, margin)
    return {
        "margin_nats": margin,
        "margin_rule": rule,
        "p": test.p,
        "ci90_nats": listed(test.ci90),
        "smallest_margin_nats": test.smallest_margin,
    }


def _by_source(ddi: Sequence[float], sources: Sequence[str | None]) -> Row | None:
    """Return what remains when items of one source count as one; None where no source is named."""
    if not any(sources):
        return None
    names = [source or f"\0{k}" for k, source in enumerate(sources)]  # unnamed: each its own
    by_name: dict[str, list[float]] = {}
    for name, value in zip(names, ddi, strict=True):
        by_name.setdefault(name, []).append(value)
    return {
        "n_sources": len(by_name),
        "n_unnamed": sum(source is None for source in sources),
        "bca95_nats": listed(bca_interval(ddi, clusters=names)),
        "wilcoxon_of_source_means": asdict(wilcoxon([float(np.mean(v)) for v in by_name.values()])),
    }


def _candidates(a: Sequence[ItemScore], b: Sequence[ItemScore]) -> Row:
    """Return Figure 2's quantities: p over an item's candidates and its entropy, before, after.

    Candidates are ranked: the right one, then the wrong ones by their probability under the base.
    """
    result: Row = {}
    for name, get in (("given_context", _p_given), ("null", _p_null)):
        before, after = [get(s) for s in a], [get(s) for s in b]
        ranks: list[Row] = []
        for rank in range(max(map(len, before), default=0)):
            pairs = [_at_rank(p, q, rank) for p, q in zip(before, after, strict=True) if p[rank:]]
            ranks.append({"n": len(pairs), **change(*map(list, zip(*pairs, strict=True)))})
        result[name] = {
            "entropy_nats": change([entropy(p) for p in before], [entropy(q) for q in after]),
            "p_by_rank": ranks,
        }
    return result


def _p_given(score: ItemScore) -> tuple[float, ...]:
    return score.p_given


def _p_null(score: ItemScore) -> tuple[float, ...]:
    return score.p_null


def _at_rank(p: Sequence[float], q: Sequence[float], rank: int) -> tuple[float, float]:
    order = [0, *sorted(range(1, len(p)), key=lambda k: -p[k])]
    return p[order[rank]], q[order[rank]]


def _reading(before: list[float], after: list[float]) -> Row:
    ddi = differences(before, after)
    return {
        "mean_delta_i_base": mean(before),
        "mean_delta_i": mean(after),
        "mean_ddi": mean(ddi),
        "ci95": listed(t_interval(ddi)),
        "p": wilcoxon(ddi).p,
        "d_z": cohen_d_z(ddi),
    }


def _length_rho(ddi: Sequence[float], facts: Sequence[ItemFacts]) -> Row | None:
    """Return Spearman's rho of ddI against how many tokens longer the right option is."""
    longer = [f.right_lengths[0] - f.wrong_lengths[0] for f in facts]
    if len(ddi) < 3 or len(set(longer)) == 1 or len(set(ddi)) == 1:
        return None
    result = scipy_stats.spearmanr(ddi, longer)
    return {"rho": float(result.statistic), "p_two_sided": float(result.pvalue)}


def differences(before: Sequence[float], after: Sequence[float]) -> list[float]:
    """Return after - before, item by item."""
    return [y - x for x, y in zip(before, after, strict=True)]


def change(before: Sequence[float], after: Sequence[float]) -> Row:
    """Return the means before and after, and the mean change with its t interval."""
    moved = differences(before, after)
    return {
        "before": mean(before),
        "after": mean(after),
        "change": mean(moved),
        "ci95": listed(t_interval(moved)),
    }


def mean(values: Sequence[float]) -> float | None:
    """Return the mean, None of nothing."""
    return float(np.mean(values)) if len(values) else None


def listed(interval: tuple[float, float] | None) -> list[float] | None:
    """Return an interval as JSON holds it."""
    return None if interval is None else list(interval)
