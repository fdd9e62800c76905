"""What is run on a machine with a GPU: the parts fit the time, and their settings are accepted."""

import os
import subprocess
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from cqa_fast.main import main
from helpers import ROOT

FIRST = [
    "tests", "step-7b", "kernel-7b", "score-7b", "paper-run-7b", "step-0.5b", "step-0.5b-graphs",
]  # fmt: skip


def executable(path: Path, *lines: str) -> Path:
    path.write_text("\n".join(["#!/bin/sh", *lines]))
    path.chmod(0o755)
    return path


@pytest.fixture(scope="module")
def parts(tmp_path_factory) -> dict[str, tuple[int, list[str]]]:
    """Name, limit and arguments of every part, of an interpreter that does nothing."""
    folder = tmp_path_factory.mktemp("gpu")
    python = executable(folder / "python", 'test "$1" != - || cat >/dev/null')
    log = folder / "log"
    executable(folder / "timeout", f'shift; echo "$*" >>{log}')
    path = f"{folder}{os.pathsep}{os.environ['PATH']}"
    out = folder / "out"
    subprocess.run(
        ["bash", "bench/gpu.sh", out], cwd=ROOT, check=True, capture_output=True,
        env={**os.environ, "PATH": path, "PYTHON": str(python)},
    )  # fmt: skip
    summary = (out / "summary.txt").read_text()
    names = [line.split(":")[0] for line in summary.splitlines() if ": done in " in line]
    calls = [line.split() for line in log.read_text().splitlines()]
    assert len(names) == len(calls)
    return {
        name: (int(limit), arguments)
        for name, (limit, _, *arguments) in zip(names, calls, strict=True)
    }


def test_the_limits_of_the_first_parts_fit_the_time_together(parts):
    assert list(parts)[: len(FIRST)] == FIRST
    assert sum(parts[name][0] for name in FIRST) <= 9 * 60 - 15


def test_files_with_tests_for_a_gpu_are_run_and_others_are_not_imported(parts):
    named = {argument for argument in parts["tests"][1] if argument.startswith("tests/")}
    with_tests = {
        "tests/test_device.py", "tests/score/test_conformance.py", "tests/test_doctor.py",
        "tests/train/test_graphs.py",
    }  # fmt: skip
    assert with_tests <= named
    assert len(named) < 10


@pytest.mark.skipif(torch.cuda.is_available(), reason="would be measured")
def test_every_benchmark_is_refused_for_want_of_a_gpu_alone(parts):
    for name, (_, arguments) in parts.items():
        if name not in ("tests", "op-tests", "against-model"):
            result = CliRunner().invoke(main, arguments[2:])
            assert result.exit_code == 6, (name, result.output)
            assert "expected a CUDA device, got none" in result.output
