"""Power by simulation, against what is known of independent normal data."""

import numpy as np
import pytest

from cqa.stats.power import Design, intraclass, items_needed, power_at
from cqa.stats.tests import power_of_t


def design(d_z, *, icc=0.0, items_per_source=1, n_adapters=1, rho=0.5, control=0.0, pilot=()):
    return Design(d_z, icc, items_per_source, n_adapters, rho, control, pilot)


@pytest.mark.parametrize(("d_z", "n"), [(0.5, 27), (0.4, 60)])
def test_one_adapter_on_normal_items_has_nearly_the_power_of_t(d_z, n):
    found = power_at(design(d_z), n, "change", runs=200)
    assert power_of_t(d_z, n) - 0.12 < found < power_of_t(d_z, n) + 0.06


def test_no_effect_is_shown_as_often_as_the_level():
    assert power_at(design(0.0, n_adapters=4), 30, "change", runs=200) < 0.10


def test_sources_and_a_sweep_cost_power_and_a_second_group_costs_more():
    plain = power_at(design(0.5), 40, "change", runs=100)
    assert power_at(design(0.5, icc=0.6, items_per_source=4), 40, "change", runs=100) < plain
    assert power_at(design(0.5, n_adapters=10, rho=1.0), 40, "change", runs=100) < plain + 0.05
    assert power_at(design(0.5), 40, "selective", runs=100) < plain
    assert power_at(design(0.5), 8, "change", runs=100) == 0.0


def test_items_needed_are_about_those_of_the_formula():
    needed = items_needed(design(0.6), "change", runs=100)
    assert 17 <= needed.n_items <= 30
    assert needed.n_sources == needed.n_items
    assert needed.power >= 0.8
    assert items_needed(design(0.001), "change").n_items is None
    assert items_needed(design(0.5, control=0.3), "control_small").n_items is None


def test_a_pilots_shape_is_drawn_from():
    skewed = tuple(np.random.default_rng(0).exponential(size=200))
    found = power_at(design(0.5, pilot=skewed), 40, "change", runs=100)
    assert 0.5 < found <= 1.0


def test_intraclass_correlation_is_recovered_and_0_without_sources():
    rng = np.random.default_rng(1)
    common = np.repeat(rng.normal(size=400), 5)
    values = np.sqrt(0.3) * common + np.sqrt(0.7) * rng.normal(size=2000)
    sources = [f"s{k // 5}" for k in range(2000)]
    assert intraclass(values, sources) == pytest.approx(0.3, abs=0.05)
    assert intraclass(rng.normal(size=9), [None] * 9) == 0.0
    assert intraclass([1.0, 1, 1, 1], ["a", "a", "b", "b"]) == 0.0
