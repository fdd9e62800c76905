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

CHUNK_ROWS = 128  # rows of logits alive at a time, and the fixed height of a scoring GEMM


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


def logits_of(hidden: Tensor, head: Tensor) -> Tensor:
    """Return fp32-accumulated logits, shape (M, V): fp32, or fp64 for fp64 inputs."""
    if hidden.dtype in (torch.float32, torch.float64):
        return hidden @ head.T
    if hidden.is_cuda:
        return torch.mm(hidden, head.T, out_dtype=torch.float32)
    return hidden.float() @ head.float().T


class _TokenLogprobs(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden: Tensor, head: Tensor, target: Tensor) -> Tensor:
        wide = torch.promote_types(hidden.dtype, torch.float32)
        logp = torch.empty(target.shape, dtype=wide, device=hidden.device)
        dhidden = torch.empty_like(hidden)
        for start in range(0, target.shape[0], CHUNK_ROWS):
            rows = slice(start, start + CHUNK_ROWS)
            logits = logits_of(hidden[rows], head)
            logp[rows] = loss_rows_ref(logits, target[rows])
            dhidden[rows] = logits.to(head.dtype) @ head
        ctx.save_for_backward(dhidden)
        return logp

    @staticmethod
    def backward(ctx: Any, dlogp: Tensor) -> tuple[Tensor | None, ...]:
        (dhidden,) = ctx.saved_tensors
        return (dhidden * -dlogp[:, None]).to(dhidden.dtype), None, None


def token_logprobs(
    hidden: Tensor,  # (M, D)
    head: Tensor,  # (V, D)
    target: Tensor,  # (M,) int64
) -> Tensor:  # (M,) nats
    """Return the log-probability of each target, differentiable in `hidden`.

    The gradient is formed in forward, chunk by chunk, and scaled by rows in backward.

    Args:
        hidden: Hidden states after the final norm, shape (M, D).
        head: Output embedding, shape (V, D), same dtype and device; frozen.
        target: Token ids in [0, V), shape (M,).

    Returns:
        Log-probabilities in nats, shape (M,), fp32 or wider.
    """
    wide = torch.promote_types(hidden.dtype, torch.float32)
    if torch.is_grad_enabled() and hidden.requires_grad:
        out: Tensor = _TokenLogprobs.apply(hidden, head, target)  # type: ignore[no-untyped-call]
        return out
    return token_stats(hidden, head, target).logp.to(wide)


def token_stats(
    hidden: Tensor,  # (M, D)
    head: Tensor,  # (V, D)
    target: Tensor,  # (M,) int64
) -> TokenStats:
    """Return log-probability, entropy, rank and log-sum-exp of each target, without gradient.

    Every GEMM has exactly `CHUNK_ROWS` rows (the last one is padded), so that a row's result does
    not depend on how many others there are. The one logit that a log-probability hinges on, the
    target's, is formed again in fp64: it costs D products a row and removes most of the rounding.

    Args:
        hidden: Hidden states after the final norm, shape (M, D).
        head: Output embedding, shape (V, D).
        target: Token ids in [0, V), shape (M,).
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
