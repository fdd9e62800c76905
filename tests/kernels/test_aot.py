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
    command = ["bench/aot.py", "--quick", "--shape", "7B", "--dtype", "bf16"]
    printed = alone(*command, "--sm", architecture, "--rank", rank)
    rows = [line.split(" | ") for line in printed.splitlines() if line.startswith("| ")][1:]
    assert len(rows) >= 9
    assert any("MMA" in row[6] for row in rows)


@pytest.mark.parametrize("architecture", [80, 120])
def test_the_widest_forms_do_not_spill(architecture):
    code = f"""
import sys
from functools import partial
sys.path.insert(0, "bench")
import aot_cases, torch
from aot_compile import compile_launch
from aot_launch import launches_of
launches = launches_of(partial(aot_cases.head, aot_cases.SHAPES["7B"], torch.bfloat16))
(widest,) = [each for each in launches if "VARENTROPY=True" in each.name and each.multiplies]
code = compile_launch(widest, {architecture})
assert not code.stack_bytes and not code.problems, (code.stack_bytes, code.problems)
"""
    alone("-c", code)


def test_scoring_is_compiled_with_a_of_the_model_s_dtype():
    code = """
import sys
from functools import partial
sys.path.insert(0, "bench")
import aot_cases, torch
from aot_launch import launches_of
for case in (aot_cases.norm, aot_cases.copy, aot_cases.swiglu):
    launches = launches_of(partial(case, aot_cases.SHAPES["7B"], torch.bfloat16))
    kinds = {dict(each.signature).get("lora_a") for each in launches if each.adds_shares}
    assert {"*fp32", "*bf16"} <= kinds, (case, kinds)
"""
    alone("-c", code)


def alone(*command: str) -> str:
    """Run Python where Triton compiles, not interprets; return what it printed."""
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    run = subprocess.run(
        [sys.executable, *command], cwd=ROOT, env=environment, capture_output=True, text=True
    )
    assert run.returncode == 0, run.stderr
    return run.stdout


def test_any_number_of_rows_takes_the_same_compiled_kernels():
    code = """
import sys
from functools import partial
sys.path.insert(0, "bench")
import aot_cases, torch
from aot_launch import launches_of
forms = []
for aot_cases.ROWS in (1400, 1408, 1):
    cases = [partial(case, aot_cases.SHAPES["0.5B"], torch.bfloat16) for case in aot_cases.CASES]
    forms.append({launch for case in cases for launch in launches_of(case)})
assert len(forms[0]) > 20
assert forms[0] == forms[1], [sorted(f.name for f in g ^ forms[0]) for g in forms]
assert forms[2] <= forms[0], sorted(f.name for f in forms[2] - forms[0])  # shares need rows
"""
    alone("-c", code)


def test_a_step_is_recorded_as_it_runs():
    code = """
import sys
from collections import Counter
sys.path.insert(0, "bench")
from aot_record import Attention, Product
from aot_step import Workload, launches_in, step_of
from aot_time import CARDS
work = Workload(shape="demo", window="5+7,3+9")
layers = work.model.config.n_layers
events = step_of(CARDS["H200"], work)
kernels = {launch.kernel_name for launch in launches_in(events)}
assert {"rope_rows", "cross_entropy", "adamw"} <= kernels, kernels
products, attention = Counter(), Counter()
for event, n in events.items():
    if isinstance(event, Product):
        products[event.head] += n
    if isinstance(event, Attention):
        attention[event.backward] += n
assert products[True] == 2, products  # forward, and the gradient of what goes in
assert products[False] >= 8 * layers - 1, products  # the first needs none of what goes in
assert attention == {False: layers, True: layers}, attention
"""
    alone("-c", code)


def test_every_op_that_bench_times_is_recorded():
    code = """
import sys
sys.path.insert(0, "bench")
from aot_record import bench_ops
from aot_step import Window, Workload
from aot_time import CARDS
work = Workload(shape="demo", window="5+7,3+9")
ops = bench_ops(work.model, Window.parse(work.window), 0.05, CARDS["H200"])
names = {"product qkv backward", "attention backward", "dA down by the library", "adamw forward"}
assert names <= set(ops), sorted(ops)
assert all(ops.values()), [name for name, events in ops.items() if not events]
"""
    alone("-c", code)


def test_the_predicted_sums_have_not_risen():
    assert "| H200 | scoring job" in alone("bench/aot.py", "--check")
