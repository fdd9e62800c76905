"""Table 2 over sources, and Holm's correction."""

import numpy as np
import pytest

from cqa.stats.clusters import by_source
from cqa.stats.continuations import TextScore
from cqa.stats.deciding import family_test
from cqa.stats.text_tests import holm, text_changes


def texts(changes, sources, domains):
    return {
        f"t{k}": TextScore(10 * (change - 3), 0.0, 10, 30, domains[k], sources[k], None)
        for k, change in enumerate(changes)
    }


def test_continuations_of_one_source_are_one_unit():
    rng = np.random.default_rng(0)
    sources = [f"book-{k // 4}" for k in range(48)]
    domains = ["novel" if k < 24 else "essay" for k in range(48)]
    moved = np.repeat(rng.normal(0.1, 0.3, 12), 4) + rng.normal(0, 0.01, 48)
    models = {
        None: texts(np.zeros(48), sources, domains),
        "a": texts(moved, sources, domains),
        "b": texts(moved / 2 + rng.normal(0, 0.1, 48), sources, domains),
        "stopped": texts(moved[:5], sources, domains),
    }
    found = text_changes(models, ["a", "b", "stopped"])
    assert list(found) == ["a", "b"]
    alone = text_changes(models, ["a"])["a"][None]
    assert alone.mean == pytest.approx(moved.mean())
    expected = family_test(by_source({"a": moved}, sources)).changes["a"]
    assert alone.ci95 == pytest.approx(expected.ci95, abs=1e-9)
    low, high = alone.ci95
    assert high - low > 2 * 2 * moved.std(ddof=1) / np.sqrt(48) * 1.4  # items alone: too narrow
    assert found["a"]["novel"].mean == pytest.approx(moved[:24].mean())


def test_holm_by_hand():
    assert holm([0.04, 0.01, None, 0.03]) == pytest.approx([0.06, 0.03, None, 0.06], abs=1e-12)
    assert holm([]) == []
