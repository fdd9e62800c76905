"""Every Triton kernel compiles for GPUs that are not here, at the sizes of a 7B model."""

import os
import subprocess
import sys

import pytest
from helpers import ROOT


@pytest.fixture(autouse=True)
def backend():
    """Triton's alone."""


@pytest.mark.parametrize(("architecture", "rank"), [("80", "32"), ("90", "32"), ("86", "256")])
def test_kernels_compile_without_spills_and_use_the_matrix_units(architecture, rank):
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    command = ["bench/aot.py", "--quick", "--shape", "7B", "--dtype", "bf16"]
    command += ["--sm", architecture, "--rank", rank]
    run = subprocess.run(
        [sys.executable, *command], cwd=ROOT, env=environment, capture_output=True, text=True
    )
    assert run.returncode == 0, run.stderr
    rows = [line.split(" | ") for line in run.stdout.splitlines() if line.startswith("| ")][1:]
    assert len(rows) >= 9
    assert any("MMA" in row[6] for row in rows)


def test_any_number_of_rows_takes_the_same_compiled_kernels():
    code = """
import sys
from functools import partial
sys.path.insert(0, "bench")
import aot_cases, torch
from aot import launches_of
forms = []
for aot_cases.ROWS in (1400, 1408, 1):
    cases = [partial(case, aot_cases.SHAPES["0.5B"], torch.bfloat16) for case in aot_cases.CASES]
    forms.append({launch for case in cases for launch in launches_of(case)})
assert len(forms[0]) > 20
assert forms[0] == forms[1], [sorted(f.name for f in g ^ forms[0]) for g in forms]
assert forms[2] <= forms[0], sorted(f.name for f in forms[2] - forms[0])  # shares need rows
"""
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    run = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True
    )
    assert run.returncode == 0, run.stderr
