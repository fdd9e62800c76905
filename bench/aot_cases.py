"""Every op that has a Triton kernel, called as a layer calls it, on tensors without data."""

from __future__ import annotations

from collections.abc import Callable
from itertools import product

import torch
from torch import Tensor

from cqa.bench.shapes import hf_config
from cqa.kernels.adamw import AdamState, adam_rates, adamw_step, gradient_norm
from cqa.kernels.aug_columns import AugColumns
from cqa.kernels.aug_linear import LoraRows, aug_linear
from cqa.kernels.copy_shrink import copy_shrink
from cqa.kernels.embed import Noise, embed
from cqa.kernels.philox import Dropout
from cqa.kernels.precision import wider
from cqa.kernels.rms_norm import norm_shrink, norm_shrink_beside, rms_norm
from cqa.kernels.rope import rope, rope_projection
from cqa.kernels.scatter import ScatterTable, Segment, scatter
from cqa.kernels.shrink import Shrink
from cqa.kernels.swiglu_shrink import swiglu_shrink
from cqa.kernels.token_logprobs import ROUTES, token_logprobs, token_stats
from cqa.model.config import DecoderConfig, parse_config

ROWS, RANK = 1400, 32
META = torch.device("meta")


SHAPES = {
    short: parse_config(hf_config(f"qwen2.5-{short.lower()}"), short) for short in ("7B", "0.5B")
}


def tensor(*size: int, dtype: torch.dtype) -> Tensor:
    """A tensor without data that takes a gradient."""
    return torch.empty(*size, dtype=dtype, device=META, requires_grad=dtype.is_floating_point)


def variants(features: int, members: int, *, bias: bool) -> list[tuple[AugColumns, Shrink | None]]:
    """A group's input side in training: with dropout, without, and the base alone."""
    columns = AugColumns(features, bias, members * RANK, 64)
    lora_a = tensor(members * RANK, features, dtype=torch.float32)
    rows = torch.arange(ROWS, device=META)
    modules = tuple(range(members))
    return [
        (columns, Shrink(lora_a, modules, Dropout(0.05, 1, 1, rows))),
        (columns, Shrink(lora_a, modules)),
        (columns.alone, None),
    ]


def placed(
    features: int, members: int, dtype: torch.dtype, *, bias: bool
) -> list[tuple[AugColumns, Shrink | None]]:
    """The same in scoring: with an adapter, whose A is of the model's dtype, and the base alone."""
    columns = AugColumns(features, bias, members * RANK, 64)
    lora_a = torch.empty(members * RANK, features, dtype=dtype, device=META)
    return [(columns, Shrink(lora_a, tuple(range(members)))), (columns.alone, None)]


def both_ways(*outs: Tensor) -> None:
    """Run backward too."""
    torch.autograd.backward(outs, tuple(map(torch.empty_like, outs)))


def norm(shape: DecoderConfig, dtype: torch.dtype) -> None:
    """Before qkv and gate_up, the last one, and the head norms."""
    weight = torch.empty(shape.hidden_size, dtype=dtype, device=META)
    for members in (3, 2):
        for columns, shrink in variants(shape.hidden_size, members, bias=members == 3):
            x = tensor(ROWS, shape.hidden_size, dtype=dtype)
            both_ways(*norm_shrink_beside(x, weight, 1e-6, columns, shrink, backend="triton"))
    both_ways(rms_norm(x, weight, 1e-6, backend="triton"))
    wide = tensor(ROWS, shape.hidden_size, dtype=wider(dtype))  # the residual stream of scoring
    for members in (3, 2):
        for columns, shrink in placed(shape.hidden_size, members, dtype, bias=members == 3):
            norm_shrink(wide, weight, 1e-6, columns, shrink, backend="triton")
    heads = tensor(ROWS, shape.n_heads, shape.head_dim, dtype=dtype)
    of_heads = torch.empty(shape.head_dim, dtype=dtype, device=META)
    both_ways(rms_norm(heads, of_heads, 1e-6, backend="triton"))


def copy(shape: DecoderConfig, dtype: torch.dtype) -> None:
    """Before o."""
    width = shape.n_heads * shape.head_dim
    for columns, shrink in variants(width, 1, bias=False)[:2]:
        both_ways(copy_shrink(tensor(ROWS, width, dtype=dtype), columns, shrink, backend="triton"))
    columns, shrink = placed(width, 1, dtype, bias=False)[0]
    copy_shrink(tensor(ROWS, width, dtype=dtype), columns, shrink, backend="triton")


def swiglu(shape: DecoderConfig, dtype: torch.dtype) -> None:
    """Before down."""
    for columns, shrink in variants(shape.intermediate_size, 1, bias=False):
        gate_up = tensor(ROWS, 2 * shape.intermediate_size, dtype=dtype)
        both_ways(swiglu_shrink(gate_up, columns, shrink, backend="triton"))
    gate_up = tensor(ROWS, 2 * shape.intermediate_size, dtype=dtype)
    columns, shrink = placed(shape.intermediate_size, 1, dtype, bias=False)[0]
    swiglu_shrink(gate_up, columns, shrink, backend="triton")


def projection(shape: DecoderConfig, dtype: torch.dtype) -> None:
    """The gradient of B."""
    columns = AugColumns(shape.hidden_size, False, 2 * RANK, 64)
    n = shape.intermediate_size
    members = tuple(
        LoraRows(slice(g * n, (g + 1) * n), slice(first, first + RANK), b)
        for g, first in enumerate((columns.base, columns.base + RANK))
        for b in [tensor(n, RANK, dtype=torch.float32)]
    )
    x_aug = tensor(ROWS, columns.total, dtype=dtype)
    weight = torch.empty(2 * n, columns.total, dtype=dtype, device=META)
    both_ways(aug_linear(x_aug, weight, members, backend="triton"))


def embedding(shape: DecoderConfig, dtype: torch.dtype) -> None:
    """Token embedding with noise."""
    table = torch.empty(shape.vocab_size, shape.hidden_size, dtype=dtype, device=META)
    ids = torch.zeros(ROWS, dtype=torch.int64, device=META)
    noise = Noise(5.0, 1, 1, torch.arange(ROWS, device=META), ids + ROWS)
    embed(ids, table, noise, backend="triton")


def rotation(shape: DecoderConfig, dtype: torch.dtype) -> None:
    """Queries and keys of the fused projection, and each alone, as behind norms of heads."""
    n_heads, n_kv = shape.n_heads, shape.n_kv_heads
    angles = torch.empty(ROWS, shape.head_dim // 2, device=META)
    fused = tensor(ROWS, (n_heads + 2 * n_kv) * shape.head_dim, dtype=dtype)
    both_ways(*rope_projection(fused, angles, angles, n_heads, n_kv, backend="triton"))
    for n in (n_heads, n_kv):
        heads = tensor(ROWS, n, shape.head_dim, dtype=dtype)
        both_ways(rope(heads, angles, angles, backend="triton"))


def head(shape: DecoderConfig, dtype: torch.dtype) -> None:
    """Loss and gradient rows, and both routes of scoring, without varentropy and with it."""
    hidden = tensor(ROWS, shape.hidden_size, dtype=dtype)
    table = torch.empty(shape.vocab_size, shape.hidden_size, dtype=dtype, device=META)
    target = torch.zeros(ROWS, dtype=torch.int64, device=META)
    both_ways(token_logprobs(hidden, table, target, backend="triton"))
    for route, varentropy in product(ROUTES, (False, True)):
        token_stats(hidden, table, target, backend="triton", route=route, varentropy=varentropy)


def optimizer(shape: DecoderConfig, dtype: torch.dtype) -> None:
    """Norm, step, and the way back into the augmented weights."""
    state = AdamState(*(torch.empty(80_700_000, device=META) for _ in range(4)))
    norm = gradient_norm(state.grad, backend="triton")
    rates = adam_rates(lr=1e-4, step=1, weight_decay=0.0, device=META)
    adamw_step(state, rates, norm=norm, max_norm=1.0, backend="triton")
    columns = AugColumns(shape.hidden_size, False, RANK, 64)
    weight = torch.empty(shape.hidden_size, columns.total, dtype=dtype, device=META)
    table = ScatterTable([Segment(0, weight[:, columns.ranks], 2.0)])
    scatter(state.param, table, backend="triton")


CASES: list[Callable[[DecoderConfig, torch.dtype], None]] = [
    norm, copy, swiglu, projection, embedding, rotation, head, optimizer,
]  # fmt: skip
