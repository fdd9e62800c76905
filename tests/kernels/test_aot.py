"""Every Triton kernel compiles for GPUs that are not here, at the sizes of a 7B model."""

import os
import subprocess
import sys

import pytest
from helpers import ROOT


@pytest.fixture(autouse=True)
def backend():
    """Triton's alone."""


@pytest.mark.parametrize("architecture", ["80", "90"])
def test_kernels_compile_without_spills_and_use_the_matrix_units(architecture):
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    command = ["bench/aot.py", "--quick", "--shape", "7B", "--dtype", "bf16", "--sm", architecture]
    run = subprocess.run(
        [sys.executable, *command], cwd=ROOT, env=environment, capture_output=True, text=True
    )
    assert run.returncode == 0, run.stderr
    rows = [line.split(" | ") for line in run.stdout.splitlines() if line.startswith("| ")][1:]
    assert len(rows) >= 9
    assert any("MMA" in row[-1] for row in rows)
