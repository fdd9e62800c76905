"""The task metric in the loop is what scoring says, and changes nothing."""

import json
from pathlib import Path
from typing import Any

import pytest
from helpers import read_lines, write_lines
from observers import at_step, crash
from study.common import MODEL, SMALL, write_pairs, write_samples

from cqa.errors import ConfigError, DataError
from cqa.score.config import ScoreConfig
from cqa.score.run import score
from cqa.study.config import CallbackTrainConfig
from cqa.study.in_loop_eval import train_with_callbacks

GROUPS = ("literary", "factual")


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> tuple[Path, Path]:
    """Training samples and dev pairs."""
    folder = tmp_path_factory.mktemp("files")
    pairs = write_pairs(folder / "dev.jsonl", 3, *GROUPS)
    return write_samples(folder / "train.jsonl", 4), pairs


def config_of(files: tuple[Path, Path], out: Path, **changes: Any) -> CallbackTrainConfig:
    settings = {"data": (files[0],), "dev": files[1], "out": out, "epochs": 2, **SMALL, **changes}
    return CallbackTrainConfig(model=str(MODEL), **settings)


@pytest.fixture(scope="module")
def watched(files, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("watched") / "run"
    train_with_callbacks(config_of(files, out))
    return out


def devs(out: Path) -> list[dict]:
    return [
        {key: value for key, value in event.items() if key != "dev_s"}
        for event in read_lines(out / "log.jsonl")
        if event["event"] == "dev"
    ]


def adapters(out: Path) -> dict[str, bytes]:
    return {str(path.relative_to(out)): path.read_bytes() for path in out.glob("*/*.safetensors")}


def test_it_is_what_scoring_the_kept_epochs_says(watched, files, tmp_path):
    config = ScoreConfig(
        model=str(MODEL), run=(watched,), pairs=(files[1],), out=tmp_path, device="cpu"
    )
    groups = score(config).to_json()["groups"]
    events = devs(watched)
    assert [(e["epoch"], e["group"]) for e in events] == [(e, g) for e in (1, 2) for g in GROUPS]
    for event in events:
        truth = groups[event["group"]][f"epoch-0{event['epoch']}"]
        assert event["n"] == 3
        assert event["mean_ddi_nats"] != 0
        for key in ("mean_delta_i_base_nats", "mean_delta_i_nats", "mean_ddi_nats", "ci95_nats"):
            assert event[key] == pytest.approx(truth[key], abs=1e-4)


def test_looking_changes_no_bit_of_the_run(watched, files, tmp_path):
    train_with_callbacks(config_of(files, tmp_path / "run", dev=None))
    assert adapters(tmp_path / "run") == adapters(watched)
    assert not devs(tmp_path / "run")


def test_resumed_run_logs_what_an_uninterrupted_one_does(watched, files, tmp_path):
    config = config_of(files, tmp_path / "run")
    with pytest.raises(KeyboardInterrupt):
        train_with_callbacks(config, on_event=at_step(3, crash))
    assert len(devs(config.out)) == 2
    train_with_callbacks(config, resume=True)
    assert devs(config.out) == devs(watched)
    assert adapters(config.out) == adapters(watched)


def test_file_is_recorded_and_another_one_refused_on_resume(watched, files):
    settings = json.loads((watched / "run.json").read_text())["settings"]
    assert settings["dev"] == str(files[1])
    with pytest.raises(ConfigError, match=r"run to resume with --dev .*, got without --dev"):
        train_with_callbacks(config_of(files, watched, dev=None), resume=True)


def test_bad_file_is_refused_before_anything_is_written(files, tmp_path):
    pair = read_lines(files[1])[0]
    twice = write_lines(tmp_path / "dev.jsonl", [pair, pair])
    with pytest.raises(DataError, match=f"^{twice}:2: expected each id once"):
        train_with_callbacks(config_of((files[0], twice), tmp_path / "run"))
    assert not (tmp_path / "run").exists()
