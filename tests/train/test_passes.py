"""Training that runs out of memory: split passes, the same result up to the order of its sums."""

from pathlib import Path

import pytest
import torch
from helpers import read_lines, tiny_model, write_lines
from observers import at_step, crash
from safetensors.torch import load_file
from train.runs import adapter_bytes

from cqa.errors import ResourceError
from cqa.model import decoder
from cqa.model.decoder import Decoder
from cqa.schema.events import Eval, Memory, Note, TrainEvent
from cqa.train.config import TrainConfig
from cqa.train.graphs import Graphs
from cqa.train.loop import train

SAMPLES = [
    {"id": f"s{i}", "prompt": "the lamp was lit"[: 8 + i], "response": " and she waited"[: 9 + i]}
    for i in range(6)
]
ERRORS = {
    "cuda": lambda: torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB"),
    "cpu": lambda: RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to …"),
    "python": MemoryError,
}


@pytest.fixture(scope="module")
def inputs(tmp_path_factory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("inputs")
    return tiny_model(folder / "model"), write_lines(folder / "train.jsonl", SAMPLES)


def config_of(inputs: tuple[Path, Path], out: Path, **changes: object) -> TrainConfig:
    """One step an epoch, over all four samples that are not held out; dropout and noise are on."""
    model, data = inputs
    settings = {"epochs": 3, "grad_accum": 4, "validation": "0.3", "seed": 3, **changes}
    return TrainConfig(
        model=str(model), data=(data,), out=out, rank=2, lr=1e-2, warmup_ratio=0.0, device="cpu",
        **settings,
    )  # fmt: skip


@pytest.fixture(scope="module")
def finished(inputs, tmp_path_factory) -> Path:
    config = config_of(inputs, tmp_path_factory.mktemp("finished") / "run")
    train(config)
    return config.out


def limit_memory(monkeypatch, rows: int, error, *, calls: list[int] | None = None) -> list[int]:
    """Let forward passes of more rows run out of memory; return the rows of all."""
    tried = [] if calls is None else calls
    real = Decoder.hidden

    def hidden(self, batch, **options):
        tried.append(batch.n_rows)
        if batch.n_rows > rows:
            raise error()
        return real(self, batch, **options)

    monkeypatch.setattr(Decoder, "hidden", hidden)
    return tried


def assert_same_up_to_rounding(out: Path, other: Path) -> None:
    for epoch in ("epoch-01", "epoch-02", "epoch-03"):
        ours, theirs = (load_file(o / epoch / "adapter_model.safetensors") for o in (out, other))
        for name, tensor in theirs.items():
            assert (ours[name] - tensor).norm() <= 1e-4 * tensor.norm() + 1e-9, name
    for event, expected in zip(numbers(out), numbers(other), strict=True):
        assert event == pytest.approx(expected, rel=1e-4)


def numbers(out: Path) -> list[float]:
    """The losses and gradient norms of steps, and the losses of epochs."""
    log = [e for e in read_lines(out / "log.jsonl") if e["event"] != "memory"]
    keys = ("loss_nats", "grad_norm", "eval_loss_nats")
    return [event[key] for event in log for key in keys if key in event]


@pytest.mark.parametrize("error", ERRORS.values(), ids=ERRORS)
def test_window_that_does_not_fit_is_split_and_the_result_stays(
    inputs, finished, tmp_path, monkeypatch, error
):
    config = config_of(inputs, tmp_path / "run")
    tried = limit_memory(monkeypatch, 20, error)
    events: list[TrainEvent] = []
    train(config, on_event=events.append)
    (memory,) = (event for event in events if isinstance(event, Memory))
    assert memory.step == 1
    assert memory.pass_tokens < sum(sorted(tried)[-1:])
    assert sum(rows > 20 for rows in tried) <= 3  # it is remembered for the steps that follow
    assert_same_up_to_rounding(config.out, finished)


def test_split_is_logged_and_a_resumed_run_keeps_that_line(inputs, tmp_path, monkeypatch):
    config = config_of(inputs, tmp_path / "run")
    limit_memory(monkeypatch, 20, MemoryError)

    with pytest.raises(KeyboardInterrupt):
        train(config, on_event=at_step(3, crash))
    train(config, resume=True)
    order = [(e["event"], e.get("step")) for e in read_lines(config.out / "log.jsonl")]
    assert order == [
        ("eval", 0), ("step", 1), ("eval", 1), ("memory", 1), ("step", 2), ("eval", 2),
        ("step", 3), ("eval", 3), ("memory", 3),
    ]  # fmt: skip


def test_failure_after_part_of_a_gradient_was_added_does_not_add_it_twice(
    inputs, finished, tmp_path, monkeypatch
):
    config = config_of(inputs, tmp_path / "run", pass_tokens=20)  # two passes a window
    real, calls = decoder.token_logprobs, []

    def token_logprobs(*inputs, **options):
        calls.append(1)
        if len(calls) == 2:  # the second pass of the first window, after the first one's backward
            raise MemoryError
        return real(*inputs, **options)

    monkeypatch.setattr(decoder, "token_logprobs", token_logprobs)
    train(config)
    assert_same_up_to_rounding(config.out, finished)


def test_sample_that_does_not_fit_alone_ends_the_run_by_name_and_nothing_is_lost(
    inputs, finished, tmp_path, monkeypatch
):
    config = config_of(inputs, tmp_path / "run")

    def tighten(event: TrainEvent) -> None:
        if isinstance(event, Eval) and event.epoch == 2:
            limit_memory(monkeypatch, 5, MemoryError)

    with pytest.raises(
        ResourceError, match=r"one sample a pass.*`s\d`.*\nhint: --recompute"
    ) as got:
        train(config, on_event=tighten)
    assert got.value.exit_code == 6
    assert str(inputs[1]) in str(got.value.where)
    monkeypatch.undo()
    events: list[TrainEvent] = []
    train(config, resume=True, on_event=events.append)
    assert next(event.step for event in events if not isinstance(event, Note)) == 2
    assert_same_up_to_rounding(config.out, finished)


def test_run_whose_graphs_do_not_fit_goes_on_without_them_with_one_note(
    inputs, finished, tmp_path, monkeypatch
):
    def no_memory(_: object) -> None:
        raise MemoryError

    def graphs_of(lora, config):
        return Graphs(lora, config, no_memory)

    monkeypatch.setattr(Graphs, "of", graphs_of)
    config = config_of(inputs, tmp_path / "run", cuda_graphs=True)
    events: list[TrainEvent] = []
    train(config, on_event=events.append)
    (note,) = (e for e in events if isinstance(e, Note) and e.step is not None)
    assert note.step == 1
    assert "going on without --cuda-graphs" in note.text
    assert note.to_json() in read_lines(config.out / "log.jsonl")
    assert adapter_bytes(config.out) == adapter_bytes(finished)


@pytest.mark.parametrize("place", ["step.adamw_step", "loop.open_model", "step.gradient_norm"])
def test_memory_that_runs_out_elsewhere_ends_the_run_with_a_hint(
    inputs, finished, tmp_path, monkeypatch, place
):
    def no_memory(*_: object, **__: object) -> None:
        raise ERRORS["cpu"]()

    config = config_of(inputs, tmp_path / "run")
    monkeypatch.setattr(f"cqa.train.{place}", no_memory)
    with pytest.raises(ResourceError, match=r"enough memory for training, got none\nhint: "):
        train(config)
    monkeypatch.undo()
    train(config, resume=True)
    assert numbers(config.out) == numbers(finished)


def test_error_that_is_not_about_memory_is_not_taken_for_one(inputs, tmp_path, monkeypatch):
    limit_memory(monkeypatch, 0, lambda: RuntimeError("mat1 and mat2 shapes cannot be multiplied"))
    with pytest.raises(RuntimeError, match="shapes"):
        train(config_of(inputs, tmp_path / "run"))
