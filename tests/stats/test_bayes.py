"""The JZS Bayes factor against pingouin 0.7.0's `bayesfactor_ttest`, whose r is 0.707."""

import math

import numpy as np
import pytest

from cqa.stats.bayes import bayes_factor, jzs_bayes_factor


@pytest.mark.parametrize(
    ("t", "n", "expected"),
    [
        (0.0, 20, 0.23235648066291997),
        (1.2, 10, 0.5493433511669297),
        (2.5, 20, 2.702287857225479),
        (-3.1, 45, 10.0413185551962),
        (0.4, 300, 0.07006661239854584),
        (7.0, 60, 4255107.951179721),
    ],
)
def test_it_is_that_of_another_implementation(t, n, expected):
    assert jzs_bayes_factor(t, n, scale=0.707) == pytest.approx(expected, rel=1e-6)


def test_the_scale_of_the_prior_counts():
    assert jzs_bayes_factor(1.5, 20, scale=1.0) == pytest.approx(0.4763061371603623, rel=1e-6)


def test_a_million_values_and_a_huge_t_are_finite_or_said_to_be_infinite():
    found = jzs_bayes_factor(0.0, 1_000_000, scale=0.707)
    assert found == pytest.approx(0.0011285473331839086, rel=1e-6)
    assert jzs_bayes_factor(200.0, 1_000_000) == math.inf


def test_sources_are_the_values_and_each_counts_once():
    means = np.random.default_rng(0).normal(0.3, 1, 12)
    spread = np.array([-0.5, 0.0, 0.5])
    items = (means[:, None] + spread).ravel()
    sources = [f"s{k}" for k in range(12) for _ in range(3)]
    t = means.mean() / means.std(ddof=1) * math.sqrt(12)
    assert bayes_factor(items, sources) == pytest.approx(jzs_bayes_factor(t, 12))
    assert bayes_factor(np.ones(5), [None] * 5) is None
