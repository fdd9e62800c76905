"""Rows of logits of every kind, and what plain PyTorch makes of them."""

import pytest
import torch
from torch import Tensor

KINDS = pytest.mark.parametrize("kind", ["normal", "peaked", "flat", "offset"])
SIZES = pytest.mark.parametrize("v", [1, 2, 4096, 5003])


def rows_of(kind: str, v: int, m: int = 5) -> tuple[Tensor, Tensor]:
    """Logits, and targets of which one is the arg-max and one the last column."""
    z = torch.randn(m, v) * {"peaked": 40.0, "flat": 0.0}.get(kind, 3.0)
    if kind == "offset":
        z += 1e4
    target = torch.randint(v, (m,))
    target[0], target[m - 1] = v - 1, z[m - 1].argmax()
    return z, target


def statistics(z: Tensor, target: Tensor) -> dict[str, Tensor]:
    logp = z.log_softmax(1)
    return {
        "logp": logp.gather(1, target[:, None]).squeeze(1),
        "entropy": -(logp.exp() * logp).sum(1),
        "lse": z.logsumexp(1),
    }


def at(z: Tensor, target: Tensor) -> Tensor:
    return z.gather(1, target[:, None]).squeeze(1)


def far_apart(rows: Tensor) -> Tensor:
    """The same rows in one tensor whose offsets pass 2^31 elements."""
    stride = 2**30 + 16
    room = torch.empty(0, dtype=rows.dtype).untyped_storage()
    room.resize_((stride * (len(rows) - 1) + rows.shape[1]) * rows.element_size())
    far = torch.empty(0, dtype=rows.dtype).set_(room, 0, rows.shape, (stride, 1))
    return far.copy_(rows)
