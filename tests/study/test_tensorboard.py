"""A training run's curves: what TensorBoard reads is what log.jsonl holds."""

import sys
from pathlib import Path

import pytest
from helpers import DEMO, read_lines, write_lines

from cqa.errors import ConfigError
from cqa.study.config import CallbackTrainConfig
from cqa.study.in_loop_eval import train_with_callbacks


def config_of(folder: Path, **changes) -> CallbackTrainConfig:
    data = folder / "train.jsonl"
    if not data.exists():
        samples = [{"prompt": "She waited", "response": f" by door {k}."} for k in range(5)]
        write_lines(data, samples)
    settings = {
        "model": str(DEMO / "model"), "data": (data,), "out": folder / "run", "epochs": 2,
        "rank": 2, "validation": "0", "device": "cpu", "tensorboard": True,
    }  # fmt: skip
    return CallbackTrainConfig(**{**settings, **changes})


@pytest.mark.filterwarnings("ignore")  # of tensorboard and what it imports
def test_the_curves_are_the_log(tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    dev = tmp_path / "dev.jsonl"
    pair = {"context": "She sat", "good": " by the lamp.", "bad": " of a.", "group": "literary"}
    write_lines(dev, [{**pair, "id": "a"}, {**pair, "id": "b", "context": "He ran"}])
    config = config_of(tmp_path, validation="0.2", dev=dev)
    train_with_callbacks(config)
    log = read_lines(config.out / "log.jsonl")
    read = EventAccumulator(str(config.out / "tensorboard"))
    read.Reload()

    def curve(name: str) -> dict[int, float]:
        return {e.step: e.value for e in read.Scalars(name)}

    steps = [event for event in log if event["event"] == "step"]
    last = {0: 0} | {event["epoch"]: event["step"] for event in steps}
    for key in ("loss_nats", "lr", "grad_norm"):
        expected = {event["step"]: pytest.approx(event[key], rel=1e-6) for event in steps}
        assert curve(f"train/{key}") == expected
    for kind, name, key in (
        ("eval", "eval/eval_loss_nats", "eval_loss_nats"),
        ("dev", "dev/literary/mean_ddi_nats", "mean_ddi_nats"),
    ):
        events = [event for event in log if event["event"] == kind]
        assert [e["epoch"] for e in events] == ([0, 1, 2] if kind == "eval" else [1, 2])
        assert [e["step"] for e in events] == [last[e["epoch"]] for e in events]
        expected = {last[e["epoch"]]: pytest.approx(e[key], rel=1e-5, abs=1e-6) for e in events}
        assert curve(name) == expected


def test_without_tensorboard_one_message_and_nothing_is_written(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    config = config_of(tmp_path, validation="0")
    with pytest.raises(ConfigError, match=r"cqa-fast\[tensorboard\]"):
        train_with_callbacks(config)
    assert not config.out.exists()
