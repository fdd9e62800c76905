"""Ops work where their tensors are: every op test takes the device, and no op assumes one.

Without a GPU the second is tried with a default device on which nothing can be computed.
"""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from cqa.kernels.adamw import AdamState, adam_rates, adamw_step, gradient_norm
from cqa.kernels.attention import AttentionSpan, attention, gathered
from cqa.kernels.aug_columns import AugColumns
from cqa.kernels.aug_linear import LoraRows, aug_linear
from cqa.kernels.copy_shrink import copy_shrink
from cqa.kernels.embed import Noise, embed
from cqa.kernels.outer_sums import _parts, _tiles
from cqa.kernels.philox import Dropout, dropout_streams
from cqa.kernels.rms_norm import norm_shrink
from cqa.kernels.rope import rope
from cqa.kernels.scatter import ScatterTable, Segment, scatter
from cqa.kernels.shrink import Shrink
from cqa.kernels.swiglu_shrink import swiglu_shrink
from cqa.kernels.token_logprobs import token_logprobs, token_stats

COLUMNS = AugColumns(24, True, 8, 16)


def test_every_test_of_an_op_takes_the_device(request):
    here = Path(__file__).parent
    items = [item for item in request.session.items if item.path.parent == here]
    assert items
    assert [item.name for item in items if "device" not in item.fixturenames] == []


class Drawn:
    """Tensors on a device that is said, whatever the default is."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.generator = torch.Generator(device).manual_seed(0)
        self.rows = torch.arange(5, device=device)
        self.target = self.rows % 3
        self.shrink = Shrink(self(8, 24), (1, 2), Dropout(0.3, 1, 2, self.rows))

    def __call__(self, *shape: int) -> Tensor:
        drawn = torch.randn(*shape, generator=self.generator, device=self.device)
        return drawn.requires_grad_()


def differentiated(out: Tensor, *leaves: Tensor) -> list[Tensor]:
    return [out.detach(), *torch.autograd.grad(out.sum(), leaves)]


def norm(t: Drawn) -> list[Tensor]:
    x = t(5, 24)
    weight = t(24).detach()
    out = norm_shrink(x, weight, 1e-6, COLUMNS, t.shrink)
    return differentiated(out * 1, x, t.shrink.lora_a)


def swiglu(t: Drawn) -> list[Tensor]:
    x = t(5, 48)
    return differentiated(swiglu_shrink(x, COLUMNS, t.shrink) * 1, x, t.shrink.lora_a)


def copy(t: Drawn) -> list[Tensor]:
    x = t(5, 24)
    return differentiated(copy_shrink(x, COLUMNS, t.shrink) * 1, x, t.shrink.lora_a)


def projection(t: Drawn) -> list[Tensor]:
    x_aug, weight, lora_b = t(5, 48), t(6, 48).detach(), t(6, 4)
    member = LoraRows(slice(0, 6), slice(40, 44), lora_b)
    return differentiated(aug_linear(x_aug, weight, (member,)) * 1, x_aug, lora_b)


def embedding(t: Drawn) -> list[Tensor]:
    noise = Noise(5.0, 1, 2, t.rows, torch.full_like(t.rows, 5))
    return [embed(t.target, t(3, 8).detach(), noise)]


def rotation(t: Drawn) -> list[Tensor]:
    x = t(5, 2, 8)
    return differentiated(rope(x, t(5, 4).detach(), t(5, 4).detach()) * 1, x)


def attend(t: Drawn) -> list[Tensor]:
    leaves = [t(5, 2, 8) for _ in range(3)]
    spans = (AttentionSpan((0, 3), (0, 3), (0, 0)), AttentionSpan((3, 5), (3, 5), (0, 2)))
    layout = gathered(spans, 5, t.device)
    assert layout.keys is not None
    return [*differentiated(attention(*leaves, spans) * 1, *leaves), layout.cu_key, layout.keys]


def head(t: Drawn) -> list[Tensor]:
    hidden, table = t(5, 8), t(7, 8).detach()
    stats = token_stats(hidden.detach(), table, t.target, varentropy=True)
    assert stats.varentropy is not None
    logp = token_logprobs(hidden, table, t.target)
    given = [stats.logp, stats.entropy, stats.rank, stats.lse, stats.varentropy]
    return [*differentiated(logp, hidden), *given]


def optimizer(t: Drawn) -> list[Tensor]:
    state = AdamState(*(t(9).detach().abs() for _ in range(4)))
    rates = adam_rates(lr=1e-3, step=1, weight_decay=0.1, device=t.device)
    adamw_step(state, rates, norm=gradient_norm(state.grad), max_norm=1.0)
    target = torch.zeros(4, 4, device=t.device)
    scatter(state.param, ScatterTable([Segment(1, target[1:3, 1:4], 0.5)]))
    return [state.param, state.exp_avg, state.exp_avg_sq, target]


@pytest.mark.parametrize(
    "op", [norm, swiglu, copy, projection, embedding, rotation, attend, head, optimizer]
)
def test_an_op_makes_its_tensors_where_its_inputs_are(op, device):
    expected = op(Drawn(device))
    for table in (_parts, _tiles, dropout_streams, gathered):  # what is kept between calls
        table.cache_clear()
    before = torch.get_default_device()
    torch.set_default_device("meta")
    try:
        actual = op(Drawn(device))
    finally:
        torch.set_default_device(before)
        for table in (_parts, _tiles, dropout_streams, gathered):
            table.cache_clear()
    for one, other in zip(actual, expected, strict=True):
        assert one.device.type == device.type
        assert torch.equal(one, other)
