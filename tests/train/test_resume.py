"""A training run can be repeated, stopped and resumed, with nothing else changed."""

import json
import os
import shutil
import signal
from dataclasses import replace
from pathlib import Path

import pytest
from helpers import write_lines
from observers import at_step, crash, interrupt
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from train.runs import (
    MODEL,
    SAMPLES,
    STEPS_PER_EPOCH,
    TOTAL,
    adapter_bytes,
    assert_same_run,
    config_of,
    log_of,
    steps_of,
)

from cqa.errors import ConfigError, DataError, ModelError
from cqa.interrupt import Interrupted
from cqa.schema.events import Finished, TrainEvent
from cqa.train.loop import train


def test_same_seed_gives_the_same_bits(finished, config):
    train(config)
    assert_same_run(config.out, finished[0])


def test_another_seed_gives_another_run(finished, data, tmp_path):
    config = config_of(data, tmp_path / "run", seed=12, epochs=1)
    train(config)
    ours, theirs = adapter_bytes(config.out), adapter_bytes(finished[0])
    assert ours["init/adapter_model.safetensors"] != theirs["init/adapter_model.safetensors"]
    orders = [
        [step["sample_ids"] for step in steps_of(out)][:STEPS_PER_EPOCH]
        for out in (config.out, finished[0])
    ]
    assert orders[0] != orders[1]


@pytest.mark.parametrize("step", [2, 6, 8], ids=["first-epoch", "mid-epoch", "end-of-epoch"])
def test_resuming_after_a_crash_gives_the_same_bits(finished, config, step):
    with pytest.raises(KeyboardInterrupt):
        train(config, on_event=at_step(step, crash))
    events: list[TrainEvent] = []
    train(config, resume=True, on_event=events.append)
    assert events[0].step == (step - 1) // STEPS_PER_EPOCH * STEPS_PER_EPOCH
    assert_same_run(config.out, finished[0])


@pytest.mark.parametrize(
    ("step", "signum"),
    [(2, signal.SIGINT), (4, signal.SIGINT), (6, signal.SIGTERM)],
    ids=["first-epoch", "end-of-epoch", "mid-epoch"],
)
def test_signal_stops_after_the_step_in_hand_and_resuming_gives_the_same_bits(
    finished, config, step, signum
):
    handlers = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    with pytest.raises(
        Interrupted, match=f"after step {step}\nhint: continue with: cqa-fast"
    ) as caught:
        train(config, on_event=at_step(step, lambda: os.kill(os.getpid(), signum)))
    assert caught.value.exit_code == 128 + signum
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == handlers
    assert len(steps_of(config.out)) == step

    events: list[TrainEvent] = []
    train(config, resume=True, on_event=events.append)
    assert [event.step for event in events[:2]] == [step, step + 1]
    assert_same_run(config.out, finished[0])


def test_run_stopped_twice_gives_the_same_bits(finished, config):
    for step, resume in ((3, False), (6, True)):
        with pytest.raises(Interrupted):
            train(config, resume=resume, on_event=at_step(step, interrupt))
    train(config, resume=True)
    assert_same_run(config.out, finished[0])


def test_log_line_torn_by_a_kill_is_cut_on_resume(finished, config):
    with pytest.raises(KeyboardInterrupt):
        train(config, on_event=at_step(6, crash))
    with (config.out / "log.jsonl").open("ab") as log:
        log.write(b'{"event": "step", "st')
    train(config, resume=True)
    assert_same_run(config.out, finished[0])


def test_resuming_an_empty_folder_starts_anew(finished, config):
    config.out.mkdir()
    train(config, resume=True)
    assert_same_run(config.out, finished[0])


def test_resuming_a_finished_run_does_nothing(finished, data):
    out, _, result = finished
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*") if "lock" not in path.name}
    events: list[TrainEvent] = []
    assert train(config_of(data, out), resume=True, on_event=events.append) == result
    assert events == [Finished(step=TOTAL)]
    after = {path: path.stat().st_mtime_ns for path in out.rglob("*") if "lock" not in path.name}
    after.pop(out, None)
    before.pop(out, None)
    assert after == before


def test_folder_that_holds_a_run_is_refused_without_resume(finished, data):
    out, _, _ = finished
    before = adapter_bytes(out), log_of(out)
    with pytest.raises(
        ConfigError, match=r"already holds a run\nhint: .*: cqa-fast train --resume --out "
    ):
        train(config_of(data, out))
    assert (adapter_bytes(out), log_of(out)) == before


@pytest.mark.parametrize(
    "changes",
    [
        {"lr": 2e-3},
        {"seed": 12},
        {"rank": 8},
        {"dropout": 0.0},
        {"grad_accum": 1},
        {"validation": "0.2"},
        {"targets": ("q", "v")},
        {"dtype": "bf16"},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_resuming_with_other_settings_is_refused(finished, data, changes):
    name = next(iter(changes)).replace("_", "-")
    expected = (
        rf"expected the run to resume with --{name} .*, got with --{name} .*\nhint: every step"
    )
    with pytest.raises(ConfigError, match=expected):
        train(config_of(data, finished[0], **changes), resume=True)


def test_state_whose_step_was_rewritten_is_refused(finished, tmp_path):
    out = shutil.copytree(finished[0], tmp_path / "run")
    path = out / "state.safetensors"
    with safe_open(path, "pt") as file:
        tensors, metadata = {name: file.get_tensor(name) for name in file.keys()}, file.metadata()  # noqa: SIM118
    save_file(tensors, path, metadata={**metadata, "step": "5"})
    with pytest.raises(DataError, match="the state as it was written, got another step"):
        train(config_of(finished_data(out), out), resume=True)


def finished_data(out: Path) -> Path:
    return Path(json.loads((out / "run.json").read_text())["settings"]["data"][0])


def test_resuming_with_more_epochs_is_refused_with_the_run_that_starts_from_here(finished, data):
    expected = (
        r"with --epochs 3, got with --epochs 4\nhint: the learning rate .* --from .*/epoch-03"
    )
    with pytest.raises(ConfigError, match=expected):
        train(config_of(data, finished[0], epochs=4), resume=True)


def test_files_may_be_named_in_another_way_on_resume(finished, data, tmp_path, monkeypatch):
    """Their digests say whether they are the same: a folder may have moved."""
    out = tmp_path / "run"
    with pytest.raises(Interrupted):
        train(config_of(data, out), on_event=at_step(2, interrupt))
    monkeypatch.chdir(data.parent)
    train(config_of(Path(data.name), out), resume=True)
    assert_same_run(out, finished[0])


@pytest.mark.parametrize(
    ("settings", "other"),
    [
        ({"validation": "FILE"}, {"validation": "0.3"}),
        ({"template": "plain"}, {"template": "FILE"}),
    ],
    ids=["validation", "template"],
)
def test_share_is_no_other_name_of_a_file_nor_plain_of_a_template(data, tmp_path, settings, other):
    def named(values: dict) -> dict:
        files = {"validation": str(data), "template": str(tmp_path / "turns.jinja")}
        return {key: files[key] if value == "FILE" else value for key, value in values.items()}

    text = "{% for m in messages %}{{ m.content }}{% endfor %}"
    (tmp_path / "turns.jinja").write_text(text)
    config = config_of(data, tmp_path / "run", **named(settings))
    with pytest.raises(Interrupted):
        train(config, on_event=at_step(1, interrupt))
    with pytest.raises(ConfigError, match=f"resume with --{next(iter(other))}"):
        train(replace(config, **named(other)), resume=True)


def test_resuming_with_other_data_is_refused(data, tmp_path):
    copy = write_lines(tmp_path / "train.jsonl", SAMPLES)
    config = config_of(copy, tmp_path / "run")
    with pytest.raises(Interrupted):
        train(config, on_event=at_step(1, interrupt))
    write_lines(copy, SAMPLES[::-1])
    with pytest.raises(DataError, match="got other bytes"):
        train(config, resume=True)


def change_model(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    weights["model.norm.weight"] *= 2
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def change_tokenizer(folder: Path) -> None:
    path = folder / "tokenizer_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "eos_token": "<|im_end|>"}))


def change_template(folder: Path) -> None:
    (folder / "turns.jinja").write_text("{% for m in messages %}[{{ m.content }}]{% endfor %}")


@pytest.mark.parametrize("change", [change_model, change_tokenizer, change_template])
def test_resuming_with_another_part_is_refused_by_its_name(data, tmp_path, change):
    model = Path(shutil.copytree(MODEL, tmp_path / "model"))
    template = model / "turns.jinja"
    template.write_text("{% for m in messages %}<{{ m.content }}>{% endfor %}")
    settings = {"template": str(template), "rank": 2, "targets": ("q",)}
    config = replace(config_of(data, tmp_path / "run", **settings), model=str(model))
    with pytest.raises(Interrupted):
        train(config, on_event=at_step(1, interrupt))
    change(model)
    part = change.__name__.removeprefix("change_")
    with pytest.raises(ModelError, match=f"expected the {part} of the run to resume") as caught:
        train(config, resume=True)
    assert caught.value.exit_code == 4


@pytest.mark.parametrize("changes", [{"pass_tokens": 64}, {"recompute": True}], ids=str)
def test_settings_that_do_not_change_the_result_may_change_on_resume(
    finished, data, tmp_path, changes
):
    with pytest.raises(KeyboardInterrupt):
        train(config_of(data, tmp_path / "run"), on_event=at_step(6, crash))
    train(config_of(data, tmp_path / "run", **changes), resume=True)
    ours, theirs = (
        load_file(out / "epoch-03" / "adapter_model.safetensors")
        for out in (tmp_path / "run", finished[0])
    )
    for name, tensor in theirs.items():
        assert (ours[name] - tensor).norm() < 1e-4 * tensor.norm(), name
