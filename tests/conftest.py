"""Shared set-up: no network, no progress bars, and the two real models where they are available."""

import os
import signal

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ["OMP_NUM_THREADS"] = "1" if "PYTEST_XDIST_WORKER" in os.environ else "2"

import torch

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"  # read when the kernels are imported

import pytest
from helpers import DEMO, shared

torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))  # workers share the cores


def pytest_configure() -> None:
    """Let signals do what they do at a terminal: a shell's `&` and nohup have some ignored."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip tests that need a GPU where there is none, and say so."""
    if not torch.cuda.is_available():
        for item in items:
            if item.get_closest_marker("gpu"):
                item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))


@pytest.fixture(scope="session", autouse=True)
def _quiet_transformers() -> None:
    from transformers.utils import logging

    logging.disable_progress_bar()
    logging.set_verbosity_error()


@pytest.fixture(params=["cqa-demo", "stories260k"])
def real_model(request: pytest.FixtureRequest):
    """Folder of a small model that was really trained."""
    return DEMO / "model" if request.param == "cqa-demo" else shared("models/stories260k")
