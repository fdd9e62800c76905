"""Masses by range equal a softmax written out, and together they are attention."""

from itertools import pairwise

import pytest
import torch
from torch import Tensor

import cqa.kernels.attention_mass as module
from cqa.kernels.attention import AttentionSpan, attention
from cqa.kernels.attention_mass import attention_mass, keys_seen

SHAPES = {  # queries, keys, heads, heads of keys, head_dim, cuts
    "grouped": (7, 19, 6, 2, 8, (0, 1, 4, 9, 12, 19)),
    "one-query": (1, 12, 4, 4, 5, (0, 1, 1, 11, 11, 12)),
    "all-queries": (9, 9, 3, 1, 4, (0, 3, 9)),
}
WINDOWS = pytest.mark.parametrize("window", [None, 1, 5, 40])
ANY_SHAPE = pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)


def problem(n: int, m: int, heads: int, kv_heads: int, width: int, cuts) -> tuple[Tensor, ...]:
    return tuple(
        torch.randn(rows, count, width) * 2
        for rows, count in ((n, heads), (m, kv_heads), (m, kv_heads))
    )


def visible(n: int, m: int, i: int, window: int | None) -> list[int]:
    position = m - n + i
    return [j for j in range(position + 1) if window is None or position - j < window]


def written_out(q: Tensor, k: Tensor, v: Tensor, cuts, window: int | None):
    """The definition, one query and head at a time, in fp64."""
    (n, heads, width), (m, kv_heads) = q.shape, k.shape[:2]
    mass = torch.zeros(n, heads, len(cuts) - 1, dtype=torch.float64)
    mixed = torch.zeros(n, heads, len(cuts) - 1, width, dtype=torch.float64)
    for i in range(n):
        keys = visible(n, m, i, window)
        for head in range(heads):
            of_keys = head // (heads // kv_heads)
            scores = k[keys, of_keys].double() @ q[i, head].double() / width**0.5
            for j, weight in zip(keys, scores.softmax(0), strict=True):
                (r,) = (r for r, (a, b) in enumerate(pairwise(cuts)) if a <= j < b)
                mass[i, head, r] += weight
                mixed[i, head, r] += weight * v[j, of_keys].double()
    return mass, mixed


@WINDOWS
@ANY_SHAPE
def test_equal_to_a_softmax_written_out(shape, window):
    tensors, cuts = problem(*shape), shape[-1]
    mass, mixed = written_out(*tensors, cuts, window)
    for dtype, atol in ((torch.float32, 3e-6), (torch.float64, 1e-13)):
        log_mass, ours = attention_mass(*(x.to(dtype) for x in tensors), cuts, window=window)
        assert log_mass.dtype == ours.dtype == dtype
        torch.testing.assert_close(log_mass.double().exp(), mass, rtol=0, atol=atol)
        torch.testing.assert_close(ours.double(), mixed, rtol=0, atol=4 * atol)
        torch.testing.assert_close(
            log_mass.exp().sum(-1), torch.ones_like(log_mass[..., 0]), rtol=0, atol=atol
        )


@WINDOWS
@ANY_SHAPE
def test_mixed_values_of_all_ranges_are_what_attention_returns(shape, window):
    q, k, v = problem(*shape)
    n, m = shape[:2]
    _, mixed = attention_mass(q, k, v, shape[-1], window=window)
    span = AttentionSpan((0, n), (m - n, m), (0, m - n))
    torch.testing.assert_close(mixed.sum(2), attention(q, k, v, (span,), window=window))


@WINDOWS
@ANY_SHAPE
def test_keys_seen_are_counted(shape, window):
    n, m, cuts = shape[0], shape[1], shape[-1]
    expected = [
        [sum(a <= j < b for j in visible(n, m, i, window)) for a, b in pairwise(cuts)]
        for i in range(n)
    ]
    assert keys_seen(n, cuts, window).tolist() == expected


def test_no_visible_key_has_no_mass():
    q, k, v = problem(*SHAPES["grouped"])
    log_mass, _ = attention_mass(q, k, v, (0, 1, 19), window=4)
    assert (log_mass[..., 0] == float("-inf")).all()
    k[0] = -400 * q[0, 0].sign()  # thousands of nats below the others for query 0
    log_mass, mixed = attention_mass(q, k, v, (0, 1, 19))
    assert -1e5 < log_mass[0, 0, 0] < -1000
    assert mixed.isfinite().all()


def test_heads_at_a_time_change_nothing(monkeypatch):
    q, k, v = problem(*SHAPES["grouped"])
    together = attention_mass(q, k, v, (0, 4, 19))
    monkeypatch.setattr(module, "MOST_WEIGHTS", 1)
    one_by_one = attention_mass(q, k, v, (0, 4, 19))
    for a, b in zip(together, one_by_one, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-6)
    # of the weights no more than one group's at a time is made
    most = max_numel(lambda: attention_mass(q, k, v, (0, 4, 19)))
    assert most == 3 * 7 * 19


def max_numel(function) -> int:
    """The largest tensor of fp32 with a column for every key that a call makes."""
    from torch.utils._python_dispatch import TorchDispatchMode

    most = 0

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, op, types, args=(), kwargs=None):
            nonlocal most
            out = op(*args, **(kwargs or {}))
            if isinstance(out, Tensor) and out.dtype == torch.float32 and out.shape[-1] == 19:
                most = max(most, out.numel())
            return out

    with Watch():
        function()
    return most
