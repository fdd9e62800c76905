"""Which implementation runs, and what is said where the native one is missing."""

import subprocess
import sys
from functools import partial

import pytest
import torch
import triton
from helpers import ROOT

from cqa.doctor import examine
from cqa.errors import ResourceError
from cqa.kernels import backend as backends
from cqa.kernels.attention import AttentionSpan, attention
from cqa.kernels.aug_columns import AugColumns
from cqa.kernels.backend import choose, compute_dtype, fastest, native_problem
from cqa.kernels.copy_shrink import copy_shrink
from cqa.kernels.cross_entropy import cross_entropy
from cqa.kernels.matmul import mm
from cqa.kernels.philox import Dropout
from cqa.kernels.rms_norm import norm_shrink, rms_norm
from cqa.kernels.rope import rope
from cqa.kernels.shrink import Shrink
from cqa.kernels.swiglu_shrink import swiglu_shrink
from cqa.kernels.token_logprobs import token_stats

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


def test_a_model_of_bf16_weights_runs_the_native_ops_in_fp32():
    assert fastest(CPU, torch.bfloat16) == "native"
    assert compute_dtype("native", torch.bfloat16) == torch.float32
    assert compute_dtype("reference", torch.bfloat16) == torch.bfloat16


def test_native_ops_are_refused_where_they_do_not_fit():
    for device, dtype in ((CPU, torch.float16), (CUDA, torch.float32)):
        with pytest.raises(ValueError, match="expected fp32 or bf16 on a CPU for the native ops"):
            choose("native", device, dtype)


def tensor(*shape: int) -> torch.Tensor:
    return torch.ones(shape)


def turned(*shape: int) -> torch.Tensor:
    """As `tensor`, the first dimension contiguous."""
    return torch.ones(shape[::-1]).permute(*range(len(shape))[::-1])


def attend(span: AttentionSpan, heads: int = 2, k: torch.Tensor | None = None) -> torch.Tensor:
    k = tensor(4, 2, 8) if k is None else k
    return attention(tensor(4, heads, 8), k, tensor(4, 2, 8), (span,), backend="native")


COLUMNS = AugColumns(16, False, 4, 8)
SHRINK = Shrink(tensor(4, 16), (0, 1), Dropout(0.5, 0, 0, torch.arange(3)))
WHOLE = AttentionSpan((0, 4), (0, 4), (0, 0))
native_mm = partial(mm, backend="native")
native_rms_norm = partial(rms_norm, eps=1e-6, backend="native")
native_copy = partial(copy_shrink, columns=COLUMNS, backend="native")
native_stats = partial(token_stats, tensor(3, 8), tensor(5, 8), backend="native")
native_loss = partial(cross_entropy, dtype=torch.float32, backend="native")
UNREADABLE = {
    "factors of different depth": lambda: native_mm(tensor(3, 8), tensor(9, 4)),
    "short start": lambda: native_mm(tensor(3, 8), tensor(8, 4), tensor(1, 4)),
    "turned start": lambda: native_mm(tensor(3, 8), tensor(8, 4), turned(3, 4)),
    "turned rows": lambda: native_rms_norm(turned(3, 16), tensor(16)),
    "weight with gaps": lambda: native_rms_norm(tensor(3, 16), tensor(16, 2)[:, 0]),
    "narrower rows": lambda: native_rms_norm(tensor(3, 16).bfloat16(), tensor(16)),
    "short weight": lambda: native_rms_norm(tensor(3, 16), tensor(8)),
    "short A": lambda: norm_shrink(
        tensor(3, 16), tensor(16), 1e-6, COLUMNS, Shrink(tensor(4, 8), (0,)), backend="native"
    ),
    "turned A": lambda: native_copy(tensor(3, 16), shrink=Shrink(turned(4, 16), (0,))),
    "rank that members cannot share": lambda: native_copy(
        tensor(3, 16), shrink=Shrink(tensor(4, 16), (0, 1, 2))
    ),
    "fewer numbers than rows": lambda: native_copy(tensor(4, 16), shrink=SHRINK),
    "turned copy": lambda: native_copy(turned(3, 16), shrink=SHRINK),
    "expanded gradient": lambda: (
        native_copy(tensor(3, 16).requires_grad_(), shrink=SHRINK).sum().backward()
    ),
    "gradient of expanded rows": lambda: (
        native_copy(tensor(3, 16).requires_grad_(), shrink=SHRINK).sum(0).backward(tensor(24))
    ),
    "narrow gate": lambda: swiglu_shrink(tensor(3, 16), COLUMNS, None, backend="native"),
    "odd head": lambda: rope(tensor(3, 2, 7), tensor(3, 3), tensor(3, 3), backend="native"),
    "few angles": lambda: rope(tensor(3, 2, 8), tensor(2, 4), tensor(2, 4), backend="native"),
    "span beyond the keys": lambda: attend(AttentionSpan((0, 4), (1, 5), (0, 0))),
    "span beyond the queries": lambda: attend(AttentionSpan((1, 5), (0, 4), (0, 0))),
    "fewer keys than queries": lambda: attend(AttentionSpan((0, 4), (0, 2), (0, 0))),
    "heads that keys cannot share": lambda: attend(WHOLE, heads=3),
    "turned keys": lambda: attend(WHOLE, k=turned(4, 2, 8)),
    "target beyond the head": lambda: native_stats(torch.tensor([0, 5, 1])),
    "target below 0": lambda: native_stats(torch.tensor([0, -1, 1])),
    "fewer targets than rows": lambda: native_stats(torch.tensor([0, 1])),
    "target beyond the logits": lambda: native_loss(tensor(2, 5), torch.tensor([5, 0])),
    "turned logits": lambda: native_loss(turned(2, 5), torch.tensor([4, 0])),
}


NATIVE = pytest.mark.skipif(native_problem() is not None, reason="no native ops")


@NATIVE
@pytest.mark.parametrize("case", UNREADABLE)
def test_native_ops_refuse_what_they_would_read_or_write_in_the_wrong_place(case):
    with pytest.raises(RuntimeError, match="expected"):
        UNREADABLE[case]()


@NATIVE
def test_native_ops_take_angles_targets_and_heads_of_any_stride():
    hidden, head, target = torch.randn(3, 8), torch.randn(5, 8), torch.tensor([0, 1, 4])
    given = hidden, head.T.contiguous().T, target.repeat_interleave(2)[::2]
    expected = token_stats(hidden, head, target, backend="native")
    assert torch.equal(token_stats(*given, backend="native").logp, expected.logp)
    strided = native_loss(hidden @ head.T, given[2])
    for a, b in zip(strided, native_loss(hidden @ head.T, target), strict=True):
        assert torch.equal(a, b)
    x, angles = torch.randn(3, 2, 8), torch.randn(3, 8)
    cos, sin = angles.split(4, dim=1)
    expected = rope(x, cos.contiguous(), sin.contiguous(), backend="native")
    assert torch.equal(rope(x, cos, sin, backend="native"), expected)


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
        found = examine(tmp_path)
        assert found.machine.backends["cpu fp32"] == "reference"
        assert any("no native CPU ops: they were not built" in line for line in found.advice)
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
