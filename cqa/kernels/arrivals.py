"""Which of several programs with a share of one sum ends last: that one adds up all the shares.

Every program stores its share, then raises the sum's counter. The one that finds all others there
reads the shares in their own order, so the sum has the same bits whichever program comes last. A
barrier puts a program's stores before its thread that counts, and the counter, acquired and
released, before the reads of the last.
Source: CUDA's sample threadFenceReduction; the barrier of a grid in PyTorch's Inductor is the same.
"""

from __future__ import annotations

from functools import cache

import torch
import triton
import triton.language as tl
from torch import Tensor

_FEWEST = 1024
_CAPTURE = -1  # no stream's address


@triton.jit
def comes_last(
    arrivals,  # (sums,) int32, 0 before the launch and after it
    number,  # of the sum
    n_programs,  # that have a share of it
):
    """Say whether all other programs have stored their shares; this one has."""
    tl.debug_barrier()
    last = tl.atomic_add(arrivals + number, 1, sem="acq_rel") == n_programs - 1
    if last:
        tl.store(arrivals + number, 0)
    tl.debug_barrier()
    return last


@cache
def _zeros(n: int, device: torch.device, _user: int) -> Tensor:
    return torch.zeros(n, dtype=torch.int32, device=device)


def arrivals(n_sums: int, device: torch.device) -> Tensor:
    """Return a counter for each of some sums, (at least n_sums,) int32.

    They are 0 between launches, so the launches of one stream, which follow each other, share them.
    What is captured has its own, made by the run before: a capture itself would fill nothing.
    """
    n = max(_FEWEST, int(triton.next_power_of_2(n_sums)))
    if device.type != "cuda":
        return _zeros(n, device, 0)
    captured = _zeros(n, device, _CAPTURE)
    if torch.cuda.is_current_stream_capturing():
        return captured
    return _zeros(n, device, torch.cuda.current_stream(device).cuda_stream)
