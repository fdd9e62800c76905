"""Resampling tests and intervals: against enumeration, scipy, and the error rates they promise."""

import itertools
import tracemalloc

import numpy as np
import pytest
from scipy import stats

from cqa.stats.resampling import (
    _d_z_without,
    _z_without,
    bca_interval,
    choose_epoch,
    leave_one_out_choice,
    max_t_sign_flip,
    permutation_welch,
)
from cqa.stats.tests import cohen_d_z, welch


def t_of(values):
    return np.mean(values) / (np.std(values, ddof=1) / np.sqrt(len(values)))


def test_max_t_equals_the_enumeration_by_hand():
    table = np.random.default_rng(1).normal(0.4, 1, (3, 8))
    largest = [
        max(t_of(row * signs) for row in table)
        for signs in itertools.product((1, -1), repeat=table.shape[1])
    ]
    result = max_t_sign_flip({str(k): row for k, row in enumerate(table)})
    assert result.method == "exact"
    for k, row in enumerate(table):
        assert result.t[str(k)] == pytest.approx(t_of(row))
        expected = np.mean(np.array(largest) >= t_of(row) - 1e-9)
        assert result.p_corrected[str(k)] == pytest.approx(expected)


@pytest.mark.parametrize("seed", [2, 64, 65, 84, 87])
def test_p_is_never_below_that_of_the_observed_pattern(seed):
    """Spreads at the edge of rounding, where one pattern's t is infinite and its twin's is not."""
    rng = np.random.default_rng(seed)
    n = int(rng.integers(3, 9))
    values = 0.5 * (1 + 10 ** rng.uniform(-6.2, -5.8) * rng.standard_normal(n))
    assert max_t_sign_flip({"a": values}).p_corrected["a"] == 0.5**n


def test_max_t_of_one_epoch_is_the_plain_sign_flip_test():
    values = np.random.default_rng(2).normal(0.3, 1, 30)
    result = max_t_sign_flip({"only": values}, draws=20_000)
    expected = stats.ttest_1samp(values, 0, alternative="greater").pvalue
    assert result.p_corrected["only"] == pytest.approx(expected, abs=0.01)


def test_looking_at_more_epochs_never_lowers_p():
    table = np.random.default_rng(3).normal(0.3, 1, (5, 20))
    named = {str(k): row for k, row in enumerate(table)}
    alone = max_t_sign_flip({"0": named["0"]}, draws=5000).p_corrected["0"]
    assert max_t_sign_flip(named, draws=5000).p_corrected["0"] >= alone


def test_max_t_keeps_its_error_rate_over_seven_dependent_epochs():
    rng = np.random.default_rng(4)
    rejected = 0
    for trial in range(200):
        drift = rng.normal(0, 1, (7, 20)).cumsum(axis=0)  # no effect, epochs alike
        p = max_t_sign_flip(dict(enumerate(drift)), draws=300, seed=trial).p_corrected
        rejected += min(p.values()) <= 0.05
    assert stats.binomtest(rejected, 200, 0.05, alternative="greater").pvalue > 0.001


@pytest.mark.parametrize("n", [8, 40])
def test_bca_agrees_with_scipy(n):
    values = np.random.default_rng(n).exponential(1, n)
    ours = bca_interval(values, draws=20_000)
    theirs = stats.bootstrap(
        (values,), np.mean, n_resamples=20_000, method="BCa", rng=np.random.default_rng(0)
    ).confidence_interval
    assert ours == pytest.approx((theirs.low, theirs.high), rel=0.03)


def test_clusters_of_copies_count_once():
    values = np.random.default_rng(7).normal(0, 1, 12)
    repeated, names = np.repeat(values, 5), np.repeat([str(k) for k in range(12)], 5)
    assert bca_interval(repeated, clusters=names) == pytest.approx(bca_interval(values), abs=0.08)
    low, high = bca_interval(repeated)
    wide_low, wide_high = bca_interval(repeated, clusters=names)
    assert wide_high - wide_low > 1.5 * (high - low)


@pytest.mark.parametrize("values", [[1.0], [2.0, 2.0, 2.0]])
def test_an_interval_that_does_not_exist_is_none(values):
    assert bca_interval(values) is None


def test_permutation_welch_agrees_with_scipy_where_spreads_differ():
    rng = np.random.default_rng(9)
    a, b = rng.normal(0.6, 3, 15), rng.normal(0, 1, 40)
    ours = permutation_welch({"only": a}, {"only": b})
    theirs = stats.ttest_ind(a, b, equal_var=False).pvalue
    assert ours.p["only"] == pytest.approx(theirs, abs=0.05)
    assert ours.p_corrected == ours.p


def test_permutation_welch_equals_the_enumeration_by_hand():
    table = np.random.default_rng(3).normal(0, 1, (2, 8)) + 5
    table[:, :3] += 1.5

    def welch_ts(first):
        rest = [k for k in range(8) if k not in first]
        return [abs(welch(row[list(first)], row[rest]).t) for row in table]

    observed = welch_ts((0, 1, 2))
    deals = [welch_ts(first) for first in itertools.combinations(range(8), 3)]
    epochs = ({str(k): row[part] for k, row in enumerate(table)} for part in (np.s_[:3], np.s_[3:]))
    ours = permutation_welch(*epochs, draws=40_000)
    for k, t in enumerate(observed):
        alone = np.mean([deal[k] >= t - 1e-9 for deal in deals])
        joint = np.mean([max(deal) >= t - 1e-9 for deal in deals])
        assert ours.p[str(k)] == pytest.approx(alone, abs=0.01)
        assert ours.p_corrected[str(k)] == pytest.approx(joint, abs=0.01)


def test_the_largest_of_many_differences_keeps_its_error_rate():
    """Twelve unrelated epochs without a difference: the smallest p deceives, corrected it holds."""
    rng = np.random.default_rng(14)
    alone, corrected = 0, 0
    for trial in range(150):
        a, b = (dict(enumerate(rng.normal(0, 1, (12, n)))) for n in (15, 20))
        found = permutation_welch(a, b, draws=200, seed=trial)
        alone += min(found.p.values()) <= 0.05
        corrected += min(found.p_corrected.values()) <= 0.05
    assert alone > 40
    assert stats.binomtest(corrected, 150, 0.05, alternative="greater").pvalue > 0.001


def test_welch_agrees_with_scipy():
    rng = np.random.default_rng(10)
    a, b = rng.normal(0.6, 3, 15), rng.normal(0, 1, 40)
    ours, theirs = welch(a, b), stats.ttest_ind(a, b, equal_var=False)
    interval = theirs.confidence_interval()
    assert (ours.t, ours.df, ours.p_two_sided) == pytest.approx(
        (theirs.statistic, theirs.df, theirs.pvalue)
    )
    assert ours.ci95 == pytest.approx((interval.low, interval.high))
    assert welch([1.0], [2.0, 3.0]).t is None


def test_the_paper_interaction_at_epoch_5():
    def sample(mean, d_z):
        values = np.linspace(-1, 1, 20)
        return values / values.std(ddof=1) * abs(mean / d_z) + mean

    result = welch(sample(9.58, 0.50), sample(-3.04, -0.12))
    assert result.t == pytest.approx(1.78, abs=0.01)
    assert result.p_two_sided == pytest.approx(0.084, abs=0.001)


def test_the_choice_is_the_smallest_p_and_its_stability_is_counted():
    rng = np.random.default_rng(11)
    epochs = {"weak": rng.normal(0, 1, 12), "strong": rng.normal(1.5, 1, 12)}
    epochs = {name: list(values) for name, values in epochs.items()}
    assert choose_epoch(epochs) == "strong"
    assert leave_one_out_choice(epochs) == {"weak": 0, "strong": 12}


@pytest.mark.parametrize("kind", ["untied", "tied"])
def test_the_choice_without_each_item_is_the_same_for_many_items(kind):
    rng = np.random.default_rng(18)
    table = rng.normal(0, 0.1, (3, 140)) + rng.normal(0, 1, 140)
    table += 0.1 - table.mean(axis=1, keepdims=True)  # so alike that one item decides
    if kind == "tied":
        table = np.round(table, 1)  # some are zero, too
    epochs = {str(k): list(row) for k, row in enumerate(table)}
    found = leave_one_out_choice(epochs)
    expected = dict.fromkeys(epochs, 0)
    for item in range(140):
        expected[choose_epoch({k: np.delete(row, item) for k, row in epochs.items()})] += 1
    assert found == expected
    assert max(found.values()) < 140


def test_every_item_left_out_gives_the_law_of_the_rest():
    values = np.round(np.random.default_rng(16).normal(0.2, 1, 30), 1)
    z, d_z = _z_without(values), _d_z_without(values)
    for item in range(30):
        rest = np.delete(values, item)
        ranks = stats.rankdata(np.abs(rest))
        spread = np.sqrt((ranks[rest != 0] ** 2).sum() / 4)
        w_plus = ranks[rest > 0].sum()
        assert z[item] == pytest.approx((w_plus - ranks[rest != 0].sum() / 2) / spread)
        assert d_z[item] == pytest.approx(cohen_d_z(rest))


def test_thousands_of_items_need_no_table_of_all_patterns():
    values = np.random.default_rng(17).normal(0.05, 1, 4000)
    tracemalloc.start()
    found = max_t_sign_flip({"only": values}, draws=2000)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 80e6  # in one piece, 2,000 × 4,000 signs and their differences take 128 MB
    expected = stats.ttest_1samp(values, 0, alternative="greater").pvalue
    assert found.p_corrected["only"] == pytest.approx(expected, abs=0.02)


@pytest.mark.parametrize("value", [0.1, 0.7, 3.0])
def test_equal_differences_have_the_p_of_one_pattern(value):
    epochs = {"same": [value] * 9, "other": [1.0, -1.0, 2.0, -2.0, 3.0, -3.0, 1.5, -1.5, 0.1]}
    assert max_t_sign_flip(epochs).p_corrected["same"] == 2**-9


def test_equal_p_is_decided_by_the_larger_d_z():
    small, large = [1.0, 2.0, 3.0, 4.0], [3.0, 3.1, 3.2, 3.3]
    assert choose_epoch({"small": small, "large": large}) == "large"
