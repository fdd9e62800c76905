"""`token_logprobs` and `token_stats` of a head of which only some rows are there at a time.

A piece is as many rows of the head as `PIECE_MULTIPLE` divides, but for the last. Scoring goes over
the pieces once: what each makes of a row is kept (32 bytes a row and 2048 columns) and joined in
the order of the columns, so that every number has the bits of the whole head's. Training goes over
them twice, for the normaliser and for the gradient.

For the native ops; elsewhere a head is whole when it is read.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from cqa.kernels.logit_stats import TokenStats, stats_of
from cqa.kernels.matmul import mm
from cqa.kernels.token_logprobs import chunk_rows

PIECE_MULTIPLE = 2048  # columns whose sums are one partial result in csrc/token_logprobs.cpp


@dataclass(frozen=True, slots=True)
class HeadPieces:
    """A head (V, D) that is read piece by piece.

    Attributes:
        vocab_size: V.
        rows: Of ids (M,), their rows (M, D).
        pieces: Yields the number of the first row, and the rows, of every piece in order; they are
            there until the next one is asked for.
    """

    vocab_size: int
    rows: Callable[[Tensor], Tensor]
    pieces: Callable[[], Iterator[tuple[int, Tensor]]]


@torch.no_grad()
def token_stats_of_pieces(
    hidden: Tensor,  # (M, D)
    head: HeadPieces,
    target: Tensor,  # (M,) int64
    *,
    varentropy: bool = False,
) -> TokenStats:
    """Return what `token_stats` of the whole head does, to the last bit."""
    hidden, target = hidden.contiguous(), target.contiguous()
    n_rows = target.shape[0]
    exact = torch.empty(n_rows, dtype=torch.float64, device="cpu")
    own = torch.empty(n_rows, dtype=torch.float32, device="cpu")
    torch.ops.cqa.target_logits(hidden, head.rows(target), exact, own)
    spans = -(-head.vocab_size // PIECE_MULTIPLE)
    partial = torch.empty(spans, n_rows, 4, dtype=torch.int64, device="cpu")
    for first, piece in head.pieces():
        start = first // PIECE_MULTIPLE
        part = partial[start : start + -(-piece.shape[0] // PIECE_MULTIPLE)]
        torch.ops.cqa.piece_stats(hidden, piece, first, target, own, varentropy, part)
    stats = torch.empty(3 + varentropy, n_rows, dtype=torch.float64, device="cpu")
    rank = torch.empty(n_rows, dtype=torch.int64, device="cpu")
    torch.ops.cqa.join_pieces(partial, exact, stats, rank)
    return stats_of(stats, rank)


class _TokenLogprobs(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden: Tensor, head: HeadPieces, target: Tensor) -> Tensor:
        stats = token_stats_of_pieces(hidden, head, target)
        ctx.save_for_backward(_gradient(hidden, head, target, stats))
        return stats.logp.to(hidden.dtype)

    @staticmethod
    def backward(ctx: Any, dlogp: Tensor) -> tuple[Tensor | None, ...]:
        (dhidden,) = ctx.saved_tensors
        return dhidden * -dlogp[:, None], None, None


def _gradient(hidden: Tensor, head: HeadPieces, target: Tensor, stats: TokenStats) -> Tensor:
    """Return d(-logp) / d(hidden), shape (M, D)."""
    dhidden = torch.zeros_like(hidden)
    shift = stats.lse.float()  # what its rounding leaves is a factor near 1
    factor = torch.exp(shift.double() - stats.lse).float()
    at_target = torch.expm1(stats.logp).float()
    height = chunk_rows(head.vocab_size)
    for first, piece in head.pieces():
        stop = first + piece.shape[0]
        for start in range(0, target.shape[0], height):
            rows = slice(start, start + height)
            p = mm(hidden[rows], piece.T, backend="native")
            p.sub_(shift[rows, None]).exp_().mul_(factor[rows, None])
            held = torch.where((target[rows] >= first) & (target[rows] < stop))[0]
            p[held, target[rows][held] - first] = at_target[rows][held]
            dhidden[rows] += mm(p, piece, backend="native")
    return dhidden


def token_logprobs_of_pieces(
    hidden: Tensor,  # (M, D)
    head: HeadPieces,
    target: Tensor,  # (M,) int64
) -> Tensor:  # (M,) nats
    """Return the log-probability of each target, differentiable in `hidden`; see `token_logprobs`.

    Both agree but for the order of sums.
    """
    if torch.is_grad_enabled() and hidden.requires_grad:
        out: Tensor = _TokenLogprobs.apply(hidden, head, target)  # type: ignore[no-untyped-call]
        return out
    return token_stats_of_pieces(hidden, head, target).logp.to(hidden.dtype)
