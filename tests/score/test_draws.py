"""Tokens are drawn from the law that is asked for, and independently."""

import numpy as np
import pytest
import torch
from scipy import stats
from score.common import goodness_of_fit
from transformers import TemperatureLogitsWarper, TopPLogitsWarper

from cqa.score.draws import Law, draw_uniforms, stream_index

LOGITS = np.random.default_rng(4).normal(0, 1, 12).astype(np.float32)
N = 20_000


def expected_law(temperature: float, top_p: float) -> np.ndarray:
    """The law of a token by transformers' own rules."""
    scores = torch.from_numpy(LOGITS)[None].double()
    for warper in (TemperatureLogitsWarper(temperature), TopPLogitsWarper(top_p)):
        scores = warper(None, scores)
    return scores.softmax(-1)[0].numpy()


def drawn(law: Law, *, seed: int = 1, position: int = 0, context: tuple[int, ...] = (5, 7)):
    uniforms = draw_uniforms(seed, position, [stream_index(context, i) for i in range(N)])
    return np.array([law.draw(LOGITS, u) for u in uniforms])


@pytest.mark.parametrize("temperature", [0.5, 1.0, 1.7])
@pytest.mark.parametrize("top_p", [1.0, 0.9, 0.7])
def test_tokens_follow_the_law_of_temperature_and_top_p(temperature, top_p):
    law, expected = Law(temperature, top_p), expected_law(temperature, top_p)
    weights = law.weights(LOGITS)
    np.testing.assert_allclose(weights / weights.sum(), expected, rtol=1e-13)
    counts = np.bincount(drawn(law), minlength=len(LOGITS))
    assert not counts[expected == 0].any()
    kept = expected > 0
    assert goodness_of_fit(counts[kept], N * expected[kept]) > 1e-3


@pytest.mark.parametrize("other", [{"seed": 2}, {"position": 1}, {"context": (7, 5)}])
def test_draws_of_other_seeds_positions_and_contexts_are_independent(other):
    table = np.zeros((len(LOGITS), len(LOGITS)))
    law = Law(2.0)
    np.add.at(table, (drawn(law), drawn(law, **other)), 1)
    assert stats.chi2_contingency(table).pvalue > 1e-3


def test_uniforms_fill_the_interval():
    uniforms = draw_uniforms(3, 9, [stream_index((1,), i) for i in range(N)])
    assert uniforms.min() >= 0
    assert uniforms.max() < 1
    assert stats.kstest(uniforms, "uniform").pvalue > 1e-3


@pytest.mark.parametrize(
    ("probabilities", "top_p", "kept"),
    [
        ([0.25, 0.25, 0.25, 0.25], 0.5, {0, 1}),  # ties to the lower ids, a mass just reached
        ([0.25, 0.25, 0.25, 0.25], 0.51, {0, 1, 2}),
        ([0.125, 0.5, 0.125, 0.25], 0.875, {0, 1, 3}),
        ([0.125, 0.5, 0.125, 0.25], 1e-9, {1}),  # never none
        ([0.125, 0.5, 0.125, 0.25], 1.0, {0, 1, 2, 3}),
    ],
)
def test_top_p_keeps_the_smallest_set_of_enough_mass(probabilities, top_p, kept):
    logits = np.log2(np.array(probabilities)).astype(np.float32)
    weights = Law(float(1 / np.log(2)), top_p).weights(logits)
    assert set(np.flatnonzero(weights)) == kept


def test_temperature_0_takes_the_first_of_the_greatest_logits():
    logits = np.array([0.0, 3.0, -1.0, 3.0], dtype=np.float32)
    assert [Law(0.0).draw(logits, u) for u in (0.0, 0.7, 1 - 2.0**-53)] == [1, 1, 1]
    assert Law(0.0).weights(logits).tolist() == [0, 1, 0, 0]


@pytest.mark.parametrize("temperature", [1e-300, 1e-3, 1e3])
def test_the_last_uniform_number_draws_a_token_of_some_probability(temperature):
    law = Law(temperature)
    for u in (0.0, 1 - 2.0**-53):
        assert law.weights(LOGITS)[law.draw(LOGITS, u)] > 0


def test_a_uniform_number_is_that_of_its_seed_context_number_and_position():
    assert stream_index((3, 70_000), 2) & 0xFFFFFFFF == 2
    recorded = draw_uniforms(11, 4, [stream_index((3, 70_000), 2)])
    assert recorded.tolist() == [0.619030873318037]
