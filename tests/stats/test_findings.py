"""Data on which a verdict is easily wrong, and what must be said of each."""

import re
from dataclasses import replace

import numpy as np
import pytest

from cqa.stats import findings
from cqa.stats.equivalence import equivalence
from cqa.stats.findings import Changes


@pytest.fixture
def rng() -> np.random.Generator:
    """The same numbers for every test, whatever runs beside it."""
    return np.random.default_rng(0)


def changes(ddi, sources=None, group="literary", **others) -> Changes:
    """Return changes under adapters, all else derived from ddI alone unless given."""
    by_adapter = ddi if isinstance(ddi, dict) else {"a": ddi}
    ddi = {name: np.asarray(values, dtype=float) for name, values in by_adapter.items()}
    n = len(next(iter(ddi.values())))
    zero = {name: np.zeros(n) for name in ddi}
    rng = np.random.default_rng(1)
    held = {
        "ddi_null2": ddi,
        "ddi_per_token": {name: values / 20 for name, values in ddi.items()},
        "d_cond": ddi,
        "d_prior": zero,
        "entropy_given": {name: rng.normal(0, 1, n) for name in ddi},
        "entropy_null": {name: rng.normal(0, 0.1, n) for name in ddi},
        "delta_i": {name: values + 5 for name, values in ddi.items()},
    }
    held |= {
        key: {name: np.asarray(v, dtype=float) for name, v in value.items()}
        for key, value in others.items()
    }
    return Changes(group=group, sources=sources or [None] * n, ddi=ddi, **held)


def test_a_clear_change_is_shown(rng):
    found = findings.change(changes(rng.normal(0.8, 1, 40)), "a")
    assert (found.mark, found.unit, found.n_items, found.n_sources) == ("shown", "nats", 40, 40)
    assert found.p <= 0.01
    assert found.ci95[0] > 0
    assert found.reason == "the mean is above 0"


def test_many_small_gains_beside_a_few_large_losses_are_no_gain():
    values = [*np.linspace(0.1, 0.3, 17), -9.5, -10, -10.5]
    found = findings.change(changes(values), "a")
    assert found.estimate == pytest.approx(np.mean(values))
    assert found.mark == "not shown"


def test_one_source_for_all_items_is_too_few_whatever_p(rng):
    found = findings.change(changes(rng.normal(2, 0.1, 20), ["one book"] * 20), "a")
    assert found.mark == "n/a"
    assert found.reason == "1 source: fewer than 10 are too few to show anything"
    few = [f"book {k % 9}" for k in range(36)]
    found = findings.change(changes(rng.normal(2, 0.1, 36), few), "a")
    assert found.mark == "not shown"
    assert "9 sources" in found.reason


def test_a_change_that_one_source_makes_is_not_shown_and_the_source_is_named(rng):
    values = np.concatenate([rng.normal(-0.02, 0.05, 30), np.full(10, 5.0)])
    sources = [f"s{k}" for k in range(30)] + ["The Long Book"] * 10
    found = findings.change(changes(values, sources), "a")
    assert found.mark == "not shown"


@pytest.mark.parametrize(
    ("other", "said"),
    [("ddi_per_token", "per token"), ("ddi_null2", "with the second null context")],
)
def test_normalizations_of_another_sign_withhold_shown(rng, other, said):
    clear = changes(rng.normal(0.8, 1, 40))
    turned = replace(clear, **{other: {"a": -clear.ddi["a"]}})
    found = findings.change(turned, "a")
    assert found.mark == "not shown"
    assert said in found.reason


@pytest.mark.parametrize("sign", [1, -1])
def test_a_conditional_is_not_shown_where_the_change_is_withheld(rng, sign):
    cond = sign * rng.normal(0.8, 1, 60)
    whole = changes(cond)
    assert findings.conditional(whole, "a").mark == ("shown" if sign > 0 else "against")
    turned = replace(whole, ddi_per_token={"a": -cond})
    assert findings.change(turned, "a").mark == "not shown"
    found = findings.conditional(turned, "a")
    assert found.mark == "not shown"
    assert "but of ddI: per token the mean has the other sign" in found.reason


def test_a_tenth_of_items_that_makes_the_difference_from_a_placebo_withholds_it(rng):
    less = np.concatenate([rng.normal(-0.02, 0.05, 54), rng.normal(1.5, 0.1, 6)])
    one = changes(rng.normal(0.8, 1, 60))
    found = findings.placebo(one, {"a": less}, "a", "fake", [])
    assert found.p <= 0.05
    assert found.mark == "not shown"
    assert "without the 6 items that change most" in found.reason
    assert findings.placebo(one, {"a": less + 0.3}, "a", "fake", []).mark == "shown"


def test_a_loss_is_against_and_needs_as_much(rng):
    assert findings.change(changes(rng.normal(-0.8, 1, 40)), "a").mark == "against"
    assert findings.change(changes(rng.normal(-2, 0.3, 6)), "a").mark == "not shown"


def test_equal_changes_are_not_tested():
    found = findings.change(changes([-0.5, -0.5]), "a")
    assert (found.mark, found.p) == ("n/a", None)
    found = findings.change(changes([0.3] * 20), "a")
    assert (found.mark, found.p) == ("n/a", None)
    assert "no spread" in found.reason


def test_sensitivity_that_is_still_negative_is_said_to_be(rng):
    clear = changes(rng.normal(0.8, 1, 40))
    below = replace(clear, delta_i={"a": clear.ddi["a"] - 9})
    assert "still below 0" in findings.change(below, "a").reason


def test_a_change_that_is_shown_to_be_tiny_is_said_to_be(rng):
    values = rng.normal(0.09, 1, 3000)
    found = findings.change(changes(values), "a")
    assert found.mark == "shown"
    assert "smaller than a small effect" in found.reason


def test_corrected_p_is_never_below_p_alone(rng):
    family = {f"e{k}": rng.normal(0.2, 1, 30) for k in range(5)}
    found = [findings.change(changes(family), name) for name in family]
    assert all(one.p >= one.p_alone for one in found)


def test_the_same_change_per_token_in_both_groups_is_not_selective(rng):
    long, short = rng.normal(0.01, 0.004, (2, 60))
    primary = changes(long * 100, ddi_per_token={"a": long})
    control = changes(short * 10, group="factual", ddi_per_token={"a": short})
    found = findings.selective(primary, control, "a")
    assert found.estimate == pytest.approx(0.9, abs=0.2)
    assert found.mark == "not shown"


def test_a_larger_change_in_both_units_is_selective(rng):
    primary, control = changes(rng.normal(1, 1, 60)), changes(rng.normal(0, 1, 60))
    assert findings.selective(primary, control, "a").mark == "shown"
    assert findings.selective(control, primary, "a").mark == "against"


def test_a_pure_shift_is_no_sharper_conditional(rng):
    shift = rng.normal(1.5, 1, 60)
    cond, prior = shift + rng.normal(0.1, 1.5, 60), shift
    found = findings.conditional(
        changes(cond - prior, d_cond={"a": cond}, d_prior={"a": prior}), "a"
    )
    assert found.mark == "not shown"


def test_a_prior_that_fell_is_no_sharper_conditional(rng):
    cond, prior = rng.normal(0.1, 0.1, 60), rng.normal(-1.4, 0.5, 60)
    one = changes(cond - prior, d_cond={"a": cond}, d_prior={"a": prior})
    assert findings.change(one, "a").mark == "shown"
    assert findings.conditional(one, "a").mark == "not shown"


def test_a_conditional_that_gained_more_than_the_prior_moved_is_shown(rng):
    cond, prior = rng.normal(1, 1, 60), rng.normal(0.1, 0.2, 60)
    one = changes(cond - prior, d_cond={"a": cond}, d_prior={"a": prior})
    found = findings.conditional(one, "a")
    assert found.mark == "shown"
    assert found.estimate == pytest.approx(cond.mean())


def test_a_control_is_small_in_units_of_its_own_spread_or_of_a_margin_set_before(rng):
    control = changes(rng.normal(0, 3, 900), group="factual")
    assert findings.control_small(control, "a", None).mark == "shown"
    assert findings.control_small(control, "a", 0.5).mark == "shown"
    assert findings.control_small(control, "a", 0.05).mark == "not shown"
    moved = changes(rng.normal(3, 3, 900), group="factual")
    assert findings.control_small(moved, "a", None).mark == "against"
    few = changes(rng.normal(0, 3, 30), group="factual")
    assert findings.control_small(few, "a", None).mark == "not shown"


@pytest.mark.parametrize("beyond", [-0.0004, 0.0004])
def test_an_end_beside_the_margin_is_printed_on_its_own_side(rng, beyond):
    control = changes(rng.normal(0, 3, 900), group="factual")
    ends = equivalence(control.ddi["a"], control.sources, 1.0).ci90
    margin = max(map(abs, ends)) - beyond
    found = findings.control_small(control, "a", margin)
    assert found.mark == ("not shown" if beyond > 0 else "shown")
    *printed, bound = map(float, re.findall(r"\d+\.\d+", found.reason))
    assert (max(printed) > bound) == (beyond > 0)


def test_entropy_must_fall_by_more_than_twice_what_the_marginal_moves(rng):
    given, null = rng.normal(-0.5, 0.3, 60), rng.normal(-0.05, 0.1, 60)
    ddi = rng.normal(0, 1, 60)
    one = changes(ddi, entropy_given={"a": given}, entropy_null={"a": null})
    assert findings.entropy(one, "a").mark == "shown"
    both = changes(ddi, entropy_given={"a": given}, entropy_null={"a": given})
    assert findings.entropy(both, "a").mark == "not shown"
    rose = changes(ddi, entropy_given={"a": -given}, entropy_null={"a": null})
    assert findings.entropy(rose, "a").mark == "against"
    still = changes(ddi, entropy_given={"a": 0 * given}, entropy_null={"a": null})
    found = findings.entropy(still, "a")
    assert (found.mark, found.p) == ("n/a", None)
