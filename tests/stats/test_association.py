"""Rank correlations of samples, their intervals and tests, against scipy and by simulation."""

import numpy as np
import pytest
from scipy import stats

from cqa.claims.associations import Associated, association_effects
from cqa.stats.association import difference, partial_spearman, spearman, spearman_brown
from cqa.stats.resampling import (
    MOST_BLOCKS,
    bca_interval,
    blocks_of,
    influences,
    statistic_interval,
)


@pytest.fixture
def drawn():
    rng = np.random.default_rng(5)
    x, y, z = rng.normal(size=(3, 40))
    z = np.round(z, 1)  # with ties
    return np.round(x + z, 1), y + z + x / 2, z, rng.integers(0, 4, (6, 40)).astype(float)


def test_of_any_sample_they_are_those_of_its_items_written_out(drawn):
    x, y, z, counts = drawn
    found = spearman(x, y)(counts), partial_spearman(x, y, z)(counts)
    for k, times in enumerate(counts.astype(int)):
        a, b, c = (stats.rankdata(np.repeat(v, times)) for v in (x, y, z))
        assert found[0][k] == pytest.approx(stats.pearsonr(a, b)[0])
        rest = [v - np.polyval(np.polyfit(c, v, 1), c) for v in (a, b)]
        assert found[1][k] == pytest.approx(stats.pearsonr(*rest)[0])


def test_where_a_number_is_the_same_for_all():
    whole = np.ones((1, 5))
    x, y = [1.0, 2.0, 3.0, 4.0, 5.0], [2.0, 1.0, 3.0, 5.0, 4.0]
    assert np.isnan(spearman([1.0] * 5, y)(whole))
    assert np.isnan(partial_spearman(x, y, x)(whole))
    assert partial_spearman(x, y, [7.0] * 5)(whole) == spearman(x, y)(whole) == pytest.approx(0.8)
    assert influences(spearman([1.0] * 5, y), np.arange(5)) is None


def test_the_interval_is_that_of_scipy(drawn):
    x, y, _, _ = drawn
    found = statistic_interval(spearman(x, y), np.arange(40), draws=20_000)
    expected = stats.bootstrap(
        (x, y), lambda a, b: stats.spearmanr(a, b)[0], paired=True, vectorized=False,
        n_resamples=4000, method="BCa", rng=np.random.default_rng(1),
    ).confidence_interval  # fmt: skip
    assert found == pytest.approx(tuple(expected), abs=0.02)


def test_of_a_mean_the_interval_is_that_of_means_and_the_influences_are_the_items():
    values = np.random.default_rng(2).exponential(size=30)

    def mean(weights):
        return (weights * values).sum(axis=1) / weights.sum(axis=1)

    value, found = influences(mean, np.arange(30))
    assert value == pytest.approx(values.mean())
    assert found == pytest.approx(values)
    assert statistic_interval(mean, np.arange(30)) == pytest.approx(bca_interval(values))


def test_whole_sources_are_drawn_and_other_groups_are_left_out():
    sources = ["a", "a", "b", None, "b", None]
    kept = np.array([True, False, True, True, True, True])
    assert blocks_of(sources, kept).tolist() == [0, -1, 1, 2, 1, 3]
    many = blocks_of([None] * 2500, np.ones(2500, dtype=bool))
    assert np.bincount(many).tolist() == [3] * 500 + [2] * (MOST_BLOCKS - 500)
    x, y = np.array([1.0, 9.0, 2, 4, 3, 5]), np.array([1.0, -9.0, 2, 3, 5, 4])
    value, _ = influences(spearman(x, y), blocks_of(sources, kept))
    assert value == pytest.approx(stats.spearmanr(x[kept], y[kept])[0])


def test_two_sources_or_no_spread_have_no_interval():
    x = np.arange(6.0)
    assert statistic_interval(spearman(x, x), np.arange(6)) is None
    assert statistic_interval(spearman(x, x[::-1] ** 2), np.zeros(6, dtype=int)) is None
    value, found = influences(spearman(x, x), np.arange(6))
    assert value == 1
    assert set(found) == {1.0}


def test_spearman_brown():
    assert spearman_brown(0.5) == pytest.approx(2 / 3)
    assert spearman_brown(-0.2) is spearman_brown(None) is None


def _rejections(monkeypatch, statistic_of, *, repetitions=300, n_sources=12) -> np.ndarray:
    """Return how often each tail is below 5 %, of sources of one to three alike items."""
    monkeypatch.setattr("cqa.claims.associations._interval", lambda *_: None)
    hits = np.zeros(2)
    for seed in range(repetitions):
        rng = np.random.default_rng((seed, n_sources))
        sources = np.repeat(np.arange(n_sources), rng.integers(1, 4, n_sources))
        shared = rng.normal(size=(4, n_sources))[:, sources]
        drawn = shared + rng.standard_t(3, (4, len(sources)))
        one = Associated("a", "a", "excess", {None: statistic_of(drawn)})
        (found,) = association_effects([one], ["g"] * len(sources), [str(k) for k in sources])
        assert found.n_sources == n_sources
        hits += [found.p < 0.05, found.p_against < 0.05]
    return hits / repetitions


def test_independent_numbers_seldom_correlate_and_equal_correlations_seldom_differ(monkeypatch):
    most = stats.binom.ppf(0.995, 300, 0.05) / 300
    independent = _rejections(monkeypatch, lambda d: spearman(d[0], d[1]))
    assert (independent <= most).all()

    def equal(drawn):  # both correlate with the third, and as much
        x, y, z = drawn[:3] + drawn[3]
        return difference(spearman(x, z), spearman(y, z))

    assert (_rejections(monkeypatch, equal) <= most).all()


def test_a_correlation_that_is_there_is_found(monkeypatch):
    found = _rejections(monkeypatch, lambda d: spearman(d[0], d[0] + d[1] / 2), repetitions=20)
    assert found.tolist() == [1.0, 0.0]
