"""Log-probability, entropy and rank of each target token, without the (M, V) logits.

    z = hidden · headᵀ    logp[m] = z[m, t_m] - lse_m    lse_m = ln Σ_v exp z[m, v]
    H[m] = lse_m - Σ_v p_v z[m, v]                       rank[m] = #{v : z[m, v] > z[m, t_m]}

The one quantity of the project: its mean, negated, is the training loss; its sum is a score.
Logits exist only for one chunk of rows. In training the chunk is turned into the gradient of the
hidden states at once: the head is frozen, so nothing else is kept. Units: nats.
Source: the paper's section 4.1 (log P) and 6.1 (entropy); chunking as in arXiv:2411.09009.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from cqa.kernels.backend import Backend, choose
from cqa.kernels.matmul import mm

CHUNK_ROWS = 128  # rows of logits alive at a time, and the fixed height of a library's GEMM
CHUNK_BYTES = 1 << 28  # of fp32 logits alive at a time in training, where that is more rows


@dataclass(frozen=True, slots=True)
class TokenStats:
    """What one read of a row of logits gives; every field has shape (M,)."""

    logp: Tensor  # nats, fp64
    entropy: Tensor  # nats, fp64
    rank: Tensor  # int64, 0 is the most probable token
    lse: Tensor  # fp64


def row_stats_ref(
    logits: Tensor,  # (M, V) fp32 or wider, overwritten
    target: Tensor,  # (M,) int64
    at_target: Tensor,  # (M,) fp64
) -> TokenStats:
    """The definition for one chunk of logits, which it uses as its working memory.

    `at_target` is the target's logit to more digits than the row holds; it takes the place of the
    row's own, also within the sum, so that no probability exceeds 1 and the others keep their
    digits where the target takes nearly all.
    """
    column = target[:, None]
    rank = (logits > logits.gather(1, column)).sum(1)
    top = logits.amax(1, keepdim=True)
    shifted = logits.sub_(top)
    weights = torch.exp(shifted)
    weights.scatter_(1, column, 0)
    exact = at_target - top.squeeze(1)
    log_total = torch.logaddexp(weights.sum(1).double().log(), exact)
    weighted = weights.mul_(shifted).sum(1).double() + exact.exp() * exact
    return TokenStats(
        logp=exact - log_total,
        entropy=(log_total - weighted * torch.exp(-log_total)).clamp_(min=0),
        rank=rank,
        lse=top.squeeze(1) + log_total,
    )


def loss_rows_ref(
    logits: Tensor,  # (M, V) fp32 or wider, overwritten by d(-logp) / d(logits)
    target: Tensor,  # (M,) int64
) -> Tensor:  # (M,) logp
    """Return logp and turn the logits into the gradient rows p - onehot(target), in place."""
    top = logits.amax(1, keepdim=True)
    at_target = logits.gather(1, target[:, None]) - top
    total = torch.exp(logits.sub_(top), out=logits).sum(1, keepdim=True)
    logp = at_target.double() - total.double().log()
    logits.div_(total)
    logits.scatter_(1, target[:, None], torch.expm1(logp).to(logits.dtype))
    return logp.squeeze(1).to(logits.dtype)


def logits_of(hidden: Tensor, head: Tensor, backend: Backend = "reference") -> Tensor:
    """Return fp32-accumulated logits, shape (M, V): fp32, or fp64 for fp64 inputs."""
    if hidden.dtype in (torch.float32, torch.float64):
        return mm(hidden, head.T, backend=backend)
    if hidden.is_cuda:
        return torch.mm(hidden, head.T, out_dtype=torch.float32)
    return hidden.float() @ head.float().T


def _loss_rows_native(logits: Tensor, target: Tensor) -> Tensor:
    logp = torch.empty(target.shape, dtype=torch.float64)
    torch.ops.cqa.loss_rows(logits, target, logp)
    return logp


def _token_stats_native(hidden: Tensor, head: Tensor, target: Tensor) -> TokenStats:
    """Fused log-softmax and gather: logits exist in tiles, within the cache."""
    stats = torch.empty(3, target.shape[0], dtype=torch.float64)
    rank = torch.empty_like(target)
    torch.ops.cqa.token_stats(hidden.contiguous(), head, target, stats, rank)
    return TokenStats(logp=stats[0], entropy=stats[1], rank=rank, lse=stats[2])


class _TokenLogprobs(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden: Tensor, head: Tensor, target: Tensor, backend: Backend) -> Tensor:
        wide = torch.promote_types(hidden.dtype, torch.float32)
        logp = torch.empty(target.shape, dtype=wide, device=hidden.device)
        dhidden = torch.empty_like(hidden)
        loss_rows = _loss_rows_native if backend == "native" else loss_rows_ref
        height = max(CHUNK_ROWS, CHUNK_BYTES // (4 * head.shape[0]))
        for start in range(0, target.shape[0], height):
            rows = slice(start, start + height)
            logits = logits_of(hidden[rows], head, backend)
            logp[rows] = loss_rows(logits, target[rows])
            dhidden[rows] = mm(logits.to(head.dtype), head, backend=backend)
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
        head: Output embedding, shape (V, D), same dtype and device; frozen.
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


def token_stats_ref(hidden: Tensor, head: Tensor, target: Tensor) -> TokenStats:
    """The definition, chunk by chunk.

    Every GEMM has exactly `CHUNK_ROWS` rows (the last one is padded), so that a row's result does
    not depend on how many others there are. The one logit that a log-probability hinges on, the
    target's, is formed again in fp64: it costs D products a row and removes most of the rounding.
    """
    chunks = []
    for start in range(0, target.shape[0], CHUNK_ROWS):
        rows = slice(start, start + CHUNK_ROWS)
        n = target[rows].shape[0]
        h, t = hidden[rows], target[rows]
        if n < CHUNK_ROWS:
            h = torch.cat((h, h.new_zeros(CHUNK_ROWS - n, h.shape[1])))
            t = torch.cat((t, t.new_zeros(CHUNK_ROWS - n)))
        at_target = (h.double() * head[t].double()).sum(1)
        stats = row_stats_ref(logits_of(h, head), t, at_target)
        chunks.append([field[:n] for field in (stats.logp, stats.entropy, stats.rank, stats.lse)])
    if not chunks:
        none = hidden.new_empty(0, dtype=torch.float64)
        return TokenStats(none, none, target.new_empty(0), none)
    return TokenStats(*(torch.cat(parts) for parts in zip(*chunks, strict=True)))


def token_stats(
    hidden: Tensor,  # (M, D)
    head: Tensor,  # (V, D)
    target: Tensor,  # (M,) int64
    *,
    backend: Backend | None = None,
) -> TokenStats:
    """Return log-probability, entropy, rank and log-sum-exp of each target, without gradient.

    A row's result does not depend on the other rows.

    Args:
        hidden: Hidden states after the final norm, shape (M, D).
        head: Output embedding, shape (V, D).
        target: Token ids in [0, V), shape (M,).
        backend: See cqa.kernels.backend.
    """
    if choose(backend, head.device, head.dtype) == "native":
        return _token_stats_native(hidden, head, target)
    return token_stats_ref(hidden, head, target)
