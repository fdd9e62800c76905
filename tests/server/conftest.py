"""A tiny model, a stub server of it, and a client that does not wait."""

import pytest
from helpers import tiny_model
from server.stub import Stub, serving

from cqa.data.tokenizer import Tokenizer
from cqa.server.client import Client, Patience

HASTE = Patience(timeout_s=5.0, tries=3, first_wait_s=0.01, longest_wait_s=0.05)


@pytest.fixture(scope="session")
def model(tmp_path_factory):
    """The folder of a tiny model."""
    return tiny_model(tmp_path_factory.mktemp("served") / "model")


@pytest.fixture(scope="session")
def tokenizer(model):
    return Tokenizer(model)


@pytest.fixture
def stub(model):
    return Stub(model)


@pytest.fixture
def url(stub):
    with serving(stub) as address:
        yield address


@pytest.fixture
def client(url):
    return Client(f"{url}/v1", patience=HASTE)


@pytest.fixture(autouse=True)
def _no_key(monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
