"""Every test of an op runs on each backend that does its dtype."""

from functools import partial

import numpy as np
import pytest
import torch

from cqa.kernels import backend as backends
from cqa.kernels.backend import TRITON_DTYPES, Backend, native_problem


@pytest.fixture(autouse=True, params=["reference", "native", "triton"])
def backend(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Backend:
    """Let ops that are not told take this one; Triton's are interpreted where there is no GPU."""
    if request.param != "native":
        monkeypatch.setattr(backends, "native_problem", lambda: "switched off by a test")
    elif problem := native_problem():
        pytest.skip(f"no native ops: {problem}")
    if request.param == "triton":
        monkeypatch.setattr(
            backends,
            "fastest",
            lambda device, dtype: "triton" if dtype in TRITON_DTYPES else "reference",
        )
    return request.param


@pytest.fixture(autouse=True)
def _same_numbers_every_run() -> None:
    torch.manual_seed(0)


@pytest.fixture
def sums_in_order(backend: Backend, monkeypatch: pytest.MonkeyPatch) -> None:
    """The interpreter multiplies tiles by a library that orders a sum by its place in the tile."""
    if backend == "triton":
        monkeypatch.setattr(np, "matmul", partial(np.einsum, "ij,jk->ik"))
