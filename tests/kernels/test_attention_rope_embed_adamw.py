"""Attention over spans, rotation, embedding noise and optimizer, each against its definition."""

import math

import numpy as np
import pytest
import torch
from helpers import assert_as_accurate
from torch import Tensor
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

from cqa.kernels.adamw import AdamState, adamw_step, clip_gradient
from cqa.kernels.attention import AttentionSpan, attention, attention_by_library, gathered
from cqa.kernels.embed import Noise, embed
from cqa.kernels.launch import INTERPRETED
from cqa.kernels.philox import NEFTUNE, philox_words_ref, stream_of
from cqa.kernels.rope import rope

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
    actual = values_and_gradients(
        lambda t: attention_by_library(*t, tuple(spans), window, library_of_segments), qkv, dout
    )
    for one, other in zip(actual, expected, strict=True):
        torch.testing.assert_close(one, other)


def test_documents_are_not_gathered():
    assert gathered(tuple(LAYOUTS["documents"]), 30, torch.device("cpu")).keys is None


def angles(positions: Tensor, head_dim: int) -> tuple[Tensor, Tensor]:
    half = positions.double()[:, None] * 100.0 ** (-torch.arange(head_dim // 2) / head_dim * 2)
    return half.cos(), half.sin()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
def test_rotation_equals_that_of_transformers(dtype):
    x = torch.randn(13, 3, 8).to(dtype)
    cos, sin = (t.float() for t in angles(torch.arange(13), 8))

    def theirs(x: Tensor) -> Tensor:
        tables = [torch.cat((t, t), dim=1).to(x.dtype)[None] for t in (cos, sin)]
        rotated, _ = apply_rotary_pos_emb(*[x.transpose(0, 1)[None]] * 2, *tables)
        return rotated[0].transpose(0, 1)

    assert_as_accurate("rope", rope(x, cos, sin), theirs(x), theirs(x.double()))


def test_rotating_back_is_the_identity():
    x = torch.randn(13, 3, 8, dtype=torch.float64)
    cos, sin = angles(torch.arange(13) * 1000, 8)
    torch.testing.assert_close(rope(rope(x, cos, sin), cos, -sin), x, rtol=0, atol=1e-14)


def test_products_of_rotated_heads_depend_on_the_distance_alone():
    q, k = torch.randn(2, 1, 3, 8, dtype=torch.float64)
    near, far = (
        (rope(q, *angles(torch.tensor([p]), 8)) * rope(k, *angles(torch.tensor([p - 5]), 8))).sum(2)
        for p in (5, 205)
    )
    torch.testing.assert_close(near, far, rtol=0, atol=1e-12)


def test_gradient_of_rotation_is_right():
    cos, sin = angles(torch.arange(4), 8)
    x = torch.randn(4, 2, 8, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: rope(x, cos, sin), x)


def noise_of(alpha: float, lengths: list[int], *, seed: int = 5, step: int = 2, first: int = 0):
    rows = torch.arange(first, first + len(lengths))
    return Noise(alpha, seed, step, rows, torch.tensor(lengths))


def noisy(noise: Noise, n_cols: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Noise alone: all embeddings are zero."""
    ids = torch.zeros(len(noise.rows), dtype=torch.int64)
    return embed(ids, torch.zeros(3, n_cols, dtype=dtype), noise)


def test_embedding_without_noise_is_a_look_up():
    table = torch.randn(11, 6)
    ids = torch.tensor([3, 3, 0, 10])
    assert torch.equal(embed(ids, table), torch.stack([table[i] for i in ids]))


@pytest.mark.parametrize("n_cols", [1, 6, 64])
def test_noise_is_the_counter_based_uniform_scaled_by_the_sample_length(n_cols):
    lengths, calls = [4, 4, 9], -(-n_cols // 4)
    out = noisy(noise_of(5.0, lengths, first=7), n_cols).double()
    for i, length in enumerate(lengths):
        index = np.arange((7 + i) * calls, (8 + i) * calls, dtype=np.uint64)
        words = philox_words_ref(5, 2, stream_of(NEFTUNE), index).reshape(-1)[:n_cols]
        u = torch.from_numpy((words >> 8).astype(np.float64)) / 2**23 - 1
        expected = 5.0 / math.sqrt(length * n_cols) * u
        torch.testing.assert_close(out[i], expected, rtol=1e-6, atol=0)


@pytest.mark.parametrize("length", [1, 50, 3000])
def test_noise_has_the_moments_of_its_uniform_law(length):
    n_cols, alpha = 96, 5.0
    bound = alpha / math.sqrt(length * n_cols)
    u = noisy(noise_of(alpha, [length] * 1000), n_cols).double() / bound
    n = u.numel()
    assert u.abs().max() <= 1 + 1e-6
    assert u.abs().max() > 0.999
    assert abs(u.mean()) < 4 * math.sqrt(1 / 3 / n)
    assert abs(u.square().mean() - 1 / 3) < 4 * math.sqrt(4 / 45 / n)


def test_noise_follows_the_row_number_and_own_length_not_the_packing():
    together = noisy(noise_of(5.0, [4, 4, 9, 9, 30]), 16)
    apart = noisy(noise_of(5.0, [9, 9], first=2), 16)
    assert torch.equal(together[2:4], apart)
    other_length = noisy(noise_of(5.0, [36, 36], first=2), 16)
    torch.testing.assert_close(other_length * 2, apart, rtol=1e-6, atol=0)


@pytest.mark.parametrize("other", [{"seed": 6}, {"step": 3}, {"first": 40}], ids=str)
def test_noise_is_uncorrelated_between(other):
    a, b = (noisy(noise_of(5.0, [7] * 40, **kw), 96).flatten() for kw in ({}, other))
    assert abs(torch.corrcoef(torch.stack((a, b)))[0, 1]) < 4 / math.sqrt(a.numel())


def test_noise_is_added_in_fp32_and_rounded_once(backend):
    if backend == "triton" and INTERPRETED:
        pytest.skip("the interpreter rounds to bf16 towards zero")
    table, ids = torch.randn(3, 64).bfloat16(), torch.tensor([1])
    noise = noise_of(5.0, [7])
    expected = (table[ids].float() + noisy(noise, 64)).bfloat16()
    assert torch.equal(embed(ids, table, noise), expected)


N_PARAMS, STEPS, MAX_NORM = 57, 20, 1.0


def learning_rate(step: int) -> float:
    return 1e-2 * math.cos(step / STEPS)


def gradients() -> list[Tensor]:
    """Some are clipped and some are not, and one is zero."""
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(N_PARAMS, generator=generator) * (step % 5) / 10 for step in range(STEPS)]


def ours(start: Tensor, weight_decay: float) -> Tensor:
    state = AdamState(start.clone(), *(torch.zeros_like(start) for _ in range(3)))
    for step, grad in enumerate(gradients(), 1):
        state.grad.copy_(grad)
        clip_gradient(state, MAX_NORM)
        adamw_step(state, lr=learning_rate(step), step=step, weight_decay=weight_decay)
    return state.param


def theirs(start: Tensor, weight_decay: float) -> Tensor:
    parameters = [torch.nn.Parameter(part.clone()) for part in start.split(20)]
    optimizer = torch.optim.AdamW(
        parameters, betas=(0.9, 0.999), eps=1e-8, weight_decay=weight_decay
    )
    for step, grad in enumerate(gradients(), 1):
        for parameter, part in zip(parameters, grad.split(20), strict=True):
            parameter.grad = part.to(start.dtype)
        torch.nn.utils.clip_grad_norm_(parameters, MAX_NORM)
        optimizer.param_groups[0]["lr"] = learning_rate(step)
        optimizer.step()
    return torch.cat([parameter.detach() for parameter in parameters])


@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
def test_twenty_clipped_steps_equal_those_of_torch(weight_decay):
    start = torch.randn(N_PARAMS)
    truth = theirs(start.double(), weight_decay)
    torch.testing.assert_close(ours(start.double(), weight_decay), truth, rtol=1e-13, atol=1e-13)
    assert_as_accurate("param", ours(start, weight_decay), theirs(start, weight_decay), truth)
    assert (truth - start).abs().mean() > 1e-2


@pytest.mark.parametrize(
    ("max_norm", "expected"), [(0.0, 5.0), (10.0, 5.0), (5.0, 5.0), (1.0, 1.0)]
)
def test_clipping_bounds_the_norm_and_returns_the_one_before(max_norm, expected):
    grad = torch.tensor([3.0, -4.0])
    state = AdamState(torch.zeros(2), grad.clone(), torch.zeros(2), torch.zeros(2))
    assert clip_gradient(state, max_norm).item() == 5
    torch.testing.assert_close(state.grad, grad * expected / 5)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_norm_of_a_gradient_that_is_not_finite_says_so(bad):
    state = AdamState(*(torch.zeros(3) for _ in range(4)))
    state.grad[1] = bad
    assert not clip_gradient(state, 1.0).isfinite()
