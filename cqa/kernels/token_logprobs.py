"""Log-probability, entropy and rank of each target token, without the (M, V) logits.

    z = hidden · headᵀ    logp[m] = z[m, t_m] - lse_m    lse_m = ln Σ_v exp z[m, v]
    H[m] = lse_m - Σ_v p_v z[m, v]                       rank[m] = #{v : z[m, v] > z[m, t_m]}
    varentropy[m] = Σ_v p_v (z[m, v] - Σ_u p_u z[m, u])²  where it is asked for

The one quantity of the project: its mean, negated, is the training loss; its sum is a score.
In training, logits exist for one chunk of rows, which is turned into the gradient of the hidden
states at once: the head is frozen, so nothing else is kept. In scoring on a GPU there are two
routes to the same numbers: "fused" (fused_linear_logprob.py) never writes logits; "chunked" writes
a chunk of them by the library's product and reads it once (logit_stats.py). Units: nats, of
varentropy nats².
Source: the paper's section 4.1 (log P) and 6.1 (entropy); chunking as in arXiv:2411.09009.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor

from cqa.kernels.backend import Backend, choose
from cqa.kernels.cross_entropy import cross_entropy
from cqa.kernels.fused_linear_logprob import (
    exact_logits_ref,
    exact_logits_triton,
    fused_linear_logprob_triton,
)
from cqa.kernels.logit_stats import TokenStats, logit_stats_ref, logit_stats_triton, stats_of
from cqa.kernels.matmul import wide_mm

Route = Literal["fused", "chunked"]
ROUTES: tuple[Route, ...] = ("fused", "chunked")
CHUNK_ROWS = 128  # rows of logits alive at a time, and the fixed height of a library's GEMM
CHUNK_BYTES = 300 << 20  # of fp32 logits alive at a time, where that is more rows
LARGE_CHUNK_BYTES = 2 << 30  # the same in training on a GPU with memory for it
_SHARE_OF_GPU = 32  # what part of a GPU's memory a chunk is at most, where that is less
_TALLEST_CHUNK = 512  # of scoring, whose last chunk is padded
_WIDE = 2048  # columns of hidden states from which the library's product is worth its traffic


def default_route(hidden_size: int) -> Route:
    """Return the route of scoring on a GPU where nobody asks for one: by the width of the head.

    The library's product writes 4 bytes of every logit and reads them again, whatever the width;
    Triton's tiles take longer for each of the `hidden_size` multiplications of a logit. So the one
    is for wide models and the other for narrow ones; where they meet is arithmetic on the rates
    that are expected of both, and `cqa-fast bench --levels kernel` measures both on a device.

    Never by the number of rows: a row's bits must not depend on how many others there are. The
    chunked route sees to that by one height of all its products, as the layers do.
    """
    return "chunked" if hidden_size >= _WIDE else "fused"


def chunk_rows(vocab_size: int, n_bytes: int = CHUNK_BYTES) -> int:
    """How many rows of logits are alive at a time: a multiple of CHUNK_ROWS, at least that."""
    return max(1, n_bytes // (4 * vocab_size * CHUNK_ROWS)) * CHUNK_ROWS


def training_chunk_bytes(device: torch.device) -> int:
    """Return the most bytes of fp32 logits that training has alive at a time on a device.

    On a GPU mostly those of all labels of a pass, so that its product is one. It follows from what
    memory the device has, not from what is free, since the height of a product may decide how it
    rounds, and a resumed run has to round as the one before.
    """
    if device.type != "cuda":
        return CHUNK_BYTES
    if not torch.cuda.is_available():  # an estimate for a machine elsewhere
        return LARGE_CHUNK_BYTES
    total: int = torch.cuda.get_device_properties(device).total_memory
    return max(CHUNK_BYTES, min(LARGE_CHUNK_BYTES, total // _SHARE_OF_GPU))


def logits_of(hidden: Tensor, head: Tensor, backend: Backend = "reference") -> Tensor:
    """Return fp32-accumulated logits, shape (M, V): fp32, or fp64 for fp64 inputs."""
    return wide_mm(hidden, head.T, backend=backend)


def _loss_and_gradient(
    hidden: Tensor, head: Tensor, target: Tensor, backend: Backend
) -> tuple[Tensor, Tensor]:
    """Return logp and d(-logp) / d(hidden) of one chunk, whose logits are gone afterwards."""
    logits = logits_of(hidden, head, backend)
    logp, dlogits = cross_entropy(logits, target, hidden.dtype, backend=backend)
    return logp, wide_mm(dlogits, head, backend=backend)


class _TokenLogprobs(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden: Tensor, head: Tensor, target: Tensor, backend: Backend) -> Tensor:
        wide = torch.promote_types(hidden.dtype, torch.float32)
        logp = torch.empty(target.shape, dtype=wide, device=hidden.device)
        dhidden = torch.empty_like(hidden)
        height = chunk_rows(head.shape[0], training_chunk_bytes(head.device))
        for start in range(0, target.shape[0], height):
            rows = slice(start, start + height)
            logp[rows], dhidden[rows] = _loss_and_gradient(
                hidden[rows], head, target[rows], backend
            )
        ctx.save_for_backward(dhidden)
        return logp

    @staticmethod
    def backward(ctx: Any, dlogp: Tensor) -> tuple[Tensor | None, ...]:
        (dhidden,) = ctx.saved_tensors
        return (dhidden * -dlogp[:, None]).to(dhidden.dtype), None, None, None


def token_logprobs(
    hidden: Tensor,  # (M, D)
    head: Tensor,  # (V, D)
    target: Tensor,  # (M,) int64
    *,
    backend: Backend | None = None,
) -> Tensor:  # (M,) nats
    """Return the log-probability of each target, differentiable in `hidden`.

    The gradient is formed in forward, chunk by chunk, and scaled by rows in backward.

    Args:
        hidden: Hidden states after the final norm, shape (M, D).
        head: Output embedding, shape (V, D), same dtype and device; frozen. For the native ops it
            may be bf16.
        target: Token ids in [0, V), shape (M,).
        backend: See cqa.kernels.backend.

    Returns:
        Log-probabilities in nats, shape (M,), fp32 or wider.
    """
    backend = choose(backend, head.device, head.dtype)
    wide = torch.promote_types(hidden.dtype, torch.float32)
    if torch.is_grad_enabled() and hidden.requires_grad:
        out: Tensor = _TokenLogprobs.apply(hidden, head, target, backend)  # type: ignore[no-untyped-call]
        return out
    return token_stats(hidden, head, target, backend=backend).logp.to(wide)


def token_stats_ref(
    hidden: Tensor, head: Tensor, target: Tensor, *, varentropy: bool = False
) -> TokenStats:
    """The definition, chunk by chunk."""
    logit_stats = partial(logit_stats_ref, varentropy=varentropy)
    return _chunked(hidden, head, target, CHUNK_ROWS, exact_logits_ref, logit_stats)


def _chunked(
    hidden: Tensor,
    head: Tensor,
    target: Tensor,
    height: int,
    exact_logits: Callable[[Tensor, Tensor, Tensor], Tensor],
    logit_stats: Callable[[Tensor, Tensor, Tensor], TokenStats],
) -> TokenStats:
    """Go by way of a chunk of logits at a time.

    Every GEMM has exactly `height` rows (the last one is padded), so that a row's result does not
    depend on how many others there are. The one logit that a log-probability hinges on, the
    target's, is formed again in fp64: it costs D products a row and removes most of the rounding.
    """
    chunks = []
    for start in range(0, max(1, target.shape[0]), height):  # of no rows, a chunk of padding
        rows = slice(start, start + height)
        n = target[rows].shape[0]
        h, t = hidden[rows], target[rows]
        if n < height:
            h = torch.cat((h, h.new_zeros(height - n, h.shape[1])))
            t = torch.cat((t, t.new_zeros(height - n)))
        stats = logit_stats(logits_of(h, head), t, exact_logits(h, head, t))
        fields = (stats.logp, stats.entropy, stats.rank, stats.lse, stats.varentropy)
        chunks.append([field[:n] for field in fields if field is not None])
    return TokenStats(*(torch.cat(parts) for parts in zip(*chunks, strict=True)))


def _token_stats_triton(
    hidden: Tensor, head: Tensor, target: Tensor, route: Route, varentropy: bool
) -> TokenStats:
    hidden = _unit_stride(hidden)
    if route == "fused":
        return fused_linear_logprob_triton(hidden, head, target, varentropy=varentropy)
    height = min(_TALLEST_CHUNK, chunk_rows(head.shape[0]))
    logit_stats = partial(logit_stats_triton, varentropy=varentropy)
    return _chunked(hidden, head, target, height, exact_logits_triton, logit_stats)


def _unit_stride(matrix: Tensor) -> Tensor:
    return matrix if matrix.stride(1) == 1 else matrix.contiguous()


def _token_stats_native(
    hidden: Tensor, head: Tensor, target: Tensor, varentropy: bool
) -> TokenStats:
    """Fused log-softmax and gather: logits exist in tiles, within the cache."""
    stats = torch.empty(3 + varentropy, target.shape[0], dtype=torch.float64, device="cpu")
    rank = torch.empty(target.shape, dtype=torch.int64, device="cpu")
    torch.ops.cqa.token_stats(hidden.contiguous(), head, target, stats, rank)
    return stats_of(stats, rank)


@torch.no_grad()
def token_stats(
    hidden: Tensor,  # (M, D)
    head: Tensor,  # (V, D)
    target: Tensor,  # (M,) int64
    *,
    backend: Backend | None = None,
    route: Route | None = None,
    varentropy: bool = False,
) -> TokenStats:
    """Return log-probability, entropy, rank and log-sum-exp of each target, without gradient.

    A row's result does not depend on the other rows, nor on whether varentropy is asked for.

    Args:
        hidden: Hidden states after the final norm, shape (M, D).
        head: Output embedding, shape (V, D), likewise.
        target: Token ids in [0, V), shape (M,).
        backend: See cqa.kernels.backend.
        route: Which of the two ways Triton goes, by default that of `default_route`; the other
            backends have one.
        varentropy: Whether to compute that too, by a second form of the kernels: the variance of
            -ln p under each row's distribution, in nats², accurate to about 1e-6 of itself given
            the logits, near certainty and near uniformity too (docs/kernels.md).
    """
    backend = choose(backend, head.device, head.dtype)
    if backend == "reference":
        return token_stats_ref(hidden, head, target, varentropy=varentropy)
    head, target = _unit_stride(head), target.contiguous()
    if backend == "triton":
        route = route or default_route(head.shape[1])
        return _token_stats_triton(hidden, head, target, route, varentropy)
    return _token_stats_native(hidden, head, target, varentropy)
