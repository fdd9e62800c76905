"""How much memory is free, how running out of it is recognised, and what the user is told."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from cqa.errors import ResourceError

SIGNS = (  # of the CPU allocator, C++, CUDA's driver and cuBLAS, which raise a plain RuntimeError
    "can't allocate memory",
    "not enough memory",
    "std::bad_alloc",
    "CUDA error: out of memory",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "Storage size calculation overflowed",
)

LIMITS = (  # a container's limit and use, version 2 and 1 of its interface
    ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current"),
    ("/sys/fs/cgroup/memory/memory.limit_in_bytes", "/sys/fs/cgroup/memory/memory.usage_in_bytes"),
)


def free_bytes(device: torch.device) -> int:
    """Return the memory that can still be had on a device."""
    if device.type != "cuda":
        return free_memory_bytes()
    free, _ = torch.cuda.mem_get_info(device)
    cached = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return int(free) + cached


def free_memory_bytes() -> int:
    """Return the memory that a new process can have: of the machine, or of its container."""
    free = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_AVPHYS_PAGES")
    meminfo = Path("/proc/meminfo")
    for line in meminfo.read_text().splitlines() if meminfo.exists() else ():
        if line.startswith("MemAvailable:"):
            free = int(line.split()[1]) * 1024
    for limit, used in LIMITS:
        values = [_number(Path(limit)), _number(Path(used))]
        if values[0] is not None and values[1] is not None:
            free = min(free, max(0, values[0] - values[1]))
    return free


def _number(path: Path) -> int | None:
    try:
        return int(path.read_text())
    except (OSError, ValueError):  # no such file, or "max"
        return None


def size_text(n_bytes: float) -> str:
    """Write a size for people: 15.2 GB."""
    for unit in ("B", "kB", "MB"):
        if n_bytes < 1000:
            return f"{n_bytes:.0f} {unit}"
        n_bytes /= 1000
    return f"{n_bytes:.1f} GB"


def ran_out(error: BaseException) -> bool:
    """Whether an exception says that memory ran out, on any device."""
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
