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
    names = {line.split()[1] for line in run.stdout.splitlines() if line[:1] == " "}
    known = {"product", "attention", "rope_rows", "rope_back", "outer_sum_kernel"}
    assert {name for name in names if not name.endswith("_kernel")} <= known  # no copy, no addition
    assert int(run.stdout.split()[-1]) <= 32
