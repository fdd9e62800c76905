"""Every test of an op runs on each backend that does its dtype, Triton's on a GPU where one is."""

from collections.abc import Iterator
from functools import partial

import numpy as np
import pytest
import torch

from cqa.kernels import backend as backends
from cqa.kernels.backend import TRITON_DTYPES, Backend, native_problem

ON_GPU = torch.cuda.is_available()  # without one, Triton's kernels are interpreted on the CPU
TRITON = pytest.param("triton", marks=[pytest.mark.gpu] if ON_GPU else [])


@pytest.fixture(autouse=True, params=["reference", "native", TRITON])
def backend(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Backend:
    """Let ops that are not told take this one."""
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
def device(backend: Backend | None) -> Iterator[torch.device]:
    """Where the test's tensors are made, said or not: on the GPU for Triton's kernels."""
    place = torch.device("cuda" if ON_GPU and backend == "triton" else "cpu")
    if place.type == "cpu":
        yield place
        return
    torch.set_default_device(place)
    yield place
    torch.set_default_device(None)


@pytest.fixture(autouse=True)
def _same_numbers_every_run(device: torch.device) -> None:
    torch.manual_seed(0)


@pytest.fixture
def memory_full_of_nan() -> Iterator[None]:
    """Fill every new buffer with NaN, so that an element nobody writes shows."""
    torch.use_deterministic_algorithms(True)
    assert torch.empty(3).isnan().all()
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture
def sums_in_order(backend: Backend, monkeypatch: pytest.MonkeyPatch) -> None:
    """The interpreter multiplies tiles by a library that orders a sum by its place in the tile."""
    if backend == "triton":
        monkeypatch.setattr(np, "matmul", partial(np.einsum, "ij,jk->ik"))
