"""Causal attention over the segments of a packed batch.

    out_i = Σ_j softmax_j(q_i · k_j / √d) v_j        j over the prefix of i's segment, and the
                                                     segment's own rows up to i

Keys of a segment are `prefix ∥ own rows` and the causal mask is bottom-right aligned. With a
window, j also lies within the last `window` positions. The reference is torch's SDPA, one call per
segment, so that a segment's result cannot depend on its neighbours. The native op computes only the
scores that the mask leaves, and a segment after a prefix gets the bits it would get if the prefix
were its own. On a GPU in 16 bits it is one call of a library for all segments, with the prefixes'
keys and values gathered before their own, and a backward without atomics, so that a gradient has
the same bits each time.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache, lru_cache
from importlib import import_module
from itertools import accumulate
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


def _imported(module: str, name: str) -> Callable[..., Any] | None:
    try:
        function: Callable[..., Any] = getattr(import_module(module), name)
    except (ImportError, AttributeError):
        return None
    return function


@cache
def _library() -> Callable[..., Tensor] | None:
    """Return attention over segments of different lengths, or None where there is none.

    torch's own takes fewer key heads than query heads as they are in 2.11; 2.12 asks for
    `enable_gqa`, and with one split a segment's bits do not depend on the others. Both libraries
    align the causal mask at the bottom right.
    """
    by_torch = _imported("torch.nn.attention.varlen", "varlen_attn")
    if by_torch is not None and torch.backends.cuda.is_flash_attention_available():
        newer = "enable_gqa" in inspect.signature(by_torch).parameters
        extra = {"enable_gqa": True, "num_splits": 1} if newer else {}
        return lambda *given, window: by_torch(*given, window_size=window, **extra)
    by_flash_attn = _imported("flash_attn", "flash_attn_varlen_func")
    if by_flash_attn is None:
        return None
    return lambda *given, window: by_flash_attn(
        *given, causal=True, window_size=window, deterministic=True
    )


def library_for(q: Tensor) -> Callable[..., Tensor] | None:
    """Return the library's attention if there is one for these queries, (M, H, D)."""
    head_dim = q.shape[2]
    fits = q.is_cuda and q.dtype in (torch.bfloat16, torch.float16)
    fits = fits and head_dim % 8 == 0 and head_dim <= 256
    if not fits or torch.cuda.get_device_capability(q.device) < (8, 0):
        return None
    return _library()


class Gathered(NamedTuple):
    """A batch's spans as one call takes them."""

    cu_query: Tensor  # (spans + 1,) int32
    cu_key: Tensor  # (spans + 1,) int32
    longest_query: int
    longest_key: int
    keys: Tensor | None  # rows of k and v in the order of the spans; None where they are that


@lru_cache(maxsize=8)  # every layer of a pass asks for the same
def gathered(spans: tuple[AttentionSpan, ...], n_rows: int, device: torch.device) -> Gathered:
    """Lay spans out for variable-length attention; `n_rows` is that of k and v."""
    lengths_q = [s.query[1] - s.query[0] for s in spans]
    keys = [
        row
        for s in spans
        for part in (s.prefix if s.prefix[1] > s.prefix[0] else (0, 0), s.own)
        for row in range(*part)
    ]
    lengths_k = [max(0, s.prefix[1] - s.prefix[0]) + s.own[1] - s.own[0] for s in spans]
    plain = len(keys) == n_rows and all(i == row for i, row in enumerate(keys))

    def moved(values: list[int], dtype: torch.dtype) -> Tensor:
        # a waiting copy would let the device run dry: the last layer asks in the middle of a pass
        return torch.tensor(values, dtype=dtype, device="cpu").to(device, non_blocking=True)

    def offsets(lengths: list[int]) -> Tensor:
        return moved([0, *accumulate(lengths)], torch.int32)

    return Gathered(
        offsets(lengths_q),
        offsets(lengths_k),
        max(lengths_q, default=0),
        max(lengths_k, default=0),
        None if plain else moved(keys, torch.int64),
    )


def attention_by_library(
    q: Tensor, k: Tensor, v: Tensor, g: Gathered, window: int | None, library: Callable[..., Tensor]
) -> Tensor:
    """One call for all spans."""
    if g.keys is not None:
        k, v = k[g.keys], v[g.keys]
    sides = (-1 if window is None else window - 1, 0)
    out = library(q, k, v, g.cu_query, g.cu_key, g.longest_query, g.longest_key, window=sides)
    if out.grad_fn is not None:  # torch's own asks a flag of the process, not its caller
        before = _determinism()
        out.grad_fn.register_prehook(lambda _: _set_determinism(2, False))
        out.grad_fn.register_hook(lambda *_: _set_determinism(*before))
    return out


def _determinism() -> tuple[int, bool]:
    """Return torch's mode (2 is deterministic or an error), and whether it fills new memory."""
    mode = torch.get_deterministic_debug_mode()
    return mode, torch.utils.deterministic.fill_uninitialized_memory  # type: ignore[attr-defined]


def _set_determinism(mode: int, fill: bool) -> None:
    torch.set_deterministic_debug_mode(mode)
    torch.utils.deterministic.fill_uninitialized_memory = fill  # type: ignore[attr-defined]


@contextmanager
def determinism_restored() -> Iterator[None]:
    """Leave torch's flags as they were, also where memory runs out."""
    before = _determinism()
    try:
        yield
    finally:
        _set_determinism(*before)


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
        table = torch.tensor([[*s.query, *s.own, *s.prefix] for s in spans], device="cpu")
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
    spans: tuple[AttentionSpan, ...] | Gathered,
    *,
    window: int | None = None,
    backend: Backend | None = None,
) -> Tensor:  # (Mq, H, D)
    """Attend, span by span; heads of q share keys in groups of H / H_kv.

    Args:
        q: Queries, shape (Mq, H, D); the spans' query ranges tile them in order.
        k: Keys, shape (M, H_kv, D); heads are contiguous, rows may be strided.
        v: Values, shape (M, H_kv, D), likewise.
        spans: What sees what; laid out already (`gathered`) where the library does it.
        window: How many positions back a query sees, itself included; None is all.
        backend: See cqa.kernels.backend.

    Returns:
        Shape (Mq, H, D).
    """
    backend = choose(backend, q.device, q.dtype)
    if backend == "triton" and (library := library_for(q)):
        if not isinstance(spans, Gathered):
            spans = gathered(spans, k.shape[0], k.device)
        return attention_by_library(q, k, v, spans, window, library)
    assert not isinstance(spans, Gathered)
    if backend == "native":
        out: Tensor = _Attention.apply(q, k, v, spans, window)  # type: ignore[no-untyped-call]
        return out
    return attention_ref(q, k, v, spans, window)
