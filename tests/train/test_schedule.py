"""The learning rate of every step is that of transformers' cosine schedule with warm-up."""

import math
from dataclasses import replace

import pytest
import torch
from transformers import get_cosine_schedule_with_warmup

from cqa.errors import ConfigError
from cqa.train.loop import train
from cqa.train.schedule import first_learning_step, learning_rate, warmup_steps


def theirs(total: int, warmup: int, peak: float) -> list[float]:
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=peak)
    schedule = get_cosine_schedule_with_warmup(optimizer, warmup, total)
    rates = []
    for _ in range(total):
        rates.append(schedule.get_last_lr()[0])
        optimizer.step()
        schedule.step()
    return rates


def ours(total: int, warmup: int, peak: float) -> list[float]:
    return [learning_rate(s, total, peak=peak, warmup=warmup) for s in range(1, total + 1)]


@pytest.mark.parametrize("ratio", [0.0, 0.03, 0.1, 0.5, 0.999])
@pytest.mark.parametrize("total", [1, 2, 7, 47, 564])
def test_rates_are_those_of_transformers(total, ratio):
    warmup = math.ceil(total * ratio)  # transformers' TrainingArguments.get_warmup_steps
    assert warmup_steps(total, ratio) == warmup
    assert ours(total, warmup, 2e-4) == pytest.approx(theirs(total, warmup, 2e-4), rel=1e-12, abs=0)


def test_first_rate_is_zero_and_the_peak_follows_the_warm_up():
    rates = ours(564, warmup_steps(564, 0.1), 2e-4)
    assert rates[0] == 0
    assert rates[57] == max(rates) == 2e-4
    assert 0 < rates[-1] < 1e-8


def test_without_warm_up_the_first_rate_is_the_peak():
    assert learning_rate(1, 10, peak=3e-4, warmup=warmup_steps(10, 0.0)) == 3e-4


def test_the_paper_warms_up_for_57_of_564_steps():
    assert warmup_steps(564, 0.1) == 57


@pytest.mark.parametrize("total", [1, 2, 3, 10, 57])
@pytest.mark.parametrize("ratio", [0.0, 0.01, 0.1, 0.5, 0.99])
def test_first_step_that_learns_is_that_of_the_rates(total, ratio):
    rates = ours(total, warmup_steps(total, ratio), 1.0)
    learning = [step for step, rate in enumerate(rates, start=1) if rate > 0]
    assert first_learning_step(total, ratio) == (learning[0] if learning else None)


def test_run_that_learns_in_no_step_is_refused_before_anything_is_written(config):
    one_step = replace(config, epochs=1, grad_accum=1000)
    with pytest.raises(ConfigError, match="expected steps that learn, got one, at the zero rate"):
        train(one_step)
    assert not config.out.exists()
