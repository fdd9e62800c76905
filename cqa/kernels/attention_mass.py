"""Where the attention of some queries goes, by ranges of keys.

    a_ihj = softmax_j(q_ih · k_jh / √d)         j over the keys up to i's own, within the window
    log_mass_ihr = ln Σ_{j in r} a_ihj          mixed_ihr = Σ_{j in r} a_ihj v_jh

Weights are made for a few heads at a time and never kept. A mass is a difference of two
log-sum-exps, so that none is rounded to zero: only a range of which a query sees no key has -inf.
The reference is the only backend; it computes in fp32, or in fp64 on fp64.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor

MOST_WEIGHTS = 2**22  # at a time, where one group of heads has no more than that


def keys_seen(n_query: int, cuts: Sequence[int], window: int | None = None) -> Tensor:
    """Count the keys of each range that each of the last `n_query` positions sees.

    Args:
        n_query: How many positions, the last of them that of the last key.
        cuts: Where ranges of keys begin, then the number of keys; see `attention_mass`.
        window: How many positions back a query sees, itself included; None is all.

    Returns:
        Shape (n_query, ranges), int64, on the CPU.
    """
    last = torch.arange(cuts[-1] - n_query, cuts[-1], device="cpu")[:, None]
    first = torch.zeros_like(last) if window is None else (last - window + 1).clamp(min=0)
    bounds = torch.tensor(cuts, device="cpu")
    return (bounds[1:].minimum(last + 1) - bounds[:-1].maximum(first)).clamp(min=0)


def attention_mass(
    q: Tensor,  # (n, H, D)
    k: Tensor,  # (m, H_kv, D)
    v: Tensor,  # (m, H_kv, D)
    cuts: Sequence[int],  # R + 1
    *,
    window: int | None = None,
) -> tuple[Tensor, Tensor]:  # (n, H, R), (n, H, R, D)
    """Share out the attention of the last n of m positions among ranges of keys.

    Args:
        q: Queries, shape (n, H, D), rotated; heads share keys in groups of H / H_kv.
        k: Keys, shape (m, H_kv, D), rotated.
        v: Values, shape (m, H_kv, D).
        cuts: Range r holds the keys from cuts[r] up to cuts[r + 1]; they tile the keys from 0 to m,
            and may be empty.
        window: How many positions back a query sees, itself included; None is all.

    Returns:
        The logarithm of each range's mass, shape (n, H, R), and the values mixed by the weights of
        each range, shape (n, H, R, D), whose sum over ranges is what attention returns. Both in
        fp32, or fp64 on fp64, on the device of q.
    """
    (n, n_heads, width), (m, n_kv) = q.shape, k.shape[:2]
    group = n_heads // n_kv
    dtype = torch.promote_types(q.dtype, torch.float32)
    # a copy of each, so that a product's operands are aligned alike in any pass
    queries = q.to(dtype).view(n, n_kv, group, width).permute(1, 2, 0, 3)
    queries = (queries * width**-0.5).reshape(n_kv, group * n, width)
    keys, values = (_copied(x, dtype) for x in (k, v))
    hidden = _hidden(n, m, window, q.device)
    log_mass = q.new_empty(n_kv, group, n, len(cuts) - 1, dtype=dtype)
    mixed = q.new_empty(n_kv, group, n, len(cuts) - 1, width, dtype=dtype)
    step = max(1, MOST_WEIGHTS // (group * n * m))
    for first in range(0, n_kv, step):
        heads = slice(first, first + step)
        scores = (queries[heads] @ keys[heads].mT).unflatten(1, (group, n))
        scores.masked_fill_(hidden, float("-inf"))
        parts = [scores[..., a:b].logsumexp(-1) for a, b in pairwise(cuts)]
        sums = torch.stack(parts, -1)
        total = sums.logsumexp(-1, keepdim=True)
        log_mass[heads] = sums - total
        weights = scores.sub_(total).exp_().flatten(1, 2)
        for r, (a, b) in enumerate(pairwise(cuts)):
            part = weights[..., a:b] @ values[heads, a:b]
            mixed[heads, :, :, r] = part.unflatten(1, (group, n))
    return (
        log_mass.permute(2, 0, 1, 3).flatten(1, 2),
        mixed.permute(2, 0, 1, 3, 4).flatten(1, 2),
    )


def _copied(x: Tensor, dtype: torch.dtype) -> Tensor:
    """Copy (m, H_kv, D) to (H_kv, m, D)."""
    return x.transpose(0, 1).to(dtype, copy=True, memory_format=torch.contiguous_format)


def _hidden(n: int, m: int, window: int | None, device: torch.device) -> Tensor:
    """Return which keys each of the last n of m positions does not see, (n, m)."""
    back = torch.arange(m - n, m, device=device)[:, None] - torch.arange(m, device=device)
    return (back < 0) if window is None else (back < 0) | (back >= window)
