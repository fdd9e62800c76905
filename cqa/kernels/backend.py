"""Which implementation of an op runs.

Every op has a PyTorch reference, the ground truth, which runs everywhere. "native" is the C++ twin
in csrc/, for fp32 weights on a CPU. An op that is not told takes the fastest that fits its tensors.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Literal

import torch

from cqa.errors import ResourceError

Backend = Literal["reference", "native"]
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


def choose(backend: Backend | None, device: torch.device, dtype: torch.dtype) -> Backend:
    """Return the backend to use for weights of a dtype on a device.

    Raises:
        ResourceError: "native" was asked for and is not there.
        ValueError: "native" was asked for and does not do this device or dtype.
    """
    fits = device.type == "cpu" and dtype == torch.float32
    if backend is None:
        return "native" if fits and native_problem() is None else "reference"
    if backend == "native" and not fits:
        raise ValueError(f"expected fp32 on a CPU for the native ops, got {dtype} on {device}")
    if backend == "native" and (problem := native_problem()):
        raise ResourceError(f"expected the native CPU ops, got none: {problem}", hint=REBUILD)
    return backend
