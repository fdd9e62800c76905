"""Attention over spans, against a dense masked softmax."""

import math
from contextlib import nullcontext

import pytest
import torch
from helpers import assert_as_accurate
from torch import Tensor

from cqa.kernels.attention import (
    AttentionSpan,
    attention,
    attention_by_library,
    determinism_restored,
    gathered,
)

NOTHING = (0, 0)
LAYOUTS = {
    "documents": [
        AttentionSpan((0, 1), (0, 1), NOTHING),
        AttentionSpan((1, 8), (1, 8), NOTHING),
        AttentionSpan((8, 30), (8, 30), NOTHING),
    ],
    "tree": [
        AttentionSpan((0, 10), (0, 10), NOTHING),
        AttentionSpan((10, 11), (10, 11), (0, 10)),
        AttentionSpan((11, 14), (11, 14), (0, 10)),
        AttentionSpan((14, 26), (14, 26), (0, 10)),
    ],
    "two trees": [
        AttentionSpan((0, 5), (0, 5), NOTHING),
        AttentionSpan((5, 8), (5, 8), (0, 5)),
        AttentionSpan((8, 14), (8, 14), NOTHING),
        AttentionSpan((14, 18), (14, 18), (8, 14)),
    ],
    "kept rows": [
        AttentionSpan((0, 1), (0, 10), NOTHING),
        AttentionSpan((1, 4), (10, 13), (0, 10)),
        AttentionSpan((4, 6), (13, 22), NOTHING),
    ],
}
WINDOWS = pytest.mark.parametrize("window", [None, 2, 4, 10, 100])
HEADS = pytest.mark.parametrize(("heads", "kv_heads"), [(4, 4), (6, 2), (3, 1)])


def random_qkv(spans: list[AttentionSpan], heads: int, kv_heads: int) -> list[Tensor]:
    n_query, n_key = spans[-1].query[1], spans[-1].own[1]
    return [torch.randn(n_query, heads, 8), *torch.randn(2, n_key, kv_heads, 8)]


def dense(qkv: list[Tensor], spans: list[AttentionSpan], window: int | None) -> Tensor:
    """Softmax attention with an explicit mask, query by query and head by head."""
    q, k, v = qkv
    repeats = q.shape[1] // k.shape[1]
    outs = []
    for span in spans:
        rows = [*range(*span.prefix), *range(*span.own)]
        n_query = span.query[1] - span.query[0]
        for i in range(n_query):
            own_position = len(rows) - n_query + i
            first = 0 if window is None else max(0, own_position - window + 1)
            seen = rows[first : own_position + 1]
            keys = k[seen].repeat_interleave(repeats, dim=1)
            values = v[seen].repeat_interleave(repeats, dim=1)
            scores = torch.einsum("hd,khd->hk", q[span.query[0] + i], keys) / math.sqrt(8)
            outs.append(torch.einsum("hk,khd->hd", scores.softmax(1), values))
    return torch.stack(outs)


def values_and_gradients(function, qkv: list[Tensor], dout: Tensor) -> list[Tensor]:
    leaves = [t.detach().requires_grad_() for t in qkv]
    out = function(leaves)
    return [out.detach(), *torch.autograd.grad(out, leaves, dout.to(out.dtype))]


@pytest.mark.parametrize("layout", LAYOUTS)
@WINDOWS
@HEADS
def test_attention_and_gradients_equal_dense_masked_softmax(layout, window, heads, kv_heads):
    spans = LAYOUTS[layout]
    qkv = random_qkv(spans, heads, kv_heads)
    dout = torch.randn_like(qkv[0])
    actual = values_and_gradients(lambda t: attention(*t, tuple(spans), window=window), qkv, dout)
    naive = values_and_gradients(lambda t: dense(t, spans, window), qkv, dout)
    truth = values_and_gradients(lambda t: dense(t, spans, window), [t.double() for t in qkv], dout)
    for name, *values in zip(("out", "dq", "dk", "dv"), actual, naive, truth, strict=True):
        assert_as_accurate(name, *values)


def test_a_window_of_one_sees_only_the_own_row():
    spans = LAYOUTS["tree"]
    q, k, v = random_qkv(spans, 4, 4)
    torch.testing.assert_close(attention(q, k, v, tuple(spans), window=1), v)


def test_prefix_and_own_rows_are_one_text():
    q, k, v = random_qkv([AttentionSpan((0, 15), (0, 15), NOTHING)], 6, 2)
    whole = attention(q, k, v, (AttentionSpan((0, 15), (0, 15), NOTHING),))
    spans = (AttentionSpan((0, 9), (0, 9), NOTHING), AttentionSpan((9, 15), (9, 15), (0, 9)))
    torch.testing.assert_close(attention(q, k, v, spans), whole, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("bits", [0x7FC00000, -1], ids=["plain", "all-bits"])
def test_a_key_that_is_not_a_number_spoils_what_sees_it(bits):
    spans = LAYOUTS["documents"]
    q, k, v = random_qkv(spans, 4, 2)
    k[12, 0, 3] = torch.tensor(bits, dtype=torch.int32).view(torch.float32)
    out = attention(q, k, v, tuple(spans))
    spoiled = out.isnan().all(2)
    assert spoiled[12:30, :2].all()
    assert spoiled.sum() == 18 * 2


@WINDOWS
def test_bits_of_a_span_do_not_depend_on_the_other_spans(window):
    spans = LAYOUTS["tree"]
    q, k, v = random_qkv(spans, 6, 2)
    together = attention(q, k, v, tuple(spans), window=window)
    noise = [torch.full_like(t, torch.nan) for t in (q, k, v)]
    for span in spans:
        for rows in (span.own, span.prefix):  # everything else is replaced by NaN
            for clean, dirty in zip((q, k, v), noise, strict=True):
                dirty[slice(*rows)] = clean[slice(*rows)]
        own_q = noise[0][slice(*span.query)]
        alone = attention(own_q, *noise[1:], (span._replace(query=(0, len(own_q))),), window=window)
        assert torch.equal(alone, together[slice(*span.query)])
        for dirty in noise:
            dirty.fill_(torch.nan)


def library_of_segments(q, k, v, cu_query, cu_key, longest_query, longest_key, *, window):
    """What a library for a GPU does, segment by segment: causal, aligned at the bottom right."""
    outs, left = [], window[0]
    for i in range(len(cu_query) - 1):
        n_query, n_key = ((cu[i + 1] - cu[i]).item() for cu in (cu_query, cu_key))
        assert (n_query <= longest_query, n_key <= longest_key) == (True, True)
        query, key = slice(cu_query[i], cu_query[i + 1]), slice(cu_key[i], cu_key[i + 1])
        span = AttentionSpan((0, n_query), (0, n_key), NOTHING)
        outs.append(dense([q[query], k[key], v[key]], [span], None if left < 0 else left + 1))
    assert window[1] == 0
    return torch.cat(outs)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("window", [None, 4])
def test_spans_laid_out_for_a_library_mean_the_same(layout, window):
    spans = LAYOUTS[layout]
    qkv = random_qkv(spans, 6, 2)
    dout = torch.randn_like(qkv[0])
    expected = values_and_gradients(lambda t: dense(t, spans, window), qkv, dout)
    layout = gathered(tuple(spans), len(qkv[1]), torch.device("cpu"))
    actual = values_and_gradients(
        lambda t: attention_by_library(*t, layout, window, library_of_segments), qkv, dout
    )
    for one, other in zip(actual, expected, strict=True):
        torch.testing.assert_close(one, other)


def test_documents_are_not_gathered():
    assert gathered(tuple(LAYOUTS["documents"]), 30, torch.device("cpu")).keys is None


def modes() -> tuple[int, bool]:
    return torch.get_deterministic_debug_mode(), torch.utils.deterministic.fill_uninitialized_memory


class Watched(torch.autograd.Function):
    """A library's attention whose backward tells what torch's flags are."""

    @staticmethod
    def forward(ctx, q, error, seen):
        ctx.error, ctx.seen = error, seen
        return q.clone()

    @staticmethod
    def backward(ctx, dout):
        ctx.seen.append(modes())
        if ctx.error:
            raise ctx.error
        return dout, None, None


@pytest.mark.parametrize("error", [None, torch.OutOfMemoryError("CUDA out of memory")], ids=str)
def test_the_backward_of_a_library_alone_is_deterministic(error):
    spans = (AttentionSpan((0, 3), (0, 3), (0, 0)),)
    q, seen, before = torch.ones(3, 1, 8, requires_grad=True), [], modes()

    def library(q, *_, window):
        return Watched.apply(q, error, seen)

    layout = gathered(spans, 3, q.device)
    out = attention_by_library(q * 2, q, q, layout, None, library)
    q.register_hook(lambda _: seen.append(modes()))
    with nullcontext() if error is None else pytest.raises(type(error)), determinism_restored():
        out.sum().backward()
    assert seen == [(2, False), before][: 1 if error else 2]
    assert modes() == before
