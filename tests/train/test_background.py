"""Checkpoints written while training goes on: of the right step, in order, none after a failure."""

import threading
import time
from pathlib import Path

import pytest
from faults import run_contents
from helpers import tiny_model, write_lines
from train.test_crash import SAMPLES, config_of

from cqa.errors import NumericsError, ResourceError
from cqa.model.checkpoint import opened
from cqa.train import background, loop
from cqa.train.background import Checkpoints
from cqa.train.loop import train

PATIENCE_S = 120


@pytest.fixture(scope="module")
def inputs(tmp_path_factory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("inputs")
    return tiny_model(folder / "model"), write_lines(folder / "train.jsonl", SAMPLES)


def patched(monkeypatch, module, name: str, before) -> None:
    """Call `before` with the arguments of a function, then the function."""
    real = getattr(module, name)

    def called(*args, **options):
        before(*args, **options)
        return real(*args, **options)

    monkeypatch.setattr(module, name, called)


@pytest.fixture
def steps(monkeypatch):
    """Events that are set when steps 1 to 4, of epochs of two, begin."""
    begun = {step: threading.Event() for step in range(1, 5)}
    patched(monkeypatch, loop, "take_step", lambda *_, step, **__: begun[step].set())
    return begun


def saved_step(out: Path) -> str:
    with opened(out / "state.safetensors") as file:
        return file.metadata()["step"]


def test_steps_are_taken_while_the_epoch_before_is_written_as_it_was(
    inputs, tmp_path, monkeypatch, steps
):
    train(config_of(inputs, tmp_path / "plain"))
    for event in steps.values():
        event.clear()

    def until_the_next_epoch_has_begun(_plan, _held, name, _loss=None):
        assert name != "epoch-01" or steps[4].wait(PATIENCE_S)

    patched(monkeypatch, background, "save_epoch", until_the_next_epoch_has_begun)
    train(config_of(inputs, tmp_path / "late"))
    assert run_contents(tmp_path / "late") == run_contents(tmp_path / "plain")


def test_a_copy_is_taken_once_the_one_before_is_written(inputs, tmp_path, monkeypatch):
    done = []
    for name in ("save_epoch", "save_state"):
        real = getattr(background, name)

        def written(*args, name=name, real=real):
            real(*args)
            done.append(name)

        monkeypatch.setattr(background, name, written)
    patched(monkeypatch, background.Snapshot, "take", lambda _: done.append("copy"))
    train(config_of(inputs, tmp_path / "run"))
    assert done == ["copy", "save_epoch", *("copy", "save_epoch", "save_state") * 2]


def test_no_state_is_written_after_an_adapter_that_could_not_be(inputs, tmp_path, monkeypatch):
    def full(_plan, _held, name, _loss=None):
        if name == "epoch-02":
            raise ResourceError("expected to write, got: No space left on device")

    patched(monkeypatch, background, "save_epoch", full)
    config = config_of(inputs, tmp_path / "run")
    with pytest.raises(ResourceError, match="No space left"):
        train(config)
    assert saved_step(config.out) == "2"
    monkeypatch.undo()
    train(config, resume=True)
    train(config_of(inputs, tmp_path / "plain"))
    assert run_contents(config.out) == run_contents(tmp_path / "plain")


def test_an_error_of_a_later_step_waits_for_what_was_given_before(inputs, tmp_path, monkeypatch):
    failing = threading.Event()

    def until_it_fails(*_):
        assert failing.wait(PATIENCE_S)

    def not_finite(*_, step, **__):
        if step == 3:
            failing.set()
            raise NumericsError("expected a finite loss at step 3, got nan")

    patched(monkeypatch, background, "save_state", until_it_fails)
    patched(monkeypatch, loop, "take_step", not_finite)
    config = config_of(inputs, tmp_path / "run")
    with pytest.raises(NumericsError, match="at step 3"):
        train(config)
    assert saved_step(config.out) == "2"


def test_an_interruption_at_once_waits_for_the_one_in_hand_alone(inputs, tmp_path, monkeypatch):
    keeps: list[Checkpoints] = []

    def until_the_run_is_left(_plan, _held, name, _loss=None):
        until = time.monotonic() + PATIENCE_S
        while name == "epoch-01" and not keeps[0]._stopped and time.monotonic() < until:
            time.sleep(0.01)

    def interrupted(*_, step, **__):
        if step == 3:
            raise KeyboardInterrupt

    patched(monkeypatch, Checkpoints, "take", keeps.append)
    patched(monkeypatch, background, "save_epoch", until_the_run_is_left)
    patched(monkeypatch, loop, "take_step", interrupted)
    config = config_of(inputs, tmp_path / "run")
    with pytest.raises(KeyboardInterrupt):
        train(config)
    assert (config.out / "epoch-01").is_dir()
    assert not (config.out / "state.safetensors").exists()
