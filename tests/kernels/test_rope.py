"""Rotation, against that of transformers and its own algebra."""

import pytest
import torch
from helpers import assert_as_accurate
from kernels.marks import DTYPES
from torch import Tensor
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

from cqa.kernels.rope import rope, rope_projection


def angles(positions: Tensor, head_dim: int) -> tuple[Tensor, Tensor]:
    half = positions.double()[:, None] * 100.0 ** (-torch.arange(head_dim // 2) / head_dim * 2)
    return half.cos(), half.sin()


@DTYPES
def test_rotation_equals_that_of_transformers(dtype):
    x = torch.randn(13, 3, 8).to(dtype)
    cos, sin = (t.float() for t in angles(torch.arange(13), 8))

    def theirs(x: Tensor) -> Tensor:
        tables = [torch.cat((t, t), dim=1).to(x.dtype)[None] for t in (cos, sin)]
        rotated, _ = apply_rotary_pos_emb(*[x.transpose(0, 1)[None]] * 2, *tables)
        return rotated[0].transpose(0, 1)

    assert_as_accurate("rope", rope(x, cos, sin), theirs(x), theirs(x.double()))


@DTYPES
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


@DTYPES
@pytest.mark.parametrize(("rows", "heads", "kv", "head_dim"), [(5, 3, 1, 8), (2, 40, 8, 80)])
def test_projection_is_cut_and_rotated_and_its_gradient_is_one(rows, heads, kv, head_dim, dtype):
    cos, sin = (t.float() for t in angles(torch.arange(rows) + 1000, head_dim))
    every = torch.randn(rows, (heads + 2 * kv) * head_dim).to(dtype)
    # as attention returns them: of queries and keys with the heads outermost
    grads = [torch.randn(n, rows, head_dim).to(dtype).transpose(0, 1) for n in (heads, kv)]
    grads.append(torch.randn(rows, kv, head_dim).to(dtype))

    def by_parts(projected: Tensor, *angles: Tensor) -> tuple[Tensor, ...]:
        q, k, v = projected.view(rows, -1, head_dim).split((heads, kv, kv), dim=1)
        return rope(q, *angles), rope(k, *angles), v

    def at_once(projected: Tensor, *angles: Tensor) -> tuple[Tensor, ...]:
        return rope_projection(projected * 1, *angles, heads, kv)

    found = []
    for cut in (at_once, by_parts):
        leaf = every.clone().requires_grad_()
        outs = cut(leaf, cos, sin)
        found.append([*(o.detach() for o in outs), *torch.autograd.grad(outs, leaf, grads)])
    for one, other in zip(*found, strict=True):
        assert torch.equal(one, other)


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
