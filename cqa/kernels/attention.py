"""Causal attention over the segments of a packed batch.

    out_i = Σ_j softmax_j(q_i · k_j / √d) v_j        j over the prefix of i's segment, and the
                                                     segment's own rows up to i

Keys of a segment are `prefix ∥ own rows` and the causal mask is bottom-right aligned. With a
window, j also lies within the last `window` positions. The reference is torch's SDPA, one call per
segment, so that a segment's result cannot depend on its neighbours. The native op computes only the
scores that the mask leaves, and a segment after a prefix gets the bits it would get if the prefix
were its own.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from cqa.kernels.backend import Backend, choose


class AttentionSpan(NamedTuple):
    """Which queries of a pass see which keys, as row ranges."""

    query: tuple[int, int]  # rows of q
    own: tuple[int, int]  # rows of k and v, causal: the last query sees the last key
    prefix: tuple[int, int]  # rows of k and v seen in full


@lru_cache(maxsize=64)
def _mask(n_query: int, n_key: int, window: int | None, device: torch.device) -> Tensor:
    """Return the additive fp32 mask, bottom-right aligned, shape (n_query, n_key)."""
    seen = torch.ones(n_query, n_key, dtype=torch.bool, device=device).tril(n_key - n_query)
    if window is not None:
        seen &= torch.ones_like(seen).triu(n_key - n_query - window + 1)
    return torch.zeros(n_query, n_key, device=device).masked_fill_(~seen, float("-inf"))


def attention_ref(
    q: Tensor, k: Tensor, v: Tensor, spans: tuple[AttentionSpan, ...], window: int | None
) -> Tensor:
    """torch's SDPA, one call per span."""
    outs = [_attend(q, k, v, span, window) for span in spans]
    return torch.cat(outs) if len(outs) != 1 else outs[0]


def _attend(q: Tensor, k: Tensor, v: Tensor, span: AttentionSpan, window: int | None) -> Tensor:
    queries = q[slice(*span.query)]
    keys, values = k[slice(*span.own)], v[slice(*span.own)]
    if span.prefix[1] > span.prefix[0]:
        keys = torch.cat((k[slice(*span.prefix)], keys))
        values = torch.cat((v[slice(*span.prefix)], values))
    n_query, n_key = queries.shape[0], keys.shape[0]
    narrow = window is not None and n_key > window
    square = n_query == n_key and not narrow
    mask = None
    if not square and (n_query > 1 or narrow):
        mask = _mask(n_query, n_key, window if narrow else None, q.device).to(q.dtype)
    out = F.scaled_dot_product_attention(
        queries.transpose(0, 1)[None],
        keys.transpose(0, 1)[None],
        values.transpose(0, 1)[None],
        attn_mask=mask,
        is_causal=square and n_query > 1,
        enable_gqa=q.shape[1] != k.shape[1],
    )
    return out[0].transpose(0, 1)


class _Attention(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        spans: tuple[AttentionSpan, ...],
        window: int | None,
    ) -> Tensor:
        table = torch.tensor([[*s.query, *s.own, *s.prefix] for s in spans])
        out = q.new_empty(q.shape)
        lse = q.new_empty(q.shape[:2])
        scale = q.shape[2] ** -0.5
        torch.ops.cqa.attention(q, k, v, table, window or 0, scale, out, lse)
        ctx.save_for_backward(q, k, v, out, lse, table)
        ctx.window, ctx.scale = window or 0, scale
        return out

    @staticmethod
    def backward(ctx: Any, dout: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, out, lse, table = ctx.saved_tensors
        dq = q.new_empty(q.shape)
        dk, dv = k.new_zeros(k.shape), v.new_zeros(v.shape)
        torch.ops.cqa.attention_backward(
            dout.contiguous(), q, k, v, out, lse, table, ctx.window, ctx.scale, dq, dk, dv
        )
        return dq, dk, dv, None, None


def attention(
    q: Tensor,  # (Mq, H, D)
    k: Tensor,  # (M, H_kv, D)
    v: Tensor,  # (M, H_kv, D)
    spans: tuple[AttentionSpan, ...],
    *,
    window: int | None = None,
    backend: Backend | None = None,
) -> Tensor:  # (Mq, H, D)
    """Attend, span by span; heads of q share keys in groups of H / H_kv.

    Args:
        q: Queries, shape (Mq, H, D); the spans' query ranges tile them in order.
        k: Keys, shape (M, H_kv, D); heads are contiguous, rows may be strided.
        v: Values, shape (M, H_kv, D), likewise.
        spans: What sees what.
        window: How many positions back a query sees, itself included; None is all.
        backend: See cqa.kernels.backend.

    Returns:
        Shape (Mq, H, D).
    """
    if choose(backend, q.device, q.dtype) == "native":
        out: Tensor = _Attention.apply(q, k, v, spans, window)  # type: ignore[no-untyped-call]
        return out
    return attention_ref(q, k, v, spans, window)
