"""The deciding tests against scipy, against plain loops, and their rates of error in small."""

import itertools
import math
import tracemalloc

import numpy as np
import pytest
from scipy import stats

from cqa.stats.clusters import by_source
from cqa.stats.deciding import Change, difference_test, drawn_counts, draws_for, family_test


def change_of(values, sources=None, **settings) -> Change:
    """Test one adapter's changes."""
    clusters = by_source({"a": values}, sources or [None] * len(values))
    return family_test(clusters, **settings).changes["a"]


def hall(values) -> float:
    """Hall's statistic of one sample, written out."""
    x = np.asarray(values)
    n = len(x)
    t = x.mean() / (x.std(ddof=1) / math.sqrt(n))
    a = ((x - x.mean()) ** 3).sum() / ((x - x.mean()) ** 2).sum() ** 1.5 * ((n - 1) / n) ** 1.5
    a *= 1 + 12 / n
    return t + a * t**2 / 3 + a**2 * t**3 / 27 + a / 6


def test_without_sources_the_error_is_that_of_the_t_test():
    x = np.random.default_rng(0).gamma(2, size=30)
    change = change_of(x)
    assert change.mean == pytest.approx(x.mean())
    assert change.error == pytest.approx(stats.sem(x))


def test_the_error_with_sources_is_that_of_the_cluster_sums():
    rng = np.random.default_rng(1)
    sizes = rng.integers(1, 6, 12)
    sources = [f"book {k}" for k, size in enumerate(sizes) for _ in range(size)]
    x = rng.normal(size=len(sources))
    sums = [
        sum(v - x.mean() for v, s in zip(x, sources, strict=True) if s == f"book {k}")
        for k in range(12)
    ]
    expected = math.sqrt(sum(s * s for s in sums) * 12 / 11) / len(x)
    assert change_of(x, sources).error == pytest.approx(expected)


def test_items_without_a_source_are_sources_of_their_own():
    x = np.random.default_rng(2).normal(size=10)
    named = [f"source {k}" for k in range(10)]
    assert change_of(x) == change_of(x, named)
    assert by_source({"a": x}, [None] * 9 + ["9"]).n_sources == 10


def test_up_to_thirteen_sources_every_sign_pattern_counts():
    x = [0.9, 0.4, -0.2, 0.7, 1.3, 0.1, -0.05, 0.6]
    least = hall(x)
    patterns = [
        hall([s * v for s, v in zip(signs, x, strict=True)])
        for signs in itertools.product((1, -1), repeat=8)
    ]
    exact = np.mean([found >= least - 1e-9 for found in patterns])
    assert change_of(x).p_greater >= exact  # the larger of two laws
    assert change_of(x, draws=1).p_greater >= exact


def test_both_tails_mirror_each_other():
    x = np.random.default_rng(3).exponential(size=25) - 0.6
    up, down = change_of(x), change_of(-x)
    assert up.p_greater == pytest.approx(down.p_less, abs=0.02)
    assert up.p_less == pytest.approx(down.p_greater, abs=0.02)


def test_a_family_pays_for_looking_and_never_gains():
    rng = np.random.default_rng(4)
    values = {f"epoch-{k:02}": rng.normal(0.2, 1, 40) for k in range(7)}
    family = family_test(by_source(values, [None] * 40))
    for name, change in family.changes.items():
        alone = change_of(values[name])
        assert change.p_greater_corrected >= change.p_greater
        assert change.p_greater == pytest.approx(alone.p_greater, abs=0.01)
        assert change.ci95[0] <= alone.ci95[0] + 0.02
        assert change.ci95[1] >= alone.ci95[1] - 0.02
    assert (family.n_items, family.n_sources) == (40, 40)


def test_equal_adapters_cost_nothing():
    x = np.random.default_rng(5).normal(0.3, 1, 30)
    family = family_test(by_source({"a": x, "b": x}, [None] * 30))
    assert family.changes["a"] == family.changes["b"]
    assert family.changes["a"].p_greater_corrected == family.changes["a"].p_greater


@pytest.mark.parametrize(
    "values", [[0.5] * 20, [-0.5, -0.5], [0.1 + 0.2, 0.3, 0.3, 0.3], [0.0] * 9, [1.0]]
)
def test_without_spread_nothing_is_tested(values):
    change = change_of(values)
    assert change.p_greater is None
    assert change.p_greater_corrected is None
    assert change.ci95 is None
    assert change.mean == pytest.approx(np.mean(values))


def test_an_adapter_without_spread_does_not_spoil_the_others():
    x = np.random.default_rng(6).normal(0.4, 1, 20)
    family = family_test(by_source({"a": x, "flat": [0.5] * 20}, [None] * 20))
    assert family.changes["flat"].p_greater is None
    assert family.changes["a"] == change_of(x)


def test_p_is_never_zero():
    assert change_of(np.linspace(5, 6, 30)).p_greater >= 1 / 10_001
    assert change_of(np.linspace(5, 6, 9)).p_greater >= 2**-9


def test_one_source_for_all_items_shows_nothing():
    x = np.random.default_rng(7).normal(3, 0.1, 20)
    assert change_of(x, ["one book"] * 20).p_greater is None


def test_scale_changes_nothing_and_the_order_of_sources_little():
    rng = np.random.default_rng(8)
    x = rng.normal(0.3, 1, 24)
    sources = [f"s{k // 2}" for k in range(24)]
    change, scaled = change_of(x, sources), change_of(1000 * x, sources)
    assert scaled.p_greater == change.p_greater
    assert scaled.ci95 == pytest.approx([1000 * bound for bound in change.ci95])
    turned = change_of(x[::-1], sources[::-1])
    assert turned.p_greater == pytest.approx(change.p_greater, abs=0.02)


def test_two_groups_differ_as_welch_says_where_both_are_normal():
    rng = np.random.default_rng(9)
    a, b = rng.normal(1.0, 1, 60), rng.normal(0.5, 3, 90)
    family = difference_test(by_source({"x": a}, [None] * 60), by_source({"x": b}, [None] * 90))
    change = family.changes["x"]
    welch = stats.ttest_ind(a, b, equal_var=False)
    assert change.mean == pytest.approx(a.mean() - b.mean())
    assert change.mean / change.error == pytest.approx(welch.statistic)
    assert 2 * change.p_greater == pytest.approx(welch.pvalue, abs=0.02)
    expected = welch.confidence_interval(0.95)
    assert change.ci95 == pytest.approx([expected.low, expected.high], abs=0.08)


def test_draws_fall_as_sources_grow():
    assert draws_for(10) == draws_for(2_000) == 9_999
    assert 999 <= draws_for(10_000) < 9_999
    assert draws_for(10**6) == 999


LAWS = {
    "normal": lambda rng, n: rng.standard_normal(n),
    "t3": lambda rng, n: rng.standard_t(3, n),
    "left": lambda rng, n: 1 - rng.exponential(size=n),
    "right": lambda rng, n: rng.exponential(size=n) - 1,
}


@pytest.mark.parametrize("law", LAWS)
def test_few_true_nulls_of_clustered_items_are_rejected(law):
    rng = np.random.default_rng(10)
    sources = [f"s{k // 3}" for k in range(36)]
    rejected = covered = 0
    for run in range(150):
        shared = np.repeat(LAWS[law](rng, 12), 3)
        values = {f"{k}": shared + LAWS[law](rng, 36) for k in range(3)}
        family = family_test(by_source(values, sources), draws=299, seed=run)
        changes = family.changes.values()
        rejected += any(change.p_greater_corrected <= 0.05 for change in changes)
        covered += all(change.ci95[0] <= 0 <= change.ci95[1] for change in changes)
    assert rejected <= 18  # 5 % of 150 and four standard errors
    assert covered >= 131


def test_real_effects_are_found():
    rng = np.random.default_rng(11)
    found = sum(
        change_of(rng.normal(0.7, 1, 30), draws=299, seed=k).p_greater <= 0.05 for k in range(60)
    )
    assert found >= 55  # a t-test finds 98 %


def test_a_question_that_was_asked_before_is_not_drawn_for_again(monkeypatch):
    rng = np.random.default_rng(23)
    values = rng.normal(0.2, 1, 40)
    drawn = []

    def counted(*given):
        drawn.append(given)
        return drawn_counts(*given)

    monkeypatch.setattr("cqa.stats.deciding.drawn_counts", counted)
    first = change_of(values, seed=4)
    n = len(drawn)
    assert n > 0
    assert change_of(values.copy(), seed=4) is first
    assert len(drawn) == n
    others = [
        change_of(values, seed=5), change_of(values, seed=4, draws=999),
        change_of(values, sources=["a", "b", *"cdef" * 9, "g", "h"], seed=4),
        change_of(np.append(values[:-1], values[-1] + 1e-12), seed=4), change_of(-values, seed=4),
    ]  # fmt: skip
    assert len({first, *others}) == 6


def test_a_wide_family_is_drawn_in_parts_to_the_same_numbers(monkeypatch):
    rng = np.random.default_rng(6)
    values = {str(k): rng.normal(0.2, 1, 30) for k in range(120)}
    for sources in ([f"s{k % 12}" for k in range(30)], [None] * 30):
        found = []
        for held in (10**9, 10_001):
            monkeypatch.setattr("cqa.stats.deciding.HELD_NUMBERS", held)
            changes = family_test(by_source(values, sources), draws=999).changes
            found.append([(c.p_greater, c.p_less_corrected, *c.ci95) for c in changes.values()])
        assert found[1] == [pytest.approx(one, rel=1e-9) for one in found[0]]


def test_the_memory_of_a_family_does_not_grow_with_its_draws():
    values = {
        str(k): column for k, column in enumerate(np.random.default_rng(7).normal(size=(600, 13)))
    }
    clusters = by_source(values, [None] * 13)
    tracemalloc.start()
    family_test(clusters, draws=99)
    peak_bytes = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak_bytes < 200e6  # of all 8,192 draws at once it is 400e6


def test_a_wide_family_of_many_sources_needs_fewer_normal_draws(monkeypatch):
    rng = np.random.default_rng(8)
    values = {name: rng.normal(mean, 1, 2100) for name, mean in (("a", 0.02), ("b", 0.0))}
    found = []
    for numbers in (10_000_000, 20_000):
        monkeypatch.setattr("cqa.stats.deciding.NORMAL_NUMBERS", numbers)
        monkeypatch.setattr("cqa.stats.deciding._ANSWERS", {})
        found.append(family_test(by_source(values, [None] * 2100)).changes)
    for name in values:
        few, many = found[1][name], found[0][name]
        assert few.p_greater != many.p_greater
        assert few.p_greater_corrected == pytest.approx(many.p_greater_corrected, abs=0.02)
