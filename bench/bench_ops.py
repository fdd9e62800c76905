"""Each native op against its PyTorch reference, forward and backward, at the 0.5 B shape."""

import pytest
import torch
from compare import record

from cqa.kernels.adamw import AdamState, adam_rates, adamw_step
from cqa.kernels.attention import AttentionSpan, attention
from cqa.kernels.backend import native_problem
from cqa.kernels.copy_shrink import copy_shrink
from cqa.kernels.matmul import mm
from cqa.kernels.philox import Dropout
from cqa.kernels.rms_norm import norm_shrink
from cqa.kernels.rope import rope
from cqa.kernels.shrink import AugColumns, Shrink
from cqa.kernels.swiglu_shrink import swiglu_shrink
from cqa.kernels.token_logprobs import token_logprobs, token_stats
from cqa.study.bench.timing import turn_about

pytestmark = pytest.mark.skipif(native_problem() is not None, reason="no native ops")
M, D, WIDE, VOCABULARY, RANK = 720, 896, 4864, 151_936, 32


def shrunk(k: int, members: int) -> tuple[AugColumns, Shrink]:
    """The low-rank side of a group with dropout."""
    lora_a = (torch.randn(members * RANK, k) / k**0.5).requires_grad_()
    dropout = Dropout(0.05, 1, 2, torch.arange(M))
    columns = AugColumns(k, False, members * RANK, 16)
    return columns, Shrink(lora_a, tuple(range(members)), dropout)


def op_mm():
    a, b = torch.randn(M, D), torch.randn(2 * WIDE, D)
    return lambda backend: mm(a, b.T, backend=backend)


def op_norm():
    x, weight = torch.randn(M, D, requires_grad=True), torch.randn(D)
    columns, shrink = shrunk(D, 3)
    return lambda backend: norm_shrink(x, weight, 1e-6, columns, shrink, backend=backend)


def op_copy():
    x = torch.randn(M, D, requires_grad=True)
    columns, shrink = shrunk(D, 1)
    return lambda backend: copy_shrink(x, columns, shrink, backend=backend)


def op_swiglu():
    x = torch.randn(M, 2 * WIDE, requires_grad=True)
    columns, shrink = shrunk(WIDE, 1)
    return lambda backend: swiglu_shrink(x, columns, shrink, backend=backend)


def op_rope():
    x, angle = torch.randn(M, 14, 64, requires_grad=True), torch.rand(M, 32)
    return lambda backend: rope(x, angle.cos(), angle.sin(), backend=backend)


def op_attention():
    q, k, v = (torch.randn(M, heads, 64, requires_grad=True) for heads in (14, 2, 2))
    spans = tuple(AttentionSpan(r, r, (0, 0)) for r in ((0, 300), (300, 720)))
    return lambda backend: attention(q, k, v, spans, backend=backend)


def op_token_logprobs():
    hidden, head = torch.randn(460, D, requires_grad=True), torch.randn(VOCABULARY, D) / D**0.5
    target = torch.randint(VOCABULARY, (460,))
    return lambda backend: token_logprobs(hidden, head, target, backend=backend)


def op_token_stats():
    hidden, head = torch.randn(460, D), torch.randn(VOCABULARY, D) / D**0.5
    target = torch.randint(VOCABULARY, (460,))
    return lambda backend: token_stats(hidden, head, target, backend=backend).logp.float()


def op_adamw():
    state = AdamState(*(torch.rand(17_600_000) for _ in range(4)))
    rates = adam_rates(lr=1e-5, step=3, weight_decay=0.0, device=torch.device("cpu"))
    norm = torch.ones(())

    def step(backend):
        adamw_step(state, rates, norm=norm, max_norm=0, backend=backend)
        return state.param

    return step


OPS = [
    op_mm, op_norm, op_copy, op_swiglu, op_rope, op_attention, op_token_logprobs, op_token_stats,
    op_adamw,
]  # fmt: skip


@pytest.mark.parametrize("op", OPS, ids=lambda op: op.__name__.removeprefix("op_"))
def bench_against_the_reference(benchmark, op):
    torch.manual_seed(0)
    call = op()

    def both_ways(backend):
        out = call(backend)
        if out.requires_grad:
            out.backward(torch.ones_like(out))
        return out.detach()

    if op is not op_adamw:  # it changes its inputs
        torch.testing.assert_close(
            both_ways("native"), both_ways("reference"), rtol=1e-4, atol=1e-4
        )
    result = turn_about(lambda: both_ways("native"), lambda: both_ways("reference"))
    record(benchmark, "reference", result)
    benchmark.pedantic(lambda: both_ways("native"), rounds=3)
