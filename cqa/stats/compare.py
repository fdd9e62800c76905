"""One group of pairs under the base and under an adapter: everything the report says of it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

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
from cqa.stats.clusters import Values, source_numbers, sum_by_source
from cqa.stats.columns import Facts, ItemScores, Numbers
from cqa.stats.equivalence import equivalence
from cqa.stats.information import entropies
from cqa.stats.items import LENGTHS, OF_PMI
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


def base_group(base: ItemScores, facts: Facts) -> BaseGroup:
    """Return what a group of at least one item is before any adapter."""
    values = base.column("delta_i_nats")
    n, n_right = len(values), int((values > 0).sum())
    sources = facts.labels("source_id", base.rows)
    candidates = np.sum(~np.isnan(base.candidates("p_given")), axis=1)
    return BaseGroup(
        n=n,
        mean_delta_i_nats=float(np.mean(values)),
        sd_delta_i_nats=spread(values),
        sign_accuracy=n_right / n,
        sign_accuracy_ci95=wilson_interval(n_right, n),
        accuracy=_accuracy(base),
        accuracy_by_chance=float(np.mean(1 / candidates)),
        power=Power(
            f"one-sided paired t, alpha {ALPHA:g}",
            detectable_d_z(n),
            PowerAt(*(power_of_t(d_z, n) for d_z in (SMALL, MEDIUM, LARGE))),
        ),
        lengths=Lengths(*(_balance(facts, base.rows, k) for k in range(len(LENGTHS)))),
        n_boundary_mismatch=facts.n_merges(base.rows),
        languages=dict(
            Counter(n or "unknown" for n in facts.labels("lang", base.rows)).most_common()
        ),
        n_sources=len(set(sources) - {None}) or None,
        n_without_source=sum(source is None for source in sources),
    )


def _balance(facts: Facts, rows: Numbers, k: int) -> LengthBalance:
    """Compare right and wrong options in unit k of LENGTHS; a sum favours whatever is shorter."""
    right, wrong = facts.right_lengths(rows, k), facts.wrong_lengths(rows, k)
    return LengthBalance(
        mean_right=float(np.mean(right)),
        mean_wrong=float(np.mean(wrong)),
        n_right_longer=int((right > wrong).sum()),
        n_right_shorter=int((right < wrong).sum()),
    )


def compare_items(
    base: ItemScores, adapted: ItemScores, facts: Facts, margin_nats: float | None = None
) -> Comparison:
    """Return the statistics of ddI = dI_B - dI_A over the items that both models scored.

    Args:
        base: Scores under model A.
        adapted: Scores under model B.
        facts: Lengths and sources of the items.
        margin_nats: Equivalence margin; without one, d_z of 0.2.
    """
    a, b = base.only(adapted), adapted.only(base)

    def both(name: str, k: int | None = None) -> tuple[Values, Values]:
        return a.column(name, k), b.column(name, k)

    before, after = both("delta_i_nats")
    ddi = differences(before, after)
    sources = facts.labels("source_id", a.rows)
    d_cond = differences(*both("conditional_nats"))
    d_prior = differences(*both("prior_nats"))
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
        domains=_by_part(before, after, facts.labels("domain", a.rows)),
        languages=_by_part(before, after, facts.labels("lang", a.rows)),
        signs=_signs(before, after),
        accuracy_base=_accuracy(a),
        accuracy=_accuracy(b),
        t=paired_t(ddi),
        sign_test=sign_test(ddi),
        effect=_effect_sizes(before, after),
        equivalence=equivalence(ddi, sources, margin_nats),
        bayes_factor_10=bayes_factor(ddi, sources),
        entropy_per_token=_entropy(both("entropy_given_nats"), both("entropy_null_nats")),
        candidates=Candidates(
            given_context=_candidates(a.candidates("p_given"), b.candidates("p_given")),
            null=_candidates(a.candidates("p_null"), b.candidates("p_null")),
        ),
        variants=Variants(
            _null2(*both("delta_i_null2_nats")),
            *(_variant(*both("variants", k)) for k in range(len(OF_PMI))),
        ),
        ddi_against_length_rho=_length_rho(
            ddi, facts.right_lengths(a.rows, 0) - facts.wrong_lengths(a.rows, 0)
        ),
        shrinkage=shrinkage(before, after, sources),
    )


def _change(before: Values, after: Values) -> Change:
    """Return the change of dI with its interval and test: of a group, or of a part of one."""
    return Change(len(before), paired_change(before, after), wilcoxon(differences(before, after)))


def _variant(before: Values, after: Values) -> VariantChange:
    ddi = differences(before, after)
    return VariantChange(paired_change(before, after), wilcoxon(ddi).p, cohen_d_z(ddi))


def _null2(before: Values, after: Values) -> VariantChange | None:
    return _variant(before, after) if _known(before, after) else None


def _entropy(given: tuple[Values, Values], null: tuple[Values, Values]) -> EntropyChange | None:
    known = _known(*given, *null)
    return EntropyChange(paired_change(*given), paired_change(*null)) if known else None


def _known(*columns: Values) -> bool:
    """Whether every item has a number in every column; NaN is none."""
    return not any(np.isnan(values).any() for values in columns)


def _by_part(before: Values, after: Values, labels: Sequence[str | None]) -> dict[str, Change]:
    """Return the change by domain, or by language; nothing where there are not two of them."""
    names = sorted({label for label in labels if label is not None})
    if len(names) < 2:
        return {}
    number: dict[str | None, int] = {name: k for k, name in enumerate(names)}
    numbers = np.array([number.get(label, -1) for label in labels])
    places = np.argsort(numbers, kind="stable")
    ends = np.searchsorted(numbers[places], np.arange(len(names) + 1))
    parts = {name: places[ends[k] : ends[k + 1]] for k, name in enumerate(names)}
    return {name: _change(before[held], after[held]) for name, held in parts.items()}


def _signs(before: Values, after: Values) -> Signs:
    n = len(before)
    was, now = before > 0, after > 0
    n_was, n_now = int(was.sum()), int(now.sum())
    return Signs(
        sign_accuracy_base=n_was / n if n else None,
        sign_accuracy=n_now / n if n else None,
        sign_accuracy_base_ci95=wilson_interval(n_was, n),
        sign_accuracy_ci95=wilson_interval(n_now, n),
        n_sign_gained=int((now & ~was).sum()),
        n_sign_lost=int((was & ~now).sum()),
    )


def _accuracy(scores: ItemScores) -> Accuracy:
    return Accuracy(
        sum=_share(scores.column("is_first")), per_byte=_share(scores.column("is_first_per_byte"))
    )


def _share(hits: Values) -> Share:
    n, n_hits = len(hits), int(hits.sum())
    return Share(n_hits / n if n else None, wilson_interval(n_hits, n))


def _effect_sizes(before: Values, after: Values) -> EffectSizes:
    ddi = differences(before, after)
    d_z, d_av, correction = cohen_d_z(ddi), cohen_d_av(before, after), hedges_correction(len(ddi))
    if d_z is None:
        return EffectSizes(None, None, None, None, d_av)
    low, high = d_z_interval(d_z, len(ddi))
    if correction is None:
        return EffectSizes(d_z, (low, high), None, None, d_av)
    corrected = (low * correction, high * correction)
    return EffectSizes(d_z, (low, high), d_z * correction, corrected, d_av)


def _by_source(ddi: Values, sources: Sequence[str | None]) -> BySource | None:
    """Return what remains when items of one source count as one; None where no source is named."""
    if not any(sources):
        return None
    names = [source or f"\0{k}" for k, source in enumerate(sources)]  # unnamed: each its own
    numbers = source_numbers(names)
    sizes = np.bincount(numbers)
    return BySource(
        n_sources=len(sizes),
        n_unnamed=sum(source is None for source in sources),
        bca95_nats=bca_interval(ddi, clusters=names),
        wilcoxon_of_source_means=wilcoxon(sum_by_source(ddi, numbers) / sizes),
    )


def _candidates(before: Values, after: Values) -> CandidateChange:
    """Return what became of p over each item's candidates: (n, candidates), the right one first."""
    most = max(before.shape[1], after.shape[1])
    before, after = (
        np.pad(p, ((0, 0), (0, most - p.shape[1])), constant_values=np.nan) for p in (before, after)
    )
    wrong = np.argsort(-before[:, 1:], axis=1, kind="stable") + 1  # no candidate, NaN, comes last
    order = np.concatenate([np.zeros((len(before), 1), dtype=wrong.dtype), wrong], axis=1)
    was, now = (np.take_along_axis(p, order, axis=1) for p in (before, after))
    ranks = []
    for rank in range(was.shape[1]):
        there = ~np.isnan(was[:, rank])
        if there.any():
            change = paired_change(was[there, rank], now[there, rank])
            ranks.append(RankChange(int(there.sum()), change))
    return CandidateChange(paired_change(entropies(before), entropies(after)), tuple(ranks))


def _length_rho(ddi: Values, longer: Values) -> Correlation | None:
    """Return Spearman's rho of ddI against how many tokens longer the right option is."""
    if len(ddi) < 3 or np.ptp(longer) == 0 or np.ptp(ddi) == 0:
        return None
    result = scipy_stats.spearmanr(ddi, longer)
    return Correlation(float(result.statistic), float(result.pvalue))
