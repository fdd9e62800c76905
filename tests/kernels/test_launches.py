"""What a layer of a training pass launches on a GPU, counted on tensors without data."""

import os
import subprocess
import sys

import pytest
from helpers import ROOT


@pytest.fixture(autouse=True)
def backend():
    """Triton's alone."""


def test_a_layer_launches_no_more_than_it_has_to():
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    run = subprocess.run(
        [sys.executable, "bench/launches.py"],
        cwd=ROOT, env=environment, capture_output=True, text=True,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
    names = dict(reversed(line.split()) for line in run.stdout.splitlines() if line[:1] == " ")
    for avoided in ("add", "addmm", "cat", "copy_", "clone", "_to_copy", "zeros", "fill_"):
        assert avoided not in names
    assert int(run.stdout.split()[-1]) <= 43
