"""Resampling tests and intervals: against enumeration, scipy, and the error rates they promise."""

import numpy as np
import pytest
from scipy import stats

from cqa.stats.resampling import (
    bca_interval,
)
from cqa.stats.tests import welch


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
