"""Matrix product with a fixed order of summation.

    out = start + A · B

On a CPU in fp32 the product is our own: each element is summed over blocks of 128 products, in an
order that depends on the length of the sum alone, so a row's bits do not depend on the rows beside
it. Libraries choose their order by the shape of the whole product. Elsewhere it is the library's.
"""

from __future__ import annotations

import os

import torch
from torch import Tensor

from cqa.kernels.backend import Backend, choose


def keep_sums_whole() -> None:
    """Leave cuBLAS no room to split a sum, so that a row's bits depend less on the rows beside it.

    Scoring calls this before its first product; where a product has run already in this process,
    it comes too late. What the user has set stays. Whether a row's bits then depend on the row
    alone is for a test on the device to say.
    Source: vLLM's batch-invariant mode sets the same two.
    """
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":16:8")
    os.environ.setdefault("CUBLASLT_WORKSPACE_SIZE", "1")  # KiB


def mm_ref(a: Tensor, b: Tensor, start: Tensor | None = None, *, overwrite: bool = False) -> Tensor:
    """The definition."""
    b = b.to(a.dtype)  # weights may be narrower
    if start is None:
        return a @ b
    if start.dtype == a.dtype:
        return start.addmm_(a, b) if overwrite else torch.addmm(start, a, b)
    if a.dtype.itemsize > 2:
        return start + a @ b
    if a.is_cuda:
        return torch.addmm(start, a, b, out_dtype=start.dtype)
    return torch.addmm(start, a.to(start.dtype), b.to(start.dtype))


def _mm_native(a: Tensor, b: Tensor, start: Tensor | None, tail: Tensor | None) -> Tensor:
    if a.shape[1] == 0:
        return mm_ref(a, b, start)
    if start is not None and start.dtype != a.dtype:
        return start + _mm_native(a, b, None, tail)
    beside = tail is not None and b.shape[0] == a.shape[1]
    n = b.shape[1] + (tail.shape[1] if tail is not None and beside else 0)
    out = a.new_empty(a.shape[0], n)
    tail = None if tail is None else _unit_stride(tail)
    torch.ops.cqa.mm(_unit_stride(a), _unit_stride(b), out, start, tail)
    return out


def _unit_stride(matrix: Tensor) -> Tensor:
    return matrix if 1 in matrix.stride() else matrix.contiguous()


def mm(
    a: Tensor,  # (M, K)
    b: Tensor,  # (K, N)
    start: Tensor | None = None,  # (M, N)
    *,
    tail: Tensor | None = None,  # (K', N) or (K, N')
    overwrite: bool = False,
    backend: Backend | None = None,
) -> Tensor:  # (M, N)
    """Return start + a · b, without gradient.

    Args:
        a: Left factor, shape (M, K); rows or columns may be strided.
        b: Right factor, shape (K, N), likewise, same device and dtype; beside an fp32 `a` it may be
            bf16, with the digits of its fp32 copy.
        start: Added to the product, shape (M, N), rows contiguous. It may be one precision wider,
            which the result then has; a product of 16-bit numbers is then not rounded before it.
        tail: For the native op: what follows b in fp32, its last rows where b has fewer rows than
            a has columns, else its last columns.
        overwrite: The library may add to `start` where it lies, and does where that has the
            product's dtype; otherwise it copies it first.
        backend: See cqa.kernels.backend.
    """
    if choose(backend, a.device, a.dtype) == "native":
        return _mm_native(a, b, start, tail)
    assert tail is None
    return mm_ref(a, b, start, overwrite=overwrite)


def wide_mm(a: Tensor, b: Tensor, *, backend: Backend | None = None) -> Tensor:
    """Return a · b in fp32 for 16-bit factors, else in theirs; no partial sum has 16 bits."""
    if a.dtype in (torch.float32, torch.float64):
        return mm(a, b, backend=backend)
    if a.is_cuda:
        return torch.mm(a, b, out_dtype=torch.float32)
    return a.float() @ b.float()
