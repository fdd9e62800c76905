"""Shrinkage told from the rest of a change."""

import numpy as np
import pytest
from scipy import stats

from cqa.stats.shrinkage import shrinkage


def test_the_line_is_that_of_least_squares_and_its_parts_add_up():
    rng = np.random.default_rng(0)
    x = rng.normal(-2, 3, 60)
    y = 0.7 * x + 0.4 + rng.normal(0, 1, 60)
    found = shrinkage(x, y, [None] * 60)
    line = stats.linregress(x, y)
    assert (found.slope, found.rest_nats) == pytest.approx((line.slope, line.intercept))
    assert found.by_shrinkage_nats + found.rest_nats == pytest.approx(np.mean(y - x))
    half = (found.slope_ci95[1] - found.slope_ci95[0]) / 2
    assert half == pytest.approx(stats.t.ppf(0.975, 59) * line.stderr, rel=0.15)


def test_intervals_hold_for_items_of_few_sources():
    rng = np.random.default_rng(1)
    hits = n = 0
    for _ in range(400):
        common = rng.normal(size=(2, 20, 1))
        x = (common[0] + 0.3 * rng.normal(size=(20, 4))).ravel()
        y = 0.8 * x + (common[1] + 0.3 * rng.normal(size=(20, 4))).ravel()
        found = shrinkage(x, y, [f"s{k // 4}" for k in range(80)])
        n += 1
        hits += found.slope_ci95[0] <= 0.8 <= found.slope_ci95[1]
    assert 0.90 <= hits / n <= 0.98


def test_plain_shrinkage_explains_a_rise_and_a_gain_on_top_is_not_explained():
    rng = np.random.default_rng(2)
    x = rng.normal(-3, 2, 80)
    noise = rng.normal(0, 0.5, 80)
    assert shrinkage(x, 0.7 * x + noise, [None] * 80).explains
    assert not shrinkage(x, 0.7 * x + 1 + noise, [None] * 80).explains
    assert not shrinkage(x, x + 1 + noise, [None] * 80).explains
    assert not shrinkage(-x, -0.7 * x + noise, [None] * 80).explains


def test_there_is_no_line_without_spread_or_sources():
    assert shrinkage([1.0] * 9, range(9), [None] * 9) is None
    assert shrinkage([1.0, 2, 3, 4], [1.0, 2, 3, 5], ["a", "a", "b", "b"]) is None
