"""Projections with LoRA and bias inside one GEMM, forward and backward.

    Y = [X | 1 | S] · [W | bias | scaling·B]ᵀ        [dX | · | dS] = dY · [W | bias | scaling·B]
    dB_g = scaling · dY_gᵀ · S_g          all members' in one matrix, one below the other

A group is the projections that share an input (q, k, v; gate, up): their rows are stacked, and B is
block-diagonal. W and bias are frozen, so their gradients are never formed.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor

from cqa.kernels.backend import Backend, choose
from cqa.kernels.gradient import Form, Gradient, adding, form_gradient
from cqa.kernels.matmul import mm
from cqa.kernels.outer_sums import OuterSum, outer_sums, outer_sums_native
from cqa.kernels.philox import NO_DROPOUT


@dataclass(frozen=True, slots=True)
class LoraRows:
    """One adapted member of a group: its rows of Y, its columns of S, its B."""

    rows: slice
    columns: slice  # within the augmented row
    lora_b: Tensor  # (rows, R)


def _write_db_ref(
    dy: Tensor, x_aug: Tensor, members: tuple[LoraRows, ...], scaling: float, out: Tensor
) -> None:
    """The definition."""
    for member, part in zip(members, out.split(_heights(members)), strict=True):
        db = (x_aug[:, member.columns].T @ dy[:, member.rows]).T
        part.copy_(db.to(out.dtype).mul(scaling))


def _form_db_fused(
    dy: Tensor,
    x_aug: Tensor,
    members: tuple[LoraRows, ...],
    scaling: float,
    backend: Backend,
    out: Tensor,
    add: bool,
) -> None:
    """Write or add dB of every member by one call."""
    rank, heights = out.shape[1], _heights(members)
    dy = dy if dy.stride(1) == 1 else dy.contiguous()
    sums = tuple(
        OuterSum((member.rows.start, member.rows.stop), member.columns.start, first * rank)
        for member, first in zip(members, [0, *accumulate(heights)], strict=False)
    )
    if backend == "native":
        adding(partial(outer_sums_native, dy, x_aug, sums=sums, scale=scaling))(out, add)
    else:
        outer_sums(
            dy, x_aug, out, sums, (rank, 1), rank, scale=scaling, dropout=NO_DROPOUT, add=add
        )


def _heights(members: tuple[LoraRows, ...]) -> list[int]:
    return [member.lora_b.shape[0] for member in members]


def _lora_b_grads(
    dy: Tensor,
    x_aug: Tensor,
    members: tuple[LoraRows, ...],
    scaling: float,
    place: Gradient | None,
    backend: Backend,
) -> tuple[Tensor | None, ...]:
    """Form dB of every member in its place, or return it, as views of one buffer."""
    if not members:
        return ()
    form: Form
    if backend == "reference":
        form = adding(partial(_write_db_ref, dy, x_aug, members, scaling))
    else:
        form = partial(_form_db_fused, dy, x_aug, members, scaling, backend)
    some, heights = members[0].lora_b, _heights(members)
    db = form_gradient(place, (sum(heights), some.shape[1]), some, form)
    return (None,) * len(members) if db is None else db.split(heights)


class _AugLinear(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x_aug: Tensor,
        residual: Tensor | None,
        weight: Tensor,
        low: Tensor | None,
        scaling: float,
        members: tuple[LoraRows, ...],
        gradient: Gradient | None,
        backend: Backend,
        overwrite: bool,
        *lora_b: Tensor,
    ) -> Tensor:
        ctx.save_for_backward(x_aug, weight, low)
        ctx.scaling, ctx.members, ctx.gradient, ctx.backend = scaling, members, gradient, backend
        tail = None if low is None else low.T
        out = mm(x_aug, weight.T, residual, tail=tail, overwrite=overwrite, backend=backend)
        if out is residual:
            ctx.mark_dirty(residual)
        return out

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Any, ...]:
        x_aug, weight, low = ctx.saved_tensors
        dx_aug = mm(dy, weight, tail=low, backend=ctx.backend) if ctx.needs_input_grad[0] else None
        dresidual = dy if ctx.needs_input_grad[1] else None
        grads = _lora_b_grads(dy, x_aug, ctx.members, ctx.scaling, ctx.gradient, ctx.backend)
        return dx_aug, dresidual, *(None,) * 7, *grads


def aug_linear(
    x_aug: Tensor,  # (M, K_aug)
    weight: Tensor,  # (N, at least K_aug)
    members: tuple[LoraRows, ...] = (),
    *,
    scaling: float = 1.0,
    residual: Tensor | None = None,  # (M, N)
    overwrite: bool = False,
    low: Tensor | None = None,  # (N, at least the columns of x_aug beyond the weight's)
    gradient: Gradient | None = None,  # (rows of all members, R)
    backend: Backend | None = None,
) -> Tensor:  # (M, N)
    """Project an augmented input by the columns of the weight that it has.

    Args:
        x_aug: [X | 1 | S], or its base part [X | 1].
        weight: [W | bias | scaling·B], frozen but for B; further columns are not read.
        members: The adapted members; of their `lora_b` the gradient is formed, their values come
            from `weight`.
        scaling: LoRA's factor, for dB.
        residual: Added to the result; without gradient it may be of a wider dtype, which the
            result then has.
        overwrite: Whether the residual may be added to where it lies, nothing else needing it; the
            Triton backend does, and saves the library a copy.
        low: For the native ops: the columns scaling·B in fp32, where `weight` is [W | bias] alone.
        gradient: Where dB goes, the members' one below the other; by default autograd has it.
        backend: See cqa.kernels.backend.
    """
    backend = choose(backend, weight.device, weight.dtype)
    weight, n_low = weight[:, : x_aug.shape[1]], x_aug.shape[1] - weight.shape[1]
    low = low[:, :n_low] if low is not None and n_low > 0 else None
    lora_b = tuple(member.lora_b for member in members)
    overwrite = overwrite and backend == "triton"
    out: Tensor = _AugLinear.apply(  # type: ignore[no-untyped-call]
        x_aug, residual, weight, low, scaling, members, gradient, backend, overwrite, *lora_b
    )
    return out
