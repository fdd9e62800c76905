"""Min-K% and the items that stand out of their group."""

import pytest

from cqa.stats.contamination import STANDS_OUT, min_k_percent, standings


def test_min_k_is_the_mean_of_the_fifth_that_is_least_expected():
    logp = [-1.0, -9.0, -2.0, -0.5, -7.0, -3.0, -0.1, -0.2, -4.0, -0.3, -0.4]
    assert min_k_percent(logp) == -8.0  # 2 of 11 tokens
    assert min_k_percent([-1.0, -3.0]) == -3.0
    assert min_k_percent(None) is None


def test_an_item_far_above_the_median_stands_out_and_one_below_does_not():
    values = {f"i{k}": -8.0 + 0.1 * k for k in range(11)}  # median -7.5, MAD 0.3
    found = standings(values | {"seen": -5.0, "odd": -11.0})
    assert [i for i, s in found.items() if s.stands_out] == ["seen"]
    assert found["seen"].robust_z == pytest.approx(0.6745 * 2.5 / 0.3)
    assert found["odd"].robust_z < -STANDS_OUT


def test_without_all_tokens_or_spread_nothing_is_said():
    assert standings({"a": -1.0, "b": None}) is None
    assert standings({}) is None
    assert not any(
        s.stands_out for s in standings(dict.fromkeys("abc", -1.0) | {"d": 0.0}).values()
    )
