"""Running out of memory: how it is recognised, and what the user is told."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from cqa.errors import ResourceError

SIGNS = (  # of the CPU allocator, of C++ and of cuBLAS, which raise a plain RuntimeError
    "can't allocate memory",
    "not enough memory",
    "std::bad_alloc",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "Storage size calculation overflowed",
)


def ran_out(error: BaseException) -> bool:
    """Whether an exception says that memory was not to be had, on any device."""
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return True
    return isinstance(error, RuntimeError) and any(sign in str(error) for sign in SIGNS)


def give_back() -> None:
    """Return what a failed pass left in CUDA's cache; call it outside the `except` block."""
    if torch.cuda.is_initialized():
        torch.cuda.empty_cache()


@contextmanager
def reported(what: str, hint: str) -> Iterator[None]:
    """Turn running out of memory into a `ResourceError` that says for what."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not ran_out(error):
            raise
        raise ResourceError(f"expected enough memory for {what}, got none", hint=hint) from error
