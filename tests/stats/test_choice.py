"""Choosing an adapter: cross-fitting, stability, who makes a mean, seeds, small effects."""

import numpy as np
import pytest
from scipy import stats

from cqa.stats.agreement import weigh
from cqa.stats.choice import choose, cross_fit, paper_choice, stability
from cqa.stats.clusters import by_source
from cqa.stats.equivalence import jackknife_error, standardised_change
from cqa.stats.seeds import over_seeds
from cqa.stats.tests import d_z_interval


def test_the_largest_studentised_mean_is_chosen_not_the_largest_mean():
    loud = [10.0, -8, 9, -7, 6, -3, 8, -5]
    steady = [0.5, 0.6, 0.4, 0.5, 0.7, 0.5, 0.6, 0.4]
    assert choose(by_source({"loud": loud, "steady": steady}, [None] * 8)) == "steady"


def test_a_cross_fitted_choice_never_sees_the_source_it_is_used_on():
    rng = np.random.default_rng(0)
    table = rng.normal(size=(20, 60))
    sources = [f"s{k // 2}" for k in range(60)]
    plain = cross_fit({f"{k}": row for k, row in enumerate(table)}, sources)
    assert plain.n_folds == sum(plain.n_chosen.values()) == 10
    for source in range(0, 30, 7):
        own = slice(2 * source, 2 * source + 2)
        moved = table.copy()
        moved[:, own] += 50 * rng.normal(size=(20, 2))
        found = cross_fit({f"{k}": row for k, row in enumerate(moved)}, sources)
        chosen = [np.flatnonzero(t[:, own.start] == f.values[own.start]) for t, f in
                  ((table, plain), (moved, found))]  # fmt: skip
        assert chosen[0] == chosen[1]


def test_cross_fitting_is_unbiased_under_the_null():
    rng = np.random.default_rng(1)
    means = []
    for run in range(200):
        values = {f"{k}": rng.normal(size=24) for k in range(6)}
        found = cross_fit(values, [None] * 24, seed=run)
        means.append(np.mean(found.values))
    assert abs(np.mean(means)) < 4 * stats.sem(means)


def test_three_sources_are_too_few_to_cross_fit():
    assert cross_fit({"a": [1.0, 2, 3]}, [None] * 3) is None


def test_a_clear_choice_is_stable_and_equals_share():
    rng = np.random.default_rng(2)
    noise = rng.normal(size=40)
    clear = stability(by_source({"a": noise + 2, "b": noise}, [None] * 40))
    assert clear["a"] > 0.99
    even = stability(by_source({k: rng.normal(0.2, 1, 40) for k in "abcd"}, [None] * 40))
    assert sum(even.values()) == pytest.approx(1)
    assert max(even.values()) < 0.95


def test_one_source_that_makes_the_mean_is_named():
    weights = weigh([5.0, 6.0, -0.5, -0.4, -0.3, -0.2], ["A", "A", "B", "C", "D", None])
    assert weights.heaviest_source == "A"
    assert weights.turned_by_source
    assert weights.without_source == pytest.approx(-0.35)
    steady = weigh([0.5, 0.4, 0.6, 0.5], ["A", "B", "C", "D"])
    assert not steady.turned_by_source


def test_a_tenth_of_the_items_that_makes_the_mean_is_seen():
    values = [-0.2] * 18 + [9.0, 8.0]
    weights = weigh(values, [None] * 20)
    assert weights.n_items_left_out == 2
    assert weights.turned_by_items
    assert not weigh([0.3] * 19 + [0.4], [None] * 20).turned_by_items
    assert weigh([1.0, -0.5], [None] * 2).without_items is None


def test_d_z_has_the_interval_of_the_noncentral_t_at_least():
    x = np.random.default_rng(3).normal(0.1, 1, 200)
    found = standardised_change(x, [None] * 200)
    low, high = d_z_interval(found.d_z, 200, 0.90)
    assert found.ci90[0] <= low + 1e-6
    assert found.ci90[1] >= high - 1e-6
    assert found.ci90 == pytest.approx([low, high], abs=0.02)


def test_a_small_change_of_many_items_lies_within_the_margin_and_of_one_source_not():
    rng = np.random.default_rng(4)
    x = rng.normal(0, 1, 900)
    assert standardised_change(x, [None] * 900).within(0.2)
    few = [f"s{k % 6}" for k in range(900)]
    shared = x + rng.normal(0, 1, 6)[np.arange(900) % 6]
    assert not standardised_change(shared, few).within(0.2)
    assert standardised_change([0.5] * 9, [None] * 9).d_z is None


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("law", ["normal", "exponential"])
def test_effects_at_the_margin_are_rarely_called_small(law, sign):
    rng = np.random.default_rng(5)
    called = 0
    for _ in range(200):
        x = getattr(rng, law)(size=400)
        x = (x - (law == "exponential")) + 0.2
        called += standardised_change(sign * x, [None] * 400).within(0.2)
    assert called <= 22


def test_the_error_of_unequal_sources_is_the_jackknifes():
    rng = np.random.default_rng(8)
    numbers = np.repeat(np.arange(6), [12, 5, 3, 1, 1, 2])
    x = rng.normal(0, 1, len(numbers)) + rng.normal(0, 1, 6)[numbers]
    x -= x.mean()
    left_out = np.array([x[numbers != k].mean() for k in range(6)])
    sums, sizes = np.bincount(numbers, weights=x), np.bincount(numbers)
    expected = np.sqrt(5 / 6 * (left_out**2).sum())
    assert jackknife_error(sums, sizes) == pytest.approx(expected, rel=1e-12)
    alone = jackknife_error(x, np.ones(len(x)))
    assert alone == pytest.approx(stats.sem(x), rel=1e-12)


def test_seeds_widen_the_interval_as_a_t_test_over_seeds_does():
    rng = np.random.default_rng(6)
    seeds = rng.normal(0.5, 1, 4)
    table = seeds[:, None] + rng.normal(0, 0.01, (4, 50))
    found = over_seeds(table.tolist(), [None] * 50)
    expected = stats.ttest_1samp(table.mean(1), 0, alternative="greater")
    assert found.df == 3
    assert found.p_greater == pytest.approx(expected.pvalue, rel=0.02)


def test_items_alone_decide_where_seeds_agree():
    x = np.random.default_rng(7).normal(0.3, 1, 40)
    found = over_seeds([x.tolist()] * 5, [None] * 40)
    assert found.error == pytest.approx(stats.sem(x), rel=0.02)
    assert found.sd_of_seeds == pytest.approx(0, abs=1e-12)
    assert over_seeds([x.tolist()], [None] * 40) is None


def test_equal_p_is_decided_by_the_larger_d_z():
    small, large = [1.0, 2.0, 3.0, 4.0], [3.0, 3.1, 3.2, 3.3]
    assert paper_choice({"small": small, "large": large}) == "large"
