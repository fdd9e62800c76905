"""Which implementation of an op runs.

Every op has a PyTorch reference, the ground truth, which runs everywhere. "native" is the C++ twin
in csrc/, for a CPU: it computes in fp32, and weights may be fp32 or bf16, which is widened a panel
at a time. "triton" is the GPU's, in the op's own file. An op that is not told takes the fastest
whose result has the dtype of its tensors.

Triton kernels run on CPU tensors too where TRITON_INTERPRET=1 was set before they were imported,
slowly, to check their arithmetic; and take tensors without data (device "meta") to be compiled
ahead of time.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Literal

import torch
import triton

from cqa.errors import ResourceError

Backend = Literal["reference", "native", "triton"]
TRITON_DTYPES = (torch.bfloat16, torch.float16, torch.float32)
NATIVE_DTYPES = (torch.float32, torch.bfloat16)  # of weights
LIBRARY = Path(__file__).parents[1] / "_C.so"
REBUILD = (
    "with torch and a C++ compiler there: pip install --no-build-isolation --force-reinstall ."
)


@cache
def native_problem() -> str | None:
    """Load the native ops; return why there are none, or None when they are there."""
    if not LIBRARY.is_file():
        return "they were not built when this package was installed"
    try:
        torch.ops.load_library(str(LIBRARY))
    except OSError as error:
        return f"they do not load with torch {torch.__version__}: {error}"
    return None


def fastest(device: torch.device, dtype: torch.dtype) -> Backend:
    """Return the fastest backend for weights of a dtype on a device."""
    if device.type == "cuda" and dtype in TRITON_DTYPES:
        return "triton"
    fits_native = device.type == "cpu" and dtype in NATIVE_DTYPES
    return "native" if fits_native and native_problem() is None else "reference"


def compute_dtype(backend: Backend, dtype: torch.dtype) -> torch.dtype:
    """Return the dtype of what a backend makes of weights of a dtype."""
    return torch.float32 if backend == "native" else dtype


def choose(backend: Backend | None, device: torch.device, dtype: torch.dtype) -> Backend:
    """Return the backend of one op for tensors of a dtype on a device.

    Raises:
        ResourceError: "native" was asked for and is not there.
        ValueError: The backend asked for does not do this device or dtype.
    """
    if backend is None:
        best = fastest(device, dtype)
        return best if compute_dtype(best, dtype) == dtype else "reference"
    if backend == "native":
        if device.type != "cpu" or dtype not in NATIVE_DTYPES:
            raise ValueError(
                f"expected fp32 or bf16 on a CPU for the native ops, got {dtype} on {device}"
            )
        if problem := native_problem():
            raise ResourceError(f"expected the native CPU ops, got none: {problem}", hint=REBUILD)
    if backend == "triton":
        devices = ("cuda", "meta", "cpu") if triton.knobs.runtime.interpret else ("cuda", "meta")
        if device.type not in devices or dtype not in TRITON_DTYPES:
            raise ValueError(
                f"expected 16 or 32-bit floats on a GPU for Triton, got {dtype} on {device}"
            )
    return backend
