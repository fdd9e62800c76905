"""Every probe of the handshake, and every way known in which a server fails it."""

import math
import re
import threading
import time

import pytest
from server.conftest import HASTE
from server.stub import KEY, NAME, closed, serving

from cqa.errors import ModelError, ResourceError
from cqa.schema.capabilities import Capabilities
from cqa.score.server_engine import _prompts
from cqa.server.client import Client
from cqa.server.completions import Completions
from cqa.server.handshake import MOST_DRIFT_NATS, shake_hands

PROBES = {
    "reach", "key", "name", "ids", "logprobs", "count", "repeat", "prefix", "change", "position",
    "temperature",
}  # fmt: skip


@pytest.fixture(params=["prompt_logprobs", "echo"])
def route(request, stub):
    stub.route = request.param
    return request.param


@pytest.fixture
def prompts(tokenizer):
    return _prompts(tokenizer)


def test_a_sound_server_passes_every_probe(stub, client, prompts, route):
    server, found = shake_hands(client, NAME, prompts)
    assert found.probes == dict.fromkeys(PROBES, "passed")
    assert (found.route, found.served_model, found.root) == (route, NAME, "tiny-weights")
    assert found.max_model_tokens == 200
    assert found.drift_nats == 0.0
    assert found.change_nats > MOST_DRIFT_NATS
    ids = list(found.probe_ids)
    table = stub.table(ids)
    expected = [float(table[k - 1, ids[k]]) for k in range(1, len(ids))]
    assert found.probe_logp_nats == pytest.approx(expected, abs=1e-12)
    assert Capabilities.from_json(found.to_json(), "") == found
    assert server == Completions(client, NAME, route)
    assert all(body["max_tokens"] == 1 for body in stub.bodies)
    assert {body["temperature"] for body in stub.bodies} == {0.0, 1.0}
    assert len(stub.bodies) < 24


def test_what_a_server_does_not_say_is_no_fault(stub, client, prompts, route):
    stub.served, stub.usage = [], False
    _, found = shake_hands(client, NAME, prompts)
    assert found.probes.pop("name") == "n/a: it lists no models"
    assert set(found.probes.values()) == {"passed"}
    assert (found.root, found.max_model_tokens) == (None, None)


def test_requests_that_share_a_batch_and_change_each_other(stub, client, prompts):
    plain, lock = stub.answer, threading.Lock()
    inside = [0]

    def answer(body):
        with lock:
            inside[0] += 1
        time.sleep(0.05)
        n = inside[0]
        found = plain(body)
        with lock:
            inside[0] -= 1
        for entry in found["choices"][0]["prompt_logprobs"][1:] if n > 2 else ():
            entry.update({token: {"logprob": v["logprob"] - 0.5} for token, v in entry.items()})
        return found

    stub.answer = answer
    assert shake_hands(client, NAME, prompts, concurrency=1)
    with pytest.raises(ModelError, match=r"probe `repeat`.*up to 0\.5 nats") as caught:
        shake_hands(client, NAME, prompts, concurrency=6)
    assert "--concurrency 1" in caught.value.hint


def test_what_a_server_says_can_be_written(stub, client, prompts):
    stub.served[0]["root"] = "half \ud800"
    _, found = shake_hands(client, NAME, prompts)
    assert found.root == "half ?"


def test_an_end_that_is_generated_has_no_entry(stub, client, prompts):
    """Servers differ in whether an end token that is drawn is among what they echo."""
    stub.route = "echo"
    plain = stub.answer

    def ended(body):
        answer = plain(body)
        answer["usage"]["completion_tokens"] = 0
        held = answer["choices"][0].get("logprobs")
        if held:
            del held["token_logprobs"][-1], held["top_logprobs"][-1]
        return answer

    stub.answer = ended
    assert shake_hands(client, NAME, prompts)[1].probes["count"] == "passed"


# Misbehaviour: of the ids and the values that a sound server would answer, the values.


def zeros(ids, own):
    return [None, *[0.0] * (len(own) - 1)]


def late(ids, own):
    return [None, own[1], *own[1:-1]]


def early(ids, own):
    return [None, *own[2:], -1.5]


def without_first(ids, own):
    return own[1:]


def with_first(ids, own):
    return [-7.5, *own[1:]]


def one_too_many(ids, own):
    return [*own, -1.0]


def one_too_few(ids, own):
    return own[:-1]


def at(value, place=2):
    return lambda ids, own: [*own[:place], value, *own[place + 1 :]]


class Remembers:
    """Values that hang on the prompt before, if it began alike."""

    def __init__(self, same):
        self.before, self.same = [], same

    def __call__(self, ids, own):
        shared = 0
        while shared < min(len(ids), len(self.before)) and ids[shared] == self.before[shared]:
            shared += 1
        stale = shared == len(ids) if self.same else 2 <= shared < len(ids)
        self.before = ids
        return [v and v - 1.0 if stale and k < shared else v for k, v in enumerate(own)]


class Drifts:
    """Values that are others at every request."""

    def __init__(self):
        self.n = 0

    def __call__(self, ids, own):
        self.n += 1
        return [v and v - 0.2 * self.n for v in own]


VALUES = {
    "0.0 everywhere": (zeros, "change", "0.0 for every token"),
    "late by one": (late, "position", "off by a position|change of 0 nats there"),
    "early by one": (early, "position", "nats before it"),
    "first missing": (without_first, "count", "log-probabilities for|of the first token"),
    "first given": (with_first, "count", "of the first token, which nothing comes before"),
    "one too many": (one_too_many, "count", "log-probabilities for"),
    "one too few": (one_too_few, "count", "log-probabilities for"),
    "NaN": (at(math.nan), "count", "the log-probability nan at place 2"),
    "infinity": (at(-math.inf), "count", "the log-probability -inf at place 2"),
    "null": (at(None), "count", "no log-probability at place 2"),
    "above 0": (at(0.5), "count", "above 0"),
    "minus infinity of vLLM": (at(-9999.0), "count", "stands for minus infinity"),
    "text": (at("-1.5"), "count", "no log-probability at place 2"),
    "drift": (Drifts, "repeat", "differences of up to"),
    "prefix cache": (lambda: Remembers(same=False), "prefix", "differences of up to 1 nats"),
}


@pytest.mark.parametrize("usage", [True, False], ids=["usage", "no usage"])
@pytest.mark.parametrize("how", VALUES)
def test_values_that_are_no_scores(stub, client, prompts, route, how, usage):
    change, probe, message = VALUES[how]
    stub.change = change() if how in ("drift", "prefix cache") else change
    stub.usage = usage
    with pytest.raises(ModelError, match=message) as caught:
        shake_hands(client, NAME, prompts)
    assert re.search(rf"\(probe `({probe})`\)", str(caught.value))
    assert caught.value.exit_code == 4
    assert caught.value.where == client.url


def test_values_of_what_follows_are_told_by_the_alternatives(stub, client, prompts, route):
    """As llama-cpp-python gives them where no BOS is in front: of the row after its own token."""
    plain = stub.table

    def shifted(ids):
        table = plain(ids)
        return table.roll(-1, 0)

    stub.table = shifted
    with pytest.raises(ModelError, match="alternatives whose best one moves") as caught:
        shake_hands(client, NAME, prompts)
    assert "(probe `position`)" in str(caught.value)


def test_alternatives_that_are_not_named_are_said(stub, client, prompts):
    stub.route = "echo"
    plain = stub.answer

    def without(body):
        answer = plain(body)
        if held := answer["choices"][0].get("logprobs"):
            held["top_logprobs"] = None
        return answer

    stub.answer = without
    found = shake_hands(client, NAME, prompts)[1]
    assert found.probes["position"] == "passed, but for the alternatives: it names none"


@pytest.mark.parametrize("usage", [True, False], ids=["usage", "no usage"])
def test_a_bos_of_its_own(stub, client, prompts, route, usage):
    stub.seen, stub.usage = lambda ids: [0, *ids], usage
    with pytest.raises(ModelError) as caught:
        shake_hands(client, NAME, prompts)
    assert re.search(r"\(probe `(count|position)`\)", str(caught.value))
    if usage or route == "prompt_logprobs":
        assert "tokens of its own, such as BOS" in caught.value.hint


def test_text_instead_of_ids(stub, client, prompts, tokenizer, route):
    """A server that makes a text of the ids, and cuts it anew."""
    stub.seen = lambda ids: list(tokenizer.encode_context(tokenizer.decode(ids)))
    assert prompts.spelled is not None
    with pytest.raises(ModelError, match="probe `count`") as caught:
        shake_hands(client, NAME, prompts)
    assert "makes a text of the ids" in caught.value.hint


def test_other_tokens_than_were_sent(stub, client, prompts):
    stub.seen = lambda ids: [(token + 1) % 300 for token in ids]
    with pytest.raises(ModelError, match="another token than was sent at place 1"):
        shake_hands(client, NAME, prompts)


def test_values_that_it_draws_from(stub, client, prompts, route):
    stub.temperature = True
    with pytest.raises(ModelError, match=r"probe `temperature`.*up to") as caught:
        shake_hands(client, NAME, prompts)
    assert "draws from" in caught.value.hint


@pytest.mark.parametrize("status", [400, 422, 500])
def test_ids_are_not_taken(stub, client, prompts, status):
    """llama-cpp-python's own server says so with 500."""
    said = {"detail": [{"msg": "Input should be a valid string"}]}
    stub.statuses = [lambda h: h.send(status, said)] * 9
    with pytest.raises(ModelError, match="Input should be a valid string") as caught:
        shake_hands(client, NAME, prompts)
    assert "(probe `ids`)" in str(caught.value)
    assert "cut them into tokens of its own" in caught.value.hint
    assert caught.value.exit_code == 4


def test_a_server_that_is_starting_is_lost_and_not_refused(stub, client, prompts):
    stub.statuses = [503] * 9
    with pytest.raises(ResourceError, match=r"503 status 503 \(probe `logprobs`\)"):
        shake_hands(client, NAME, prompts)


def test_no_logprobs_of_a_prompt(stub, client, prompts):
    stub.route = None
    with pytest.raises(ModelError, match="probe `logprobs`"):
        shake_hands(client, NAME, prompts)


def test_a_model_that_is_not_served(stub, client, prompts):
    with pytest.raises(ModelError, match=r"a server of large \(probe `name`\), got one of tiny"):
        shake_hands(client, "large", prompts)
    stub.served = []
    with pytest.raises(ModelError, match=r"probe `name`.*does not exist"):
        shake_hands(client, "large", prompts)


def test_a_wrong_key(stub, url, prompts):
    stub.key = KEY
    with pytest.raises(ModelError, match="probe `key`") as caught:
        shake_hands(Client(f"{url}/v1", "sk-wrong", patience=HASTE), NAME, prompts)
    assert "sk-" not in str(caught.value)
    assert shake_hands(Client(f"{url}/v1", KEY, patience=HASTE), NAME, prompts)


def test_nobody_there(prompts):
    client = Client("http://127.0.0.1:1/v1", patience=HASTE)
    with pytest.raises(ResourceError, match=r"Connection refused \(probe `reach`\)") as caught:
        shake_hands(client, NAME, prompts)
    assert caught.value.exit_code == 6


@pytest.mark.parametrize(("n", "probe"), [(0, "logprobs"), (1, "count"), (7, "repeat|change")])
def test_lost_in_the_handshake(stub, client, prompts, n, probe):
    stub.statuses = [200] * n + [closed] * 9
    with pytest.raises(ResourceError, match=rf"after 3 tries.*\(probe `({probe})`\)"):
        shake_hands(client, NAME, prompts)


def test_a_folder_that_is_gone_on_with_has_one_model(stub, client, prompts):
    _, before = shake_hands(client, NAME, prompts)
    _, again = shake_hands(client, NAME, prompts, before=before)
    assert again.probes["same"] == "passed"
    stub.change = lambda ids, own: [v and v - 0.01 for v in own]
    assert shake_hands(client, NAME, prompts, before=before)[1].probes["same"] == "passed"
    stub.change = lambda ids, own: [v and v - 0.3 for v in own]
    with pytest.raises(ModelError, match=r"differ by up to 0\.3 nats") as caught:
        shake_hands(client, NAME, prompts, before=before)
    assert "(probe `same`)" in str(caught.value)


def test_a_server_is_itself_by_whatever_address(stub, prompts):
    with serving(stub) as one, serving(stub) as other:
        found = [
            shake_hands(Client(f"{url}/v1", patience=HASTE), NAME, prompts)[1]
            for url in (one, other)
        ]
    assert found[0].probe_logp_nats == found[1].probe_logp_nats
