"""The optimizer's step, against torch's."""

import math

import pytest
import torch
from helpers import assert_as_accurate
from torch import Tensor

from cqa.kernels.adamw import AdamState, adam_rates, adamw_step, gradient_norm

N_PARAMS, STEPS, MAX_NORM = 57, 20, 1.0


def learning_rate(step: int) -> float:
    return 1e-2 * math.cos(step / STEPS)


def gradients() -> list[Tensor]:
    """Some are clipped and some are not, and one is zero."""
    generator = torch.Generator("cpu").manual_seed(1)
    drawn = torch.randn(STEPS, N_PARAMS, generator=generator, device="cpu")
    here = torch.get_default_device()
    return [grad.to(here) * (step % 5) / 10 for step, grad in enumerate(drawn)]


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
