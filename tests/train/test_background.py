"""Checkpoints written while training goes on: of the right step, in order, none after a failure."""

import threading
from pathlib import Path

import pytest
from faults import run_contents
from helpers import tiny_model, write_lines
from train.test_crash import SAMPLES, config_of

from cqa.errors import NumericsError, ResourceError
from cqa.model.checkpoint import opened
from cqa.train import background, loop
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


@pytest.mark.parametrize(
    "error", [NumericsError("expected a finite loss, got nan"), KeyboardInterrupt()], ids=type
)
def test_what_ends_a_run_waits_for_what_was_given_before(inputs, tmp_path, monkeypatch, error):
    failing = threading.Event()

    def until_it_fails(_plan, _held, name, _loss=None):
        assert name != "epoch-01" or failing.wait(PATIENCE_S)

    def failed(*_, step, **__):
        if step == 3:
            failing.set()
            raise error

    patched(monkeypatch, background, "save_epoch", until_it_fails)
    patched(monkeypatch, loop, "take_step", failed)
    config = config_of(inputs, tmp_path / "run")
    with pytest.raises(type(error)):
        train(config)
    assert (config.out / "epoch-01").is_dir()
    assert saved_step(config.out) == "2"
