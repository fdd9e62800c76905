"""Sizes from a pilot's scores or from assumptions."""

import math

import pytest
from synthetic import make_folder, make_items

from cqa.errors import ConfigError, DataError
from cqa.study.config import PowerConfig
from cqa.study.power import plan_power, power_text


def test_assumptions_give_sizes_and_are_said():
    parts = []
    config = PowerConfig(effect=1.2, sd=2.0, icc=0.2, items_per_source=2, epochs_swept=2)
    plan = plan_power(config, runs=20, on_part=parts.append)
    assert plan.design.d_z == pytest.approx(0.6)
    held = plan.to_json()
    assert [one["question"] for one in held["needed"]] == ["change", "selective", "control_small"]
    change, selective, control = (one["n_items"] for one in held["needed"])
    assert 15 < change < selective < control
    assert len(parts) == 3
    text = power_text(plan)
    assert "d_z 0.60" in text
    assert "ICC 0.20" in text
    assert "normal" in text
    assert "2 adapters, all with this effect" in text


def test_one_adapter_is_told_as_one():
    plan = plan_power(PowerConfig(effect=2.0, sd=2.0), runs=2)
    assert "1 adapter with this effect, for which the tests pay nothing" in plan.assumptions


def test_a_pilot_fills_what_is_left_open(tmp_path):
    adapters = [None, "epoch-02", "epoch-08"]
    folder = make_folder(tmp_path, items=make_items(20), adapters=adapters)
    plan = plan_power(PowerConfig(effect=3.0), folder, runs=10)
    assert (plan.design.n_adapters, plan.design.items_per_source) == (2, 2)
    assert len(plan.design.pilot) == 20
    assert 0 <= plan.design.icc <= 1
    assert any("drawn from the pilot" in text for text in plan.assumptions)


@pytest.mark.parametrize("effect", [1e300, math.inf, math.nan, 0.0])
def test_an_effect_whose_squares_would_overflow_is_refused(effect):
    with pytest.raises(ConfigError, match="effect above 0, up to 1,000,000 nats, got: "):
        PowerConfig(effect=effect, sd=1.0)


@pytest.mark.parametrize("n", [0, 1001, 10**8])
def test_more_adapters_than_can_be_simulated_are_refused(n):
    with pytest.raises(ConfigError, match="expected epochs-swept from 1 to 1,000, got: "):
        PowerConfig(effect=0.5, sd=1.0, epochs_swept=n)


def test_what_is_not_known_is_asked_for(tmp_path):
    with pytest.raises(ConfigError, match=r"--effect and --sd, .* got --effect alone"):
        plan_power(PowerConfig(effect=1.0))
    with pytest.raises(ConfigError, match=r"--effect and --sd, .* got neither"):
        plan_power(PowerConfig())
    with pytest.raises(ConfigError, match="sd from 1e-06 to 1,000,000 nats"):
        PowerConfig(sd=0.0)
    with pytest.raises(DataError, match="a pilot with an adapter"):
        plan_power(PowerConfig(effect=1.0), make_folder(tmp_path, adapters=[None]))
