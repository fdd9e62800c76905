"""Where the gradient of a trained tensor goes: straight into its part of a flat buffer.

The first pass of a step writes, later ones add. So the buffer is not cleared between steps, and
autograd, which is given no gradient for the tensor, launches nothing to add one.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

Form = Callable[[Tensor, bool], None]  # write a pass's gradient to a tensor, or add it to that


@dataclass(slots=True)
class Gradient:
    """The gradient of one tensor over the passes of a step; of no value until it is written."""

    value: Tensor  # fp32
    written: bool = False  # in this step


def adding(write: Callable[[Tensor], None]) -> Form:
    """Let what can only write add too, by way of a tensor of its own."""

    def form(out: Tensor, add: bool) -> None:
        if not add:
            write(out)
            return
        part = torch.empty_like(out)
        write(part)
        out.add_(part)

    return form


def form_gradient(
    place: Gradient | None, shape: tuple[int, ...], like: Tensor, form: Form
) -> Tensor | None:
    """Let `form` put a gradient in its place; without a place return it, of the dtype of `like`."""
    if place is None:
        out = torch.empty(shape, dtype=like.dtype, device=like.device)
        form(out, False)
        return out
    form(place.value, place.written)
    place.written = True
    return None
