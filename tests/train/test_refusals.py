"""A training run: what it does not start on, and what it stops at."""

import os
from functools import partial
from typing import Any

import pytest
import torch
from observers import at_step
from train.runs import MODEL, assert_same_run, steps_of

from cqa.errors import ConfigError, NumericsError, ResourceError
from cqa.files import locked
from cqa.kernels.token_logprobs import token_logprobs
from cqa.model.load import load_model
from cqa.model.lora import TrainableLora
from cqa.train.loop import train
from cqa.train.passes import StepConfig
from cqa.train.plan import make_plan
from cqa.train.step import take_step


def test_file_in_the_place_of_the_folder_is_refused(config):
    config.out.write_text("x")
    with pytest.raises(ConfigError, match="expected --out to be a folder, got a file"):
        train(config)


def test_folder_in_use_is_refused_and_its_holder_named(config):
    with (
        locked(config.out),
        pytest.raises(ResourceError, match=f"held by process {os.getpid()} on ") as caught,
    ):
        train(config)
    assert caught.value.exit_code == 6
    assert not (config.out / "run.json").exists()


def nan_loss(*inputs: torch.Tensor, **options: Any) -> torch.Tensor:
    return token_logprobs(*inputs, **options) * float("nan")


def nan_gradient(hidden: torch.Tensor, *inputs: torch.Tensor, **options: Any) -> torch.Tensor:
    root = (hidden - hidden.detach()).sum().sqrt()  # 0, with an infinite slope
    return token_logprobs(hidden, *inputs, **options) + root


@pytest.mark.parametrize("broken", [nan_loss, nan_gradient])
def test_step_that_is_not_finite_is_refused_before_any_parameter_changes(
    config, monkeypatch, broken
):
    plan = make_plan(config)
    base = load_model(
        MODEL,
        device=torch.device("cpu"),
        dtype=torch.float32,
        rank_columns=plan.spec.rank_columns(),
    )
    lora = TrainableLora(base.decoder, plan.spec, 0)
    before = lora.state.param.clone()
    monkeypatch.setattr("cqa.model.decoder.token_logprobs", broken)
    samples = plan.global_batch(6)
    names = ", ".join(sample.id for sample in samples)
    with pytest.raises(NumericsError, match=f"at step 6, .* for samples {names}\n") as caught:
        take_step(lora, samples, StepConfig.of(config), step=6, lr=1e-3)
    assert caught.value.exit_code == 5
    assert torch.equal(lora.state.param, before)
    assert not lora.state.exp_avg.any()


def test_run_that_met_a_nan_can_be_resumed_from_its_last_epoch(finished, config, monkeypatch):
    spoil = partial(monkeypatch.setattr, "cqa.model.decoder.token_logprobs", nan_loss)
    with pytest.raises(NumericsError, match="at step 6"):
        train(config, on_event=at_step(5, spoil))
    monkeypatch.undo()
    assert len(steps_of(config.out)) == 5
    train(config, resume=True)
    assert_same_run(config.out, finished[0])


def test_eval_loss_that_is_not_finite_is_refused(config, monkeypatch):
    spoil = partial(monkeypatch.setattr, "cqa.model.decoder.token_logprobs", nan_loss)
    with pytest.raises(NumericsError, match="eval_loss after step 4, got nan"):
        train(config, on_event=at_step(4, spoil))
    assert not (config.out / "epoch-01").exists()
