"""What a server answers, whatever it is: log-probabilities of the prompt, or the reason why not."""

import json
import math
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cqa.server.completions import Completions, NoLogprobsError, problem

KEYS = st.sampled_from(
    ["logprobs", "prompt_logprobs", "token_logprobs", "top_logprobs", "logprob", "choices", "usage",
     "prompt_tokens", "completion_tokens", "1", "2", "3"]
)  # fmt: skip
ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=4),
    lambda part: st.lists(part, max_size=4) | st.dictionaries(KEYS, part, max_size=4),
    max_leaves=12,
)
ROUTES = ["prompt_logprobs", "echo"]


class Says:
    """Stands in for a client whose server always gives one answer."""

    def __init__(self, answer):
        self.answer = json.loads(json.dumps(answer))

    def post(self, path, body, *, tries=None):
        return self.answer


def asked(answer, route, ids=(1, 2, 3)):
    return Completions(Says(answer), "m", route).ask(ids)


@pytest.mark.parametrize("route", ROUTES)
@given(choice=st.dictionaries(KEYS, ANYTHING, max_size=4), usage=ANYTHING)
def test_no_answer_is_misread(route, choice, usage):
    answer = None
    with suppress(NoLogprobsError):
        answer = asked({"choices": [choice], "usage": usage}, route)
    if answer is not None and problem(answer, 3) is None:
        assert answer.own[0] is None
        assert all(math.isfinite(v) and -9999 < v <= 1e-5 for v in answer.own[1:])
        assert len(answer.own) == len(answer.best) == 3


@pytest.mark.parametrize("route", ROUTES)
@given(answer=st.dictionaries(KEYS, ANYTHING, max_size=4))
def test_no_answer_is_a_bug(route, answer):
    with suppress(NoLogprobsError):
        problem(asked(answer, route), 3)


def test_the_token_that_was_sent_counts_and_the_best_beside_it():
    """As vLLM writes it: by token id, the one that was sent and the likeliest."""
    entries = [
        None,
        {"2": {"logprob": -4.5, "rank": 9, "decoded_token": "b"}, "7": {"logprob": -0.5}},
        {"3": {"logprob": -0.25, "rank": 1}},
    ]
    found = asked({"choices": [{"prompt_logprobs": entries}]}, "prompt_logprobs")
    assert (found.own, found.best) == ((None, -4.5, -0.25), (None, -0.5, -0.25))
    assert problem(found, 3) is None
    found = asked({"choices": [{"prompt_logprobs": entries}]}, "prompt_logprobs", (1, 7, 4))
    assert found.own == (None, -0.5, None)
    assert problem(found, 3) == "another token than was sent at place 2"


@pytest.mark.parametrize(
    ("usage", "finish", "entries", "expected"),
    [
        ({"prompt_tokens": 3, "completion_tokens": 1}, "length", [None, -1.0, -2.0, -9.0], None),
        ({"prompt_tokens": 3, "completion_tokens": 0}, "stop", [None, -1.0, -2.0], None),
        (None, "length", [None, -1.0, -2.0, -9.0], None),
        (None, "stop", [None, -1.0, -2.0], None),
        (None, "stop", [None, -1.0, -2.0, -9.0], None),
        (None, "length", [None, -1.0, -9.0], "2 log-probabilities for 3 tokens"),
        ({"prompt_tokens": 4, "completion_tokens": 1}, "length", [None, -7.0, -1.0, -2.0, -9.0],
         "4 log-probabilities for 3 tokens"),
        ({"prompt_tokens": 4}, "length", [None, -1.0, -2.0, -9.0],
         "a prompt of 4 tokens by its own count for 3 that were sent"),
    ],
)  # fmt: skip
def test_the_generated_token_is_left_aside(usage, finish, entries, expected):
    held = {"token_logprobs": entries, "top_logprobs": None}
    answer = {"choices": [{"logprobs": held, "finish_reason": finish}], "usage": usage}
    found = asked(answer, "echo")
    assert problem(found, 3) == expected
    if expected is None:
        assert found.own == (None, -1.0, -2.0)


def test_only_the_places_that_are_needed_have_to_have_a_value():
    held = {"token_logprobs": [None, -9999.0, -2.0, -9.0]}
    found = asked({"choices": [{"logprobs": held, "finish_reason": "length"}]}, "echo")
    assert problem(found, 3, since=2) is None
    assert problem(found, 3) == "-9999.0, which stands for minus infinity, at place 1 of 3"
