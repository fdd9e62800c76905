"""Requests: which are made again, which end the work, and what is never shown."""

import http.client
import time
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import pytest
from server.conftest import HASTE
from server.stub import KEY, NAME, closed, serving, slow

from cqa.errors import ConfigError, ModelError, ResourceError
from cqa.server.address import Server, url_problem
from cqa.server.client import Client, Patience, RefusedError, _retry_after_s

BODY = {"model": NAME, "prompt": [1, 2, 3], "temperature": 0.0, "prompt_logprobs": 1}


@pytest.mark.parametrize("status", [408, 429, 500, 502, 503, closed, lambda h: h.send(200, b"<p>")])
def test_a_server_that_cannot_answer_now_is_asked_again(stub, client, status):
    stub.statuses = [status, status, 200]
    assert client.post("/completions", BODY)["choices"]
    assert len(stub.bodies) == 3


@pytest.mark.parametrize(
    ("status", "said"),
    [
        (429, "429 status 429"),
        (503, "503 status 503"),
        (closed, "[Rr]emote|closed"),
        (slow(0.4), "no byte within the time limit"),
        (lambda h: h.send(200, b"<p>"), "no JSON"),
        (lambda h: h.send(200, [1]), "no JSON object"),
    ],
    ids=["429", "503", "closed", "slow", "html", "list"],
)
def test_the_tries_are_bounded(stub, url, status, said):
    stub.statuses = [status] * 9
    client = Client(f"{url}/v1", patience=Patience(0.1, 3, 0.01, 0.05))
    with pytest.raises(ResourceError, match=f"after 3 tries: .*(?:{said})") as caught:
        client.post("/completions", BODY)
    assert caught.value.exit_code == 6
    assert len(stub.bodies) == 3
    assert "the same command" in caught.value.hint


def test_waits_double_and_are_as_long_as_the_server_asks(stub, url):
    def busy(after):
        return lambda handler: handler.send(429, {"detail": "busy"}, Retry_After=after)

    waits = list[float]()
    patience = Patience(tries=5, first_wait_s=1.0, longest_wait_s=60.0)
    client = Client(f"{url}/v1", patience=patience, sleep=waits.append)
    stub.statuses = [500, busy("7"), busy("1"), 503]
    client.post("/completions", BODY)
    assert waits == [1.0, 7.0, 4.0, 8.0]
    stub.statuses = [busy("3600")]
    with pytest.raises(ResourceError, match="after 1 try: 429 busy, which asks to wait 3600 s"):
        client.post("/completions", BODY)
    assert len(waits) == 4


def test_an_outage_is_told_once_and_how_long_it_is_waited_for(stub, url):
    said = list[str]()
    client = Client(f"{url}/v1", sleep=lambda _: None, on_wait=said.append)
    stub.statuses = [503, 503, 200, 502]
    client.post("/completions", BODY)
    told = f"{url}/v1/completions: 503 status 503; asked up to 6 times more, within 63 s"
    assert said == [told]
    client.post("/completions", BODY, tries=2)
    assert said[1:] == [f"{url}/v1/completions: 502 status 502; asked once more, within 1 s"]


def test_retry_after_has_two_forms():
    assert _retry_after_s(None) is None
    assert _retry_after_s("17") == 17.0
    assert _retry_after_s("soon") is None
    at = datetime.now(UTC) + timedelta(seconds=30)
    assert 25 < _retry_after_s(format_datetime(at, usegmt=True)) <= 30
    assert _retry_after_s("Wed, 21 Oct 2015 07:28:00 GMT") == 0.0


def test_what_would_be_refused_again_is_not_asked_again(stub, client):
    stub.statuses = [lambda h: h.send(422, {"detail": [{"msg": "Input should be a string"}]})]
    with pytest.raises(RefusedError, match=r"422 .*Input should be a string"):
        client.post("/completions", BODY)
    assert len(stub.bodies) == 1


@pytest.mark.parametrize("told", [None, "sk-wrong-9876543210"])
def test_a_wrong_key_is_refused_and_not_shown(stub, url, told):
    stub.key = KEY
    with pytest.raises(ModelError, match="probe `key`") as caught:
        Client(f"{url}/v1", told, patience=HASTE).get("/models")
    said = f"{caught.value}{caught.value.__cause__}{caught.value.__context__!r}"
    assert "sk-" not in said
    assert caught.value.exit_code == 4
    assert Client(f"{url}/v1", KEY, patience=HASTE).get("/models")["data"]


def test_a_key_that_a_server_repeats_is_not_shown(stub, url):
    stub.statuses = [lambda h: h.send(400, {"message": f"no quota for {KEY}"})]
    with pytest.raises(RefusedError, match="no quota for <key>"):
        Client(f"{url}/v1", KEY, patience=HASTE).post("/completions", BODY)
    stub.statuses = [lambda h: h.send(500, {"message": f"lost {KEY}"})] * 3
    with pytest.raises(ResourceError, match="lost <key>"):
        Client(f"{url}/v1", KEY, patience=HASTE).post("/completions", BODY)


def test_a_redirect_is_not_followed_since_the_key_would_go_along(stub, url):
    with serving(stub) as other:
        stub.statuses = [lambda h: h.send(307, {}, Location=f"{other}/v1/completions")]
        with pytest.raises(ModelError, match=f"a redirect to {other}"):
            Client(f"{url}/v1", KEY, patience=HASTE).post("/completions", BODY)
    assert len(stub.bodies) == 1


def test_nobody_there():
    with pytest.raises(ResourceError, match="after 2 tries: Connection refused"):
        Client("http://127.0.0.1:1/v1", patience=HASTE).get("/models", tries=2)


def test_an_answer_that_breaks_off_is_asked_for_again(stub, client):
    def torn(handler):
        handler.send_response(200)
        handler.send_header("Content-Length", "1000")
        handler.end_headers()
        handler.wfile.write(b'{"choices": [')

    stub.statuses = [torn, 200]
    assert client.post("/completions", BODY)["choices"]
    assert issubclass(http.client.IncompleteRead, http.client.HTTPException)


def test_a_key_that_is_not_named_goes_to_this_machine_or_encrypted(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    monkeypatch.setenv("MINE", "mine")
    for url in ("http://localhost:8000", "http://127.0.0.1/v1", "https://example.org"):
        assert Server(url, NAME).key() == KEY
    assert Server("http://example.org", NAME).key() is None
    assert Server("http://example.org", NAME, "MINE").key() == "mine"


@pytest.mark.parametrize("value", [None, "", "  ", "with\nnewline", "clé"])
def test_a_key_that_is_named_has_to_be_there_and_fit_a_header(monkeypatch, value):
    if value is not None:
        monkeypatch.setenv("MINE", value)
    with pytest.raises(ConfigError, match="MINE") as caught:
        Server("http://localhost:8000", NAME, "MINE").key()
    assert value is None or not value.strip() or value not in str(caught.value)


def test_addresses():
    assert Server("http://localhost:8000/", NAME).base == "http://localhost:8000/v1"
    assert Server("https://example.org/api/v1", NAME).base == "https://example.org/api/v1"
    for url in ("http://localhost:8000", "https://example.org/api/v1/", "http://[::1]:8000"):
        assert url_problem(url) is None
    for url in (
        "localhost:8000", "ftp://x", "http://", "http://u:secret@x", "http://x?key=secret",
        "http://x:port", "http://a b", "http://x:99999", "",
    ):  # fmt: skip
        problem = url_problem(url)
        assert problem
        assert "secret" not in problem


def test_waiting_is_a_thing_of_the_clock(stub, url):
    stub.statuses = [503]
    started = time.perf_counter()
    Client(f"{url}/v1", patience=Patience(first_wait_s=0.2)).post("/completions", BODY)
    assert time.perf_counter() - started >= 0.2


def test_no_proxy_is_asked_for_this_machine(stub, url, monkeypatch):
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.delenv("NO_PROXY", raising=False)
    assert Client(f"{url}/v1", patience=HASTE).get("/models")["data"]
    with pytest.raises(ResourceError, match="Connection refused"):  # of the proxy
        Client("http://example.invalid/v1", patience=HASTE).get("/models")


def test_halves_of_signs_can_be_shown(stub, url):
    stub.statuses = [lambda h: h.send(400, b'{"detail": "no \\ud83d here"}')]
    with pytest.raises(RefusedError, match=r"no \? here"):
        Client(f"{url}/v1", patience=HASTE).post("/completions", BODY)
