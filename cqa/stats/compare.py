"""One group of pairs under the base and under an adapter: everything the report says of it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence

import numpy as np
from scipy import stats as scipy_stats

from cqa.schema.comparison import (
    Accuracy,
    BaseGroup,
    BySource,
    CandidateChange,
    Candidates,
    Change,
    Comparison,
    EffectSizes,
    EntropyChange,
    LengthBalance,
    Lengths,
    Power,
    PowerAt,
    RankChange,
    Share,
    Signs,
    VariantChange,
    Variants,
)
from cqa.schema.result import Correlation
from cqa.stats.bayes import bayes_factor
from cqa.stats.change import differences, mean, paired_change
from cqa.stats.equivalence import equivalence
from cqa.stats.information import entropy
from cqa.stats.items import LENGTHS, OF_PMI, ItemFacts, ItemScore
from cqa.stats.resampling import bca_interval
from cqa.stats.shrinkage import shrinkage
from cqa.stats.tests import (
    ALPHA,
    LARGE,
    MEDIUM,
    SMALL,
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
    wilcoxon,
    wilson_interval,
)


def base_group(base: Mapping[str, ItemScore], facts: Mapping[str, ItemFacts]) -> BaseGroup:
    """Return what a group of at least one item is before any adapter."""
    values = [score.delta_i_nats for score in base.values()]
    n, n_right = len(values), sum(value > 0 for value in values)
    return BaseGroup(
        n=n,
        mean_delta_i_nats=float(np.mean(values)),
        sd_delta_i_nats=spread(values),
        sign_accuracy=n_right / n,
        sign_accuracy_ci95=wilson_interval(n_right, n),
        accuracy=_accuracy(list(base.values())),
        accuracy_by_chance=float(np.mean([1 / len(score.p_given) for score in base.values()])),
        power=Power(
            f"one-sided paired t, alpha {ALPHA:g}",
            detectable_d_z(n),
            PowerAt(*(power_of_t(d_z, n) for d_z in (SMALL, MEDIUM, LARGE))),
        ),
        lengths=Lengths(*(_balance([facts[i] for i in base], k) for k in range(len(LENGTHS)))),
        n_boundary_merge=sum(facts[i].boundary_merge for i in base),
        languages=dict(Counter(facts[i].lang or "unknown" for i in base).most_common()),
        n_sources=len({facts[i].source_id for i in base} - {None}) or None,
        n_without_source=sum(facts[i].source_id is None for i in base),
    )


def _balance(facts: Sequence[ItemFacts], k: int) -> LengthBalance:
    """Compare right and wrong options in unit k of LENGTHS; a sum favours whatever is shorter."""
    right = [float(f.right_lengths[k]) for f in facts]
    wrong = [f.wrong_lengths[k] for f in facts]
    return LengthBalance(
        mean_right=float(np.mean(right)),
        mean_wrong=float(np.mean(wrong)),
        n_right_longer=sum(a > b for a, b in zip(right, wrong, strict=True)),
        n_right_shorter=sum(a < b for a, b in zip(right, wrong, strict=True)),
    )


def compare_items(
    base: Mapping[str, ItemScore],
    adapted: Mapping[str, ItemScore],
    facts: Mapping[str, ItemFacts],
    margin_nats: float | None = None,
) -> Comparison:
    """Return the statistics of ddI = dI_B - dI_A over the items that both models scored.

    Args:
        base: Scores under model A, by item id.
        adapted: Scores under model B.
        facts: Lengths and sources of the items.
        margin_nats: Equivalence margin; without one, d_z of 0.2.
    """
    ids = [item_id for item_id in base if item_id in adapted]
    a, b = [base[i] for i in ids], [adapted[i] for i in ids]

    def both(value: Callable[[ItemScore], float]) -> tuple[list[float], list[float]]:
        return [value(x) for x in a], [value(y) for y in b]

    before, after = both(lambda s: s.delta_i_nats)
    ddi = differences(before, after)
    sources = [facts[i].source_id for i in ids]
    d_cond = differences(*both(lambda s: s.conditional_nats))
    d_prior = differences(*both(lambda s: s.prior_nats))
    change = _change(before, after)
    return Comparison(
        n=change.n,
        delta_i_nats=change.delta_i_nats,
        wilcoxon=change.wilcoxon,
        sd_ddi_nats=spread(ddi),
        mean_d_cond_nats=mean(d_cond),
        mean_d_prior_nats=mean(d_prior),
        ci95_d_cond_nats=t_interval(d_cond),
        ci95_d_prior_nats=t_interval(d_prior),
        bca95_nats=bca_interval(ddi),
        by_source=_by_source(ddi, sources),
        domains=_by_domain(before, after, [facts[i].domain for i in ids]),
        signs=_signs(before, after),
        accuracy_base=_accuracy(a),
        accuracy=_accuracy(b),
        t=paired_t(ddi),
        sign_test=sign_test(ddi),
        effect=_effect_sizes(before, after),
        equivalence=equivalence(ddi, sources, margin_nats),
        bayes_factor_10=bayes_factor(ddi, sources),
        entropy_per_token=EntropyChange(
            given_context=paired_change(*both(lambda s: s.entropy_given_nats)),
            null=paired_change(*both(lambda s: s.entropy_null_nats)),
        ),
        candidates=Candidates(
            given_context=_candidates([s.p_given for s in a], [s.p_given for s in b]),
            null=_candidates([s.p_null for s in a], [s.p_null for s in b]),
        ),
        variants=Variants(
            _null2([x.delta_i_null2_nats for x in a], [y.delta_i_null2_nats for y in b]),
            *(
                _variant([x.variants[k] for x in a], [y.variants[k] for y in b])
                for k in range(len(OF_PMI))
            ),
        ),
        ddi_against_length_rho=_length_rho(ddi, [facts[i] for i in ids]),
        shrinkage=shrinkage(before, after, sources),
    )


def _change(before: Sequence[float], after: Sequence[float]) -> Change:
    """Return the change of dI with its interval and test: of a group, or of a part of one."""
    return Change(len(before), paired_change(before, after), wilcoxon(differences(before, after)))


def _variant(before: Sequence[float], after: Sequence[float]) -> VariantChange:
    ddi = differences(before, after)
    return VariantChange(paired_change(before, after), wilcoxon(ddi).p, cohen_d_z(ddi))


def _null2(before: Sequence[float | None], after: Sequence[float | None]) -> VariantChange | None:
    was, now = ([value for value in values if value is not None] for values in (before, after))
    return _variant(was, now) if len(was) == len(now) == len(before) else None


def _by_domain(
    before: Sequence[float], after: Sequence[float], domains: Sequence[str | None]
) -> dict[str, Change]:
    """Return the change by domain; nothing where there are not two, for one is the whole group."""
    parts: dict[str, tuple[list[float], list[float]]] = {}
    for x, y, domain in zip(before, after, domains, strict=True):
        if domain is not None:
            was, now = parts.setdefault(domain, ([], []))
            was.append(x)
            now.append(y)
    return {d: _change(*parts[d]) for d in sorted(parts)} if len(parts) > 1 else {}


def _signs(before: Sequence[float], after: Sequence[float]) -> Signs:
    n = len(before)
    was, now = ([value > 0 for value in values] for values in (before, after))
    moved = [(x, y) for x, y in zip(was, now, strict=True) if x != y]
    return Signs(
        sign_accuracy_base=sum(was) / n if n else None,
        sign_accuracy=sum(now) / n if n else None,
        sign_accuracy_base_ci95=wilson_interval(sum(was), n),
        sign_accuracy_ci95=wilson_interval(sum(now), n),
        n_sign_gained=sum(y for _, y in moved),
        n_sign_lost=sum(x for x, _ in moved),
    )


def _accuracy(scores: Sequence[ItemScore]) -> Accuracy:
    return Accuracy(
        sum=_share([score.is_first for score in scores]),
        per_byte=_share([score.is_first_per_byte for score in scores]),
    )


def _share(hits: Sequence[bool]) -> Share:
    n = len(hits)
    return Share(sum(hits) / n if n else None, wilson_interval(sum(hits), n))


def _effect_sizes(before: Sequence[float], after: Sequence[float]) -> EffectSizes:
    ddi = differences(before, after)
    d_z, d_av, correction = cohen_d_z(ddi), cohen_d_av(before, after), hedges_correction(len(ddi))
    if d_z is None:
        return EffectSizes(None, None, None, None, d_av)
    low, high = d_z_interval(d_z, len(ddi))
    if correction is None:
        return EffectSizes(d_z, (low, high), None, None, d_av)
    corrected = (low * correction, high * correction)
    return EffectSizes(d_z, (low, high), d_z * correction, corrected, d_av)


def _by_source(ddi: Sequence[float], sources: Sequence[str | None]) -> BySource | None:
    """Return what remains when items of one source count as one; None where no source is named."""
    if not any(sources):
        return None
    names = [source or f"\0{k}" for k, source in enumerate(sources)]  # unnamed: each its own
    by_name: dict[str, list[float]] = {}
    for name, value in zip(names, ddi, strict=True):
        by_name.setdefault(name, []).append(value)
    return BySource(
        n_sources=len(by_name),
        n_unnamed=sum(source is None for source in sources),
        bca95_nats=bca_interval(ddi, clusters=names),
        wilcoxon_of_source_means=wilcoxon([float(np.mean(v)) for v in by_name.values()]),
    )


def _candidates(
    before: Sequence[tuple[float, ...]], after: Sequence[tuple[float, ...]]
) -> CandidateChange:
    """Return what became of p over each item's candidates, the right one first in each."""
    ranks = []
    for rank in range(max(map(len, before), default=0)):
        pairs = [_at_rank(p, q, rank) for p, q in zip(before, after, strict=True) if p[rank:]]
        was, now = [p for p, _ in pairs], [q for _, q in pairs]
        ranks.append(RankChange(len(pairs), paired_change(was, now)))
    entropies = ([entropy(p) for p in ps] for ps in (before, after))
    return CandidateChange(paired_change(*entropies), tuple(ranks))


def _at_rank(p: Sequence[float], q: Sequence[float], rank: int) -> tuple[float, float]:
    order = [0, *sorted(range(1, len(p)), key=lambda k: -p[k])]
    return p[order[rank]], q[order[rank]]


def _length_rho(ddi: Sequence[float], facts: Sequence[ItemFacts]) -> Correlation | None:
    """Return Spearman's rho of ddI against how many tokens longer the right option is."""
    longer = [f.right_lengths[0] - f.wrong_lengths[0] for f in facts]
    if len(ddi) < 3 or len(set(longer)) == 1 or len(set(ddi)) == 1:
        return None
    result = scipy_stats.spearmanr(ddi, longer)
    return Correlation(float(result.statistic), float(result.pvalue))
