"""Attention over spans, rotation, embedding noise and optimizer, each against its definition."""

import math

import numpy as np
import pytest
import torch
from helpers import assert_as_accurate
from torch import Tensor
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

from cqa.kernels.adamw import AdamState, adam_rates, adamw_step, gradient_norm
from cqa.kernels.attention import AttentionSpan, attention, attention_by_library, gathered
from cqa.kernels.embed import Noise, embed
from cqa.kernels.launch import INTERPRETED
from cqa.kernels.philox import NEFTUNE, philox_words_ref, stream_of
from cqa.kernels.rope import rope
from cqa.kernels.scatter import ScatterTable, Segment, scatter

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


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize(("rows", "heads", "head_dim"), [(5, 3, 8), (3, 7, 80), (2, 40, 128)])
def test_rotation_of_slices_of_a_projection_and_its_gradient(rows, heads, head_dim, dtype):
    cos, sin = (t.float() for t in angles(torch.arange(rows) + 1000, head_dim))
    fused = torch.randn(rows, heads + 2, head_dim).to(dtype)
    dout = torch.randn(heads, rows, head_dim).to(dtype).transpose(0, 1)  # as attention returns it

    def plain(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        x1, x2 = x.chunk(2, dim=-1)
        cos, sin = cos[:, None].to(x.dtype), sin[:, None].to(x.dtype)
        return torch.cat((x1 * cos - x2 * sin, x2 * cos + x1 * sin), dim=-1)

    def run(rotate, fused: Tensor) -> list[Tensor]:
        leaf = fused.detach().requires_grad_()
        out = rotate(leaf[:, 1:-1], cos, sin)
        return [out.detach(), *torch.autograd.grad(out, leaf, dout.to(out.dtype))]

    actual, naive, truth = run(rope, fused), run(plain, fused), run(plain, fused.double())
    for name, *values in zip(("out", "dx"), actual, naive, truth, strict=True):
        assert_as_accurate(name, *values)


def test_rotation_of_no_rows():
    assert rope(torch.empty(0, 3, 8), torch.empty(0, 4), torch.empty(0, 4)).shape == (0, 3, 8)


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


def take_step(
    state: AdamState, max_norm: float = MAX_NORM, lr: float = 1e-2, step: int = 1, decay: float = 0
) -> Tensor:
    """Take one step; return the gradient's norm."""
    norm = gradient_norm(state.grad)
    rates = adam_rates(lr=lr, step=step, weight_decay=decay, device=state.grad.device)
    adamw_step(state, rates, norm=norm, max_norm=max_norm)
    return norm


def ours(start: Tensor, weight_decay: float) -> Tensor:
    state = AdamState(start.clone(), *(torch.zeros_like(start) for _ in range(3)))
    for step, grad in enumerate(gradients(), 1):
        state.grad.copy_(grad)
        take_step(state, lr=learning_rate(step), step=step, decay=weight_decay)
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


@pytest.mark.parametrize("n", [1, 1023, 1024, 1025, 140_001])
def test_norm_is_as_accurate_as_that_of_torch_and_the_same_every_time(n):
    grad = torch.randn(n) * 3e-4
    norm = gradient_norm(grad)
    truth = torch.linalg.vector_norm(grad.double())
    assert_as_accurate("norm", norm, torch.linalg.vector_norm(grad), truth)
    assert norm.dtype == torch.float32
    assert torch.equal(gradient_norm(grad.clone()), norm)


@pytest.mark.parametrize("n", [1, 1024, 2500])
def test_every_element_takes_its_step(n):
    parts = [torch.randn(n), torch.randn(n), torch.randn(n) / 10, torch.rand(n) / 100]

    def step(parts: list[Tensor]) -> list[Tensor]:
        p, g, m, v = (t.clone() for t in parts)
        g *= min(1, MAX_NORM / (g.norm() + 1e-6))
        m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g * g
        update = m / (1 - 0.9**3) / ((v / (1 - 0.999**3)).sqrt() + 1e-8)
        return [p * (1 - 1e-3) - 1e-2 * update, m, v]

    state = AdamState(*(t.clone() for t in parts))
    take_step(state, step=3, decay=0.1)
    actual = (state.param, state.exp_avg, state.exp_avg_sq)
    truth = step([t.double() for t in parts])
    for name, *values in zip(("param", "m", "v"), actual, step(parts), truth, strict=True):
        assert_as_accurate(name, *values)


@pytest.mark.parametrize(
    ("max_norm", "expected"), [(0.0, 5.0), (10.0, 5.0), (5.0, 5.0), (1.0, 1.0)]
)
def test_clipping_bounds_the_norm_and_returns_the_one_before(max_norm, expected):
    grad = torch.tensor([3.0, -4.0])
    state = AdamState(torch.zeros(2), grad.clone(), torch.zeros(2), torch.zeros(2))
    assert take_step(state, max_norm).item() == 5
    torch.testing.assert_close(state.exp_avg, 0.1 * grad * expected / 5)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("max_norm", [0.0, 1.0])
def test_step_whose_norm_is_not_finite_changes_nothing(bad, max_norm):
    state = AdamState(*(torch.rand(3) for _ in range(4)))
    before = [t.clone() for t in (state.param, state.exp_avg, state.exp_avg_sq)]
    state.grad[1] = bad
    assert not take_step(state, max_norm).isfinite()
    for was, now in zip(before, (state.param, state.exp_avg, state.exp_avg_sq), strict=True):
        assert torch.equal(was, now)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
def test_segments_go_scaled_to_their_blocks_and_nowhere_else(dtype):
    shapes = {
        "block": (7, 5),
        "tall": (3000, 2),
        "wide": (3, 2100),
        "whole": (4, 4),
        "none": (0, 3),
    }
    flat = (
        torch.randint(-128, 128, (20_000,)) / 64
    ).float()  # exact in bf16, scaled by powers of 2
    weights, segments, offset = {}, [], 11
    for i, (name, (rows, columns)) in enumerate(shapes.items()):
        weights[name] = torch.full((rows + 2, columns + 6), torch.nan, dtype=dtype)
        target = weights[name][1 : rows + 1, 3 : columns + 3]
        segments.append(Segment(offset, target, 2.0**-i))
        offset += rows * columns + 3
    scatter(flat, ScatterTable(segments))
    for segment, weight in zip(segments, weights.values(), strict=True):
        part = flat[segment.offset :][: segment.target.numel()]
        assert torch.equal(segment.target.float(), part.view(segment.target.shape) * segment.scale)
        assert weight.isnan().sum() == weight.numel() - segment.target.numel()


def test_table_without_segments_scatters_nothing():
    scatter(torch.ones(3), ScatterTable([]))


@pytest.mark.parametrize("odd", [torch.zeros(2, 2).half(), torch.zeros(2, 4)[:, ::2]])
def test_targets_that_one_launch_cannot_reach_are_refused(odd):
    with pytest.raises(ValueError, match="expected matrices of one dtype on one device"):
        ScatterTable([Segment(0, torch.zeros(2, 2), 1.0), Segment(4, odd, 1.0)])
