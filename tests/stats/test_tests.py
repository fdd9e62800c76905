"""Statistics: the paper's own numbers, scipy, and laws that must hold."""

import itertools
import math

import numpy as np
import pytest
from scipy import stats

from cqa.stats.resampling import bca_interval
from cqa.stats.tests import (
    _null_law,
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
    welch,
    wilcoxon,
    wilson_interval,
)

# Table 1 of the paper: integer W+ at n = 20 and the printed one-sided p.
TABLE_1 = [
    (122, 0.273), (126, 0.226), (150, 0.049), (152, 0.041), (141, 0.095), (144, 0.077),
    (147, 0.062), (89, 0.727), (93, 0.676), (102, 0.551), (92, 0.689), (100, 0.580),
    (93, 0.676), (103, 0.536),
]  # fmt: skip


def differences_with(w_plus: int, n: int = 20) -> list[float]:
    """Return n untied differences whose positive ranks sum to w_plus."""
    left, signs = w_plus, {}
    for rank in range(n, 0, -1):
        signs[rank] = rank <= left
        left -= rank if signs[rank] else 0
    return [rank if signs[rank] else -rank for rank in range(1, n + 1)]


@pytest.mark.parametrize(("w_plus", "p"), TABLE_1)
def test_every_p_of_table_1_is_the_exact_law(w_plus, p):
    result = wilcoxon(differences_with(w_plus))
    assert result.w_plus == w_plus
    assert result.method == "exact"
    assert round(result.p, 3) == p


def test_epoch_5_of_the_paper_d_to_t_to_p():
    values = np.array(differences_with(152), dtype=float)
    values = (values - values.mean()) / values.std(ddof=1) + 0.5  # d_z is 0.5 by construction
    result = paired_t(values)
    assert cohen_d_z(values) == pytest.approx(0.5)
    assert result.t == pytest.approx(2.236, abs=5e-4)
    assert result.p_one_sided == pytest.approx(0.0188, abs=5e-5)


@pytest.mark.parametrize("alternative", ["greater", "less", "two-sided"])
@pytest.mark.parametrize("n", [1, 5, 12, 50])
def test_untied_differences_agree_with_scipy(n, alternative):
    values = np.random.default_rng(n).normal(0.2, 1, n)
    ours = wilcoxon(values, alternative)
    theirs = stats.wilcoxon(values, alternative=alternative, method="exact")
    assert ours.p == pytest.approx(theirs.pvalue, abs=1e-12)


@pytest.mark.parametrize("values", [[1, 1, 2, -3, 0], [0.5, 0.5, -0.5, 2], [0, 0, 1, -2, 3, 3]])
def test_ties_and_zeros_are_enumerated_with_pratts_ranks(values):
    ranks = stats.rankdata(np.abs(values))
    kept = [rank for rank, value in zip(ranks, values, strict=True) if value]
    observed = sum(rank for rank, value in zip(ranks, values, strict=True) if value > 0)
    sums = [
        sum(r for r, up in zip(kept, signs, strict=True) if up)
        for signs in itertools.product((0, 1), repeat=len(kept))
    ]
    result = wilcoxon(values)
    assert result.p == pytest.approx(np.mean(np.array(sums) >= observed), abs=1e-15)
    assert result.n_zero == values.count(0)
    assert result.method == "exact"


def test_all_zeros_decide_nothing():
    assert wilcoxon([0.0, 0.0]).p == 1
    assert paired_t([0.0, 0.0]).t is None


def test_a_thousand_are_exact_and_more_are_named_an_approximation():
    values = np.random.default_rng(3).normal(0.05, 1, 1001)
    exact, approximate = wilcoxon(values[:1000]), wilcoxon(values)
    assert exact.method == "exact"
    assert exact.p == pytest.approx(
        stats.wilcoxon(values[:1000], alternative="greater").pvalue, abs=1e-4
    )
    assert approximate.method == "normal approximation"
    assert approximate.p == pytest.approx(
        stats.wilcoxon(values, alternative="greater", method="approx", correction=False).pvalue
    )


def test_d_z_interval_of_the_paper():
    low, high = d_z_interval(0.5, 20)
    assert (round(low, 2), round(high, 2)) == (0.03, 0.96)


@pytest.mark.parametrize(("d_z", "n"), [(0.0, 5), (-1.2, 10), (3.0, 40), (0.1, 400)])
def test_d_z_interval_leaves_the_tails_it_claims(d_z, n):
    low, high = d_z_interval(d_z, n)
    t = d_z * math.sqrt(n)
    assert stats.nct.sf(t, n - 1, low * math.sqrt(n)) == pytest.approx(0.025, abs=1e-6)
    assert stats.nct.cdf(t, n - 1, high * math.sqrt(n)) == pytest.approx(0.025, abs=1e-6)


@pytest.mark.parametrize("n", [2, 3, 12, 60, 1000])
@pytest.mark.parametrize("d_z", [0.0, 0.3, 1.0, 3.0, 12.0, 70.0])
def test_d_z_interval_exists_for_every_size_and_holds_d_z(d_z, n):
    low, high = d_z_interval(d_z, n)
    assert low < d_z < high
    assert d_z_interval(-d_z, n) == pytest.approx((-high, -low), abs=1e-8)


def test_d_z_interval_of_huge_effects_goes_over_without_a_step():
    below, above = d_z_interval(4999 / math.sqrt(20), 20), d_z_interval(5001 / math.sqrt(20), 20)
    assert below == pytest.approx(above, rel=1e-3)


def test_t_interval_agrees_with_scipy_and_one_value_has_none():
    values = [0.3, -1.2, 2.2, 0.9]
    expected = stats.ttest_1samp(values, 0).confidence_interval()
    assert t_interval(values) == pytest.approx((expected.low, expected.high))
    assert t_interval([1.0]) is None


def test_paired_t_agrees_with_scipy():
    values = np.random.default_rng(5).normal(0.3, 1, 17)
    ours, theirs = paired_t(values), stats.ttest_1samp(values, 0, alternative="greater")
    assert (ours.t, ours.p_one_sided) == pytest.approx((theirs.statistic, theirs.pvalue))
    assert ours.p_two_sided == pytest.approx(stats.ttest_1samp(values, 0).pvalue)


@pytest.mark.parametrize(("df", "c"), [(2, 0.5642), (10, 0.9228), (19, 0.9600)])
def test_hedges_correction_is_that_of_his_table(df, c):
    assert hedges_correction(df + 1) == pytest.approx(c, abs=1e-4)
    assert hedges_correction(df + 1) == pytest.approx(1 - 3 / (4 * df - 1), rel=0.02)


def test_hedges_correction_takes_the_bias_out_of_d_z():
    values = np.random.default_rng(0).normal(0.5, 1, (40_000, 8))
    d_z = values.mean(1) / values.std(1, ddof=1)
    error = d_z.std() / math.sqrt(len(d_z))
    assert d_z.mean() - 0.5 > 5 * error
    assert d_z.mean() * hedges_correction(8) == pytest.approx(0.5, abs=3 * error)


def test_what_two_items_cannot_have_is_none():
    assert hedges_correction(2) is None
    assert power_of_t(0.5, 1) is detectable_d_z(1) is None
    assert cohen_d_av([1.0], [2.0]) is None
    assert wilson_interval(0, 0) is None


@pytest.mark.parametrize("value", [0.1, 0.7, -1e-9, 1e9])
@pytest.mark.parametrize("n", [2, 3, 20])
def test_equal_differences_have_no_spread_however_their_mean_is_rounded(value, n):
    values = [value] * n
    assert spread(values) == 0
    assert cohen_d_z(values) is paired_t(values).t is welch(values, values).t is None
    assert t_interval(values) == pytest.approx((value, value))
    assert wilcoxon(values).p == pytest.approx(2.0**-n if value > 0 else 1)


@pytest.mark.parametrize("seed", range(20))
def test_differences_that_are_equal_up_to_rounding_have_no_spread(seed):
    base = np.random.default_rng(seed).normal(-150, 40, 20)
    values = (base + 0.3) - base
    assert np.ptp(values) > 0
    assert spread(values) == 0
    assert cohen_d_z(values) is paired_t(values).t is None
    low, high = t_interval(values)
    assert low == high == pytest.approx(0.3)
    assert bca_interval(values) is bca_interval(values, clusters=["a", "b"] * 10) is None


def test_a_spread_above_rounding_is_kept():
    values = [0.3, 0.3 + 2e-6, 0.3 - 2e-6]
    assert spread(values) == pytest.approx(2e-6)
    assert cohen_d_z(values) == pytest.approx(0.3 / 2e-6)


def test_d_av_divides_by_the_mean_of_the_two_spreads():
    before, after = [1.0, 2.0, 3.0], [3.0, 5.0, 7.0]
    assert cohen_d_av(before, after) == pytest.approx(3 / 1.5)


def test_sign_test_counts_and_drops_zeros():
    result = sign_test([1.0] * 15 + [-1.0] * 5 + [0.0] * 3)
    assert (result.n_positive, result.n_nonzero) == (15, 20)
    assert result.p == pytest.approx(0.0207, abs=5e-5)  # as printed in tables of the sign test
    assert sign_test([0.0]).p == 1


@pytest.mark.parametrize(("n", "d_z", "alpha", "power"), [(20, 10 / 14.14214, 0.025, 0.85)])
def test_power_of_a_published_example(n, d_z, alpha, power):
    """Dalgaard, Introductory Statistics with R, section 8.3: 19.97 pairs have power 0.85."""
    assert power_of_t(d_z, n, alpha) >= power > power_of_t(d_z, n - 1, alpha)


def test_power_is_the_share_of_tests_that_find_the_effect():
    values = np.random.default_rng(8).normal(0.5, 1, (20_000, 20))
    p = stats.ttest_1samp(values, 0, axis=1, alternative="greater").pvalue
    assert power_of_t(0.5, 20) == pytest.approx((p <= 0.05).mean(), abs=0.01)
    assert power_of_t(0.0, 20) == pytest.approx(0.05)


@pytest.mark.parametrize("n", [2, 3, 20, 500, 5000])
def test_detectable_effect_has_the_power_it_promises(n):
    assert power_of_t(detectable_d_z(n), n) == pytest.approx(0.8)


def test_g_power_needs_27_pairs_for_a_medium_effect():
    assert power_of_t(0.5, 27) >= 0.8 > power_of_t(0.5, 26)


def test_wilson_interval_of_newcombes_example():
    """Newcombe 1998, "Two-sided confidence intervals for the single proportion": 81 of 263."""
    low, high = wilson_interval(81, 263)
    assert (round(low, 4), round(high, 4)) == (0.2553, 0.3662)


def test_leaving_out_each_item_in_turn_computes_one_law():
    values = np.random.default_rng(12).normal(0.1, 1, 300)
    known = _null_law.cache_info().misses
    for item in range(300):
        wilcoxon(np.delete(values, item))
    assert _null_law.cache_info().misses == known + 1
