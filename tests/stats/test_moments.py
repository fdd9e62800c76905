"""Laws of very many sources from moments, against draws of the same sources."""

import numpy as np
import pytest

from cqa.stats import moments
from cqa.stats.choice import stability
from cqa.stats.clusters import by_source
from cqa.stats.deciding import difference_test, family_test
from cqa.stats.resampling import bca_interval

N = 5000  # sources: so skewed, fewer have one that weighs more than moments allow


@pytest.fixture
def both(monkeypatch):
    """Return what a function gives by draws and from moments."""

    def of(function):
        found = []
        for fewest in (10 * N, N // 2):
            monkeypatch.setattr(moments, "MANY_SOURCES", fewest)
            found.append(function())
        return found

    return of


def skewed(n: int, seed: int, shift: float, names: str = "abc") -> dict[str, np.ndarray]:
    """Return skewed changes whose means are a few errors above 0."""
    rng = np.random.default_rng(seed)
    common = rng.gamma(2, size=n)
    return {
        name: common + rng.gamma(2, size=n) - 4 + shift * (1 + k / 2)
        for k, name in enumerate(names)
    }


def check_alike(drawn, derived) -> None:
    assert "from moments" in derived.method
    assert "from moments" not in drawn.method
    for name, change in drawn.changes.items():
        other = derived.changes[name]
        assert (other.mean, other.error) == pytest.approx((change.mean, change.error))
        for key in ("p_greater", "p_less", "p_greater_corrected", "p_less_corrected"):
            p = getattr(change, key)
            error = 4 * np.sqrt(max(p * (1 - p), 1e-4) / 6000)
            assert getattr(other, key) == pytest.approx(p, abs=error + 0.002), (name, key)
        for key in ("ci95", "ci90"):
            ends = (np.array(getattr(c, key)) - c.mean for c in (change, other))
            low_high, same = (end / change.error for end in ends)
            assert same == pytest.approx(low_high, abs=0.12)  # four Monte Carlo errors


@pytest.mark.parametrize("shift", [0.0, 0.06])
def test_the_deciding_test_from_moments_is_that_of_draws(both, shift):
    clusters = by_source(skewed(N, 0, shift), [None] * N)
    check_alike(*both(lambda: family_test(clusters, draws=5999)))


def test_the_fewest_sources_with_one_that_weighs_as_much_as_it_may(monkeypatch):
    n = moments.MANY_SOURCES
    values = np.random.default_rng(7).normal(0.03, 1, n)
    values[0] = 0.95 * np.sqrt(moments.HEAVIEST * n)
    clusters = by_source({"a": values}, [None] * n)
    derived = family_test(clusters)
    monkeypatch.setattr(moments, "MANY_SOURCES", n + 1)
    check_alike(family_test(clusters, draws=9999), derived)


def test_sources_of_unequal_size(both):
    rng = np.random.default_rng(1)
    sources = [f"s{k}" for k in np.sort(rng.integers(0, N, 2 * N))]
    clusters = by_source(skewed(2 * N, 2, 0.04), sources)
    check_alike(*both(lambda: family_test(clusters, draws=5999)))


def test_the_difference_of_groups(both):
    a, b = (by_source(skewed(N, seed, 0.05 * seed), [None] * N) for seed in (3, 4))
    check_alike(*both(lambda: difference_test(a, b, draws=3999)))


def test_bca_intervals(both):
    values = skewed(N, 5, 0.0)["a"]
    sources = [f"s{k % (N - 500)}" for k in range(N)]
    error = values.std() / np.sqrt(N)
    for settings in ({}, {"clusters": sources}):
        drawn, derived = both(lambda s=settings: bca_interval(values, draws=20_000, **s))
        assert np.array(derived) == pytest.approx(np.array(drawn), abs=0.06 * error)


def test_how_often_each_adapter_is_chosen(both):
    for shift in (0.0, 2.0):  # of two, where the spread of the error counts
        clusters = by_source(skewed(N, 6, shift), [None] * N)
        drawn, derived = both(lambda c=clusters: stability(c))
        assert derived == pytest.approx(drawn, abs=0.06)


def test_one_source_that_weighs_much_is_drawn():
    residuals = np.ones(moments.MANY_SOURCES)
    assert moments.many(residuals)
    residuals[0] = 20.0
    assert not moments.many(residuals)
    assert not moments.many(np.ones(moments.MANY_SOURCES - 1))
