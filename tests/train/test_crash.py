"""Training that is killed, or finds the disk full, at any write: nothing lost, the same bits."""

import os
import signal
from pathlib import Path

import pytest
from faults import (
    Crashes,
    assert_every_failure_is_continued,
    assert_every_state_is_continued,
    before_each_change,
    failing_at,
    leftovers,
    no_space,
    run_contents,
)
from helpers import tiny_model, write_lines

from cqa.interrupt import Interrupted
from cqa.train.config import TrainConfig
from cqa.train.loop import train

SAMPLES = [
    {"id": f"s{i}", "prompt": "the lamp was lit"[: 8 + i], "response": " and she waited"[: 9 + i]}
    for i in range(5)
]


@pytest.fixture(scope="module")
def inputs(tmp_path_factory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("inputs")
    return tiny_model(folder / "model"), write_lines(folder / "train.jsonl", SAMPLES)


def config_of(inputs: tuple[Path, Path], out: Path) -> TrainConfig:
    """Dropout, noise, validation, a last partial window: two epochs of two steps."""
    model, data = inputs
    return TrainConfig(
        model=str(model), data=(data,), out=out, epochs=2, rank=2, lr=1e-2, validation="0.3",
        device="cpu", seed=3,
    )  # fmt: skip


@pytest.fixture(scope="module")
def crashes(inputs, tmp_path_factory) -> Crashes:
    folder = tmp_path_factory.mktemp("crashes")
    watched = Crashes(folder / "run", folder / "copies")
    with watched.watched():
        train(config_of(inputs, folder / "run"))
    return watched


def test_run_killed_or_cut_off_at_any_write_is_resumed_to_the_same_bits(inputs, crashes):
    assert len(crashes.states) > 15
    assert_every_state_is_continued(
        crashes, lambda out: train(config_of(inputs, out), resume=True), run_contents
    )


@pytest.mark.parametrize("error", [no_space, KeyboardInterrupt], ids=["full-disk", "second-ctrl-c"])
def test_run_whose_write_fails_anywhere_ends_cleanly_and_is_resumed(inputs, tmp_path, error):
    assert_every_failure_is_continued(
        tmp_path,
        error,
        begin=lambda out: train(config_of(inputs, out)),
        go_on=lambda out: train(config_of(inputs, out), resume=True),
        contents=run_contents,
    )


def test_signal_at_any_write_is_answered_after_it_and_the_run_is_resumed(inputs, crashes, tmp_path):
    finished = run_contents(crashes.folder)
    with failing_at(0, KeyboardInterrupt) as changes:
        train(config_of(inputs, tmp_path / "whole"))
    codes = []
    for number in range(6, len(changes) - 6, 7):
        config = config_of(inputs, tmp_path / f"run-{number}")
        made: list[str] = []

        def signal_once(name: str, args: tuple, made=made, number=number) -> None:
            made.append(name)
            if len(made) == number:
                os.kill(os.getpid(), signal.SIGINT)

        with before_each_change(signal_once), pytest.raises(Interrupted) as caught:
            train(config)
        assert len(made) > number, "what was begun is finished"
        codes.append(caught.value.exit_code)
        train(config, resume=True)
        assert run_contents(config.out) == finished
        assert not leftovers(config.out)
    assert codes == [130] * len(codes)
    assert len(codes) > 3
