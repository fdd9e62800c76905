"""The small form of tests/calibrate.py: few draws of a few kinds of data."""

import pytest
from calibrate import Design, power, rates, simulate, small_effects

RUNS = 60
MOST = 9  # of them: 5 % and four standard errors
NULLS = [
    Design("left-skewed", 20),
    Design("t, 3 df", 48, 12, equal=False, n_adapters=3),
    Design("normal", 40, n_adapters=7),
    Design("real, factual", 40),
    Design("real, random adapters", 40),
]


@pytest.mark.parametrize("design", NULLS, ids=str)
def test_true_nulls_are_rarely_called_findings(design):
    found = simulate(rates, design, RUNS)
    for name, percent in found.items():
        if name.endswith(("shown", "against", "misses")):
            assert percent * RUNS / 100 <= MOST, name


def test_five_sources_show_nothing():
    found = simulate(rates, Design("normal", 20, 5), 20)
    assert all(found[name] == 0 for name in found if name.endswith("shown"))


def test_effects_at_the_margin_are_rarely_called_small():
    found = simulate(small_effects, Design("left-skewed", 350), RUNS)
    assert found["called small"] * RUNS / 100 <= MOST


def test_power_is_near_that_of_the_papers_tests():
    found = simulate(power, Design("normal", 40), RUNS)
    assert found["deciding test"] >= found["paper's t"] - 10 >= 70
