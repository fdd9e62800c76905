"""What the tests of training runs share: a few samples, settings, and what is read."""

from pathlib import Path
from typing import Any

from helpers import DEMO, read_lines

from cqa.train.config import TrainConfig

MODEL = DEMO / "model"
SAMPLES = [
    {"id": s["id"], "prompt": s["prompt"][-90:], "response": s["response"][: 60 + 9 * i]}
    for i, s in enumerate(read_lines(DEMO / "train.jsonl")[:10])
]
STEPS_PER_EPOCH, TOTAL = 4, 12  # of 7 training samples in windows of 2, for 3 epochs
EPOCHS = ["epoch-01", "epoch-02", "epoch-03"]
TIMES = {"step_s", "tokens_per_s", "eval_s"}


def config_of(data: Path, out: Path, **changes: Any) -> TrainConfig:
    settings = {
        "epochs": 3,
        "rank": 4,
        "alpha": 8.0,
        "lr": 1e-3,
        "validation": "0.3",
        "seed": 11,
        "device": "cpu",
    }
    return TrainConfig(model=str(MODEL), data=(data,), out=out, **{**settings, **changes})


def log_of(out: Path) -> list[dict]:
    return read_lines(out / "log.jsonl")


def untimed(events: list[dict]) -> list[dict]:
    return [{k: v for k, v in event.items() if k not in TIMES} for event in events]


def steps_of(out: Path) -> list[dict]:
    return [event for event in log_of(out) if event["event"] == "step"]


def adapter_bytes(out: Path) -> dict[str, bytes]:
    return {
        f"{path.parent.name}/{path.name}": path.read_bytes()
        for path in sorted(out.glob("*/adapter_*"))
    }


def assert_same_run(out: Path, other: Path) -> None:
    assert adapter_bytes(out) == adapter_bytes(other)
    assert untimed(log_of(out)) == untimed(log_of(other))
