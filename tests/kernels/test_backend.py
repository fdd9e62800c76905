"""Which implementation runs, and what is said where the native one is missing."""

import subprocess
import sys

import pytest
import torch
import triton
from helpers import ROOT

from cqa.errors import ResourceError
from cqa.kernels import backend as backends
from cqa.kernels.backend import choose, native_problem
from cqa.study.doctor import examine

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


@pytest.fixture(autouse=True)
def backend():
    """Leave the choice as it is installed: it is what these tests are about."""


@pytest.mark.parametrize(
    ("device", "dtype", "expected"),
    [
        (CPU, torch.float32, "native"),
        (CPU, torch.bfloat16, "reference"),
        (CPU, torch.float64, "reference"),
        (CUDA, torch.bfloat16, "triton"),
        (CUDA, torch.float16, "triton"),
        (CUDA, torch.float32, "triton"),
        (CUDA, torch.float64, "reference"),
    ],
    ids=str,
)
def test_the_fastest_that_fits_is_taken(device, dtype, expected):
    assert choose(None, device, dtype) == expected
    assert choose("reference", device, dtype) == "reference"


def test_native_ops_are_refused_where_they_do_not_fit():
    with pytest.raises(ValueError, match="expected fp32 on a CPU for the native ops, got"):
        choose("native", CPU, torch.bfloat16)
    with pytest.raises(ValueError, match="expected fp32 on a CPU for the native ops, got"):
        choose("native", CUDA, torch.float32)


def test_triton_is_refused_where_it_does_not_fit(monkeypatch):
    with pytest.raises(ValueError, match="expected 16 or 32-bit floats on a GPU for Triton, got"):
        choose("triton", CUDA, torch.float64)
    monkeypatch.setattr(triton.knobs.runtime, "interpret", False)
    with pytest.raises(ValueError, match="expected 16 or 32-bit floats on a GPU for Triton, got"):
        choose("triton", CPU, torch.float32)
    assert choose("triton", torch.device("meta"), torch.bfloat16) == "triton"


def test_what_is_missing_is_said_with_what_to_do(monkeypatch, tmp_path):
    monkeypatch.setattr(backends, "LIBRARY", tmp_path / "none.so")
    native_problem.cache_clear()
    try:
        assert choose(None, CPU, torch.float32) == "reference"
        with pytest.raises(ResourceError, match="got none: they were not built") as caught:
            choose("native", CPU, torch.float32)
        assert "--no-build-isolation" in str(caught.value)
        facts = examine(tmp_path)
        assert facts["backends"]["cpu fp32"] == "reference"
        assert any("no native CPU ops: they were not built" in line for line in facts["advice"])
    finally:
        native_problem.cache_clear()


def test_library_of_another_kind_is_named_not_fatal(monkeypatch, tmp_path):
    broken = tmp_path / "_C.so"
    broken.write_bytes(b"not a library")
    monkeypatch.setattr(backends, "LIBRARY", broken)
    native_problem.cache_clear()
    try:
        assert "do not load with torch" in native_problem()
    finally:
        native_problem.cache_clear()


@pytest.mark.parametrize(
    ("hide", "reason"), [("torch", "torch is not installed"), ("shutil", "no C++ compiler")]
)
def test_build_without_torch_or_compiler_goes_on_and_says_so_in_one_line(hide, reason, tmp_path):
    spoil = {
        "torch": "import sys; sys.modules['torch.utils.cpp_extension'] = None",
        "shutil": "import shutil; shutil.which = lambda name: None",
    }[hide]
    code = f"{spoil}\nimport sys; sys.argv = ['setup.py', '--quiet', 'build', '--build-base', "
    code += f"{str(tmp_path)!r}]\nexec(compile(open('setup.py').read(), 'setup.py', 'exec'))"
    run = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    said = [line for line in run.stderr.splitlines() if line.startswith("cqa-fast:")]
    assert len(said) == 1
    assert said[0].startswith(f"cqa-fast: native CPU ops are not built: {reason}")
