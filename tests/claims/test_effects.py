"""The dealt control against brute force, and what may be called shown."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cqa.claims.dealing import dealt, shuffled
from cqa.claims.effects import Measured, change_of, effects, finding


@given(st.lists(st.tuples(st.integers(0, 2), st.integers(1, 9)), min_size=1, max_size=6))
def test_dealing_is_the_best_permutation_that_meets_nobody_of_its_own(items):
    sources = [f"s{source}" for source, _ in items]
    texts = [f"text {k}" for k in range(len(items))]
    lengths = [length for _, length in items]

    def cost(order) -> int:
        return sum(abs(lengths[k] - lengths[other]) for k, other in enumerate(order))

    allowed = [
        order
        for order in itertools.permutations(range(len(items)))
        if all(sources[k] != sources[other] for k, other in enumerate(order))
    ]
    found = dealt(texts, sources, lengths)
    if not allowed:
        assert found is None
    else:
        assert tuple(found) in allowed
        assert cost(found) == min(map(cost, allowed))


def test_the_same_text_is_no_other_text_and_items_without_source_are_their_own():
    assert dealt(["a", "a"], [None, None], [1, 1]) is None
    assert dealt(["a", "b"], [None, None], [1, 1]) == [1, 0]


def _effects(values, part="excess", claimed="greater", n_sources=20):
    one = Measured("name", "label", part, {None: values}, claimed)
    sources = [f"s{k % n_sources}" for k in range(len(values))]
    (found,) = effects([one], ["g"] * len(values), sources)
    return found


def test_marks():
    rng = np.random.default_rng(1)
    up = rng.normal(1, 1, 40)
    assert finding("x", _effects(up)).mark == "shown"
    assert finding("x", _effects(-up)).mark == "against"
    assert finding("x", _effects(-up, claimed="less")).mark == "shown"
    assert finding("x", _effects(rng.normal(0, 1, 40))).mark == "not shown"
    few = finding("x", _effects(up, n_sources=5))
    assert few.mark == "n/a"
    assert few.reason.endswith("5 sources, of 10 that the test needs")
    assert finding("x", _effects([0.5] * 40)).reason.endswith("no spread over sources")


@pytest.mark.parametrize("part", ["effect", "null", "description"])
def test_nothing_is_found_without_its_null_control(part):
    with pytest.raises(AssertionError, match="without its null control"):
        finding("x", _effects(np.arange(20.0), part=part))


def test_a_change_is_of_the_same_items():
    one = Measured("a", "a", "excess", {None: [1.0, 2.0], "epoch-01": [4.0, 4.0]}, "less")
    change = change_of(one, "b", "b")
    assert list(change.values) == ["epoch-01"]
    assert list(change.values["epoch-01"]) == [3.0, 2.0]
    assert (change.part, change.claimed) == ("change", "less")


def test_words_are_shuffled_to_another_order_where_there_is_one():
    for seed in "abcdefgh":
        assert shuffled("one two", seed) == "two one"
        assert shuffled("说好", seed) == "好说"
        assert shuffled(" one\none ", seed) == "one one"
        assert shuffled("说", seed) == "说"
    text = "风停了，Anna 说 hello world"
    found = shuffled(text, "a")
    assert found == shuffled(text, "a") != text
    assert sorted(found.replace(" ", "")) == sorted(text.replace(" ", ""))
    assert all(word in found for word in ("Anna", "hello", "world"))
