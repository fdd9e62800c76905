"""Several processes share the steps of a run: the numbers of one, whoever is killed on the way."""

import itertools
import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed
from helpers import ROOT, read_lines, write_lines
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file
from train.runs import MODEL, SAMPLES, config_of

from cqa import ranks
from cqa.errors import ConfigError
from cqa.model.load import open_model
from cqa.model.lora import TrainableLora
from cqa.ranks import ALONE, Ranks, launched, parts
from cqa.train.loop import train
from cqa.train.passes import StepConfig, n_labels
from cqa.train.plan import make_plan, split_passes
from cqa.train.step import backward_passes

ENVIRONMENT = {
    **{k: v for k, v in os.environ.items() if k not in ("RANK", "WORLD_SIZE", "MASTER_ADDR")},
    "PYTHONPATH": f"{ROOT / 'cli'}{os.pathsep}{ROOT}",
    "OMP_NUM_THREADS": "1",
}
LR = 2e-4  # the paper's


@given(st.lists(st.integers(1, 50), max_size=7), st.integers(1, 4))
def test_parts_are_in_order_and_their_largest_is_the_least_possible(lengths, count):
    found = parts(lengths, count)
    assert len(found) == count
    assert [k for first, end in found for k in range(first, end)] == list(range(len(lengths)))
    cuts = itertools.combinations_with_replacement(range(len(lengths) + 1), count - 1)
    least = min(
        max(sum(lengths[a:b]) for a, b in itertools.pairwise((0, *cut, len(lengths))))
        for cut in cuts
    )
    assert max(sum(lengths[first:end]) for first, end in found) == least


def test_more_ranks_than_samples_leave_some_without():
    assert parts([5, 5], 4) == [(0, 1), (1, 2), (2, 2), (2, 2)]
    assert parts([], 2) == [(0, 0), (0, 0)]


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    return write_lines(tmp_path_factory.mktemp("data") / "train.jsonl", SAMPLES)


@pytest.mark.parametrize("count", [2, 3, 5])
def test_dropout_and_noise_of_a_sample_are_the_same_on_any_rank(data, tmp_path, count):
    plan = make_plan(config_of(data, tmp_path, grad_accum=4, dropout=0.3, neftune_alpha=5.0))
    base = open_model(plan.folder, "cpu", "fp32", rank_columns=plan.spec.rank_columns())
    lora = TrainableLora(base.decoder, plan.spec, 1)
    lora.state.param.add_(0.01)  # so that A has a gradient too
    lora.after_step()
    samples, config = plan.global_batch(1), StepConfig.of(plan.config)

    def gradient(ranks: Ranks, *, rows: bool = True) -> tuple[torch.Tensor, float]:
        lora.state.grad.zero_()
        ours, first = ranks.share(samples)
        loss = backward_passes(
            base.decoder, split_passes(list(ours), 200), config, step=1,
            labels=n_labels(samples), first_row=first if rows else 0,
        )  # fmt: skip
        return lora.state.grad.clone(), float(loss)

    whole, loss = gradient(ALONE)
    shares = [gradient(Ranks(k, count)) for k in range(count)]
    total = sum(grad for grad, _ in shares)
    assert torch.allclose(total, whole, rtol=0, atol=2e-6 * float(whole.abs().max()))
    assert sum(part for _, part in shares) == pytest.approx(loss, rel=1e-6)
    others = sum(gradient(Ranks(k, count), rows=False)[0] for k in range(count))
    assert not torch.allclose(others, whole, rtol=0, atol=1e-2 * float(whole.abs().max()))


def torchrun(n: int, *args: object) -> list[str]:
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    return [*launcher, f"--nproc-per-node={n}", "-m", "cqa_fast", "train", *map(str, args)]


def flags(data: Path, out: Path, **changes: Any) -> list[object]:
    settings = {
        "model": MODEL, "data": data, "out": out, "epochs": 3, "rank": 4, "alpha": 8.0, "lr": LR,
        "validation": 0.3, "seed": 11, "device": "cpu", "grad-accum": 3, **changes,
    }  # fmt: skip
    return [word for key, value in settings.items() for word in (f"--{key}", value)]


def run(command: list[str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command, env=ENVIRONMENT, capture_output=True, text=True, check=False, timeout=300
    )


@pytest.fixture(scope="module")
def alone(data, tmp_path_factory) -> Path:
    """The run of one process."""
    out = tmp_path_factory.mktemp("alone") / "run"
    train(config_of(data, out, lr=LR, grad_accum=3))
    return out


def assert_same_run(out: Path, alone: Path) -> None:
    """Losses, norms and all adapters within 1e-6."""
    logs = [read_lines(folder / "log.jsonl") for folder in (out, alone)]
    for ours, theirs in zip(*logs, strict=True):
        assert ours.keys() == theirs.keys()
        for key in ("event", "step", "epoch", "lr", "sample_ids", "n_tokens", "n_labels"):
            assert ours.get(key) == theirs.get(key)
        for key in ours.keys() & {"loss_nats", "eval_loss_nats", "grad_norm"}:
            assert ours[key] == pytest.approx(theirs[key], rel=1e-6)
    names = ["init", "epoch-01", "epoch-02", "epoch-03"]
    for name in names:
        held = [load_file(folder / name / "adapter_model.safetensors") for folder in (out, alone)]
        assert held[0].keys() == held[1].keys()
        for key, value in held[0].items():
            assert torch.allclose(value, held[1][key], rtol=0, atol=1e-6), (name, key)
    assert sorted(p.name for p in out.iterdir()) == sorted(p.name for p in alone.iterdir())


def test_two_ranks_end_as_one_process_and_print_once(data, alone, tmp_path):
    out = tmp_path / "run"
    done = run(torchrun(2, *flags(data, out), "--json"))
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["epochs"] == ["epoch-01", "epoch-02", "epoch-03"]
    assert done.stderr.count("epoch  1 loss") == 1
    assert json.loads((out / "run.json").read_text())["n_ranks"] == 2
    assert_same_run(out, alone)
    again = run(torchrun(2, *flags(data, out)))
    assert again.returncode != 0
    assert again.stderr.count("error: ") == 1
    assert "expected a new folder, got one that already holds a run" in again.stderr


def children(pid: int) -> dict[str, int]:
    """Return the processes of torchrun by rank."""
    found = {}
    for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
        held = Path(f"/proc/{child}/environ").read_bytes().split(b"\0")
        found |= {word[5:].decode(): int(child) for word in held if word.startswith(b"RANK=")}
    return found


@pytest.mark.parametrize("killed", [pytest.param("0", marks=pytest.mark.slow), "2"])
def test_killed_rank_ends_all_with_one_message_and_other_numbers_go_on(
    data, alone, tmp_path, killed
):
    """Of three ranks, which are more than the samples of the last window, which has one."""
    out = tmp_path / "run"
    process = subprocess.Popen(
        torchrun(3, *flags(data, out)), env=ENVIRONMENT, stdout=subprocess.PIPE,
        stderr=subprocess.PIPE, text=True,
    )  # fmt: skip

    def n_steps() -> int:
        log = out / "log.jsonl"
        return log.read_bytes().count(b'"event": "step"') if log.exists() else 0

    while process.poll() is None and n_steps() < 4:
        time.sleep(0.02)
    os.kill(children(process.pid)[killed], signal.SIGKILL)
    stdout, stderr = process.communicate(timeout=120)
    assert process.returncode != 0
    assert stdout == ""
    assert stderr.count("error: ") == 1, stderr
    assert f"error: {out}: expected all 3 ranks to go on, got one that ended or cannot be" in stderr
    assert f"with: cqa-fast train --resume --out {out}" in stderr
    if killed == "0":
        done = run(torchrun(2, "--resume", "--out", out))
        assert done.returncode == 0, done.stderr
    else:
        train(config_of(data, out, lr=LR, grad_accum=3), resume=True)
    held = json.loads((out / "run.json").read_text())
    assert held["n_ranks"] == 3
    assert [entry["n_ranks"] for entry in held["resumed"]] == [2 if killed == "0" else 1]
    assert_same_run(out, alone)


@pytest.mark.slow
def test_signal_to_all_stops_them_after_the_same_step(data, alone, tmp_path):
    out = tmp_path / "run"
    process = subprocess.Popen(
        torchrun(2, *flags(data, out)), env=ENVIRONMENT, stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    while process.poll() is None and not (out / "log.jsonl").exists():
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    _, stderr = process.communicate(timeout=120)
    assert stderr.count("error: ") == 1, stderr
    assert "error: stopped after step " in stderr
    assert (out / "state.safetensors").exists()
    train(config_of(data, out, lr=LR, grad_accum=3), resume=True)
    assert_same_run(out, alone)


def test_bad_data_is_told_once(data, tmp_path):
    bad = tmp_path / "bad.jsonl"
    bad.write_text("{}\n")
    done = run(torchrun(2, *flags(bad, tmp_path / "run")))
    assert done.returncode != 0
    assert done.stderr.count("error: ") == 1, done.stderr
    assert f"error: {bad}:1: " in done.stderr
    done = run(torchrun(2, *flags(data, tmp_path / "run", epochs=0)))
    assert done.stderr.count("error: ") == 1, done.stderr
    assert not (tmp_path / "run").exists()


def test_what_one_rank_alone_has_is_told(data, tmp_path):
    """Rank 1 of two is given a setting that rank 0 is not; nobody else could tell."""
    script = tmp_path / "one_of_two.py"
    script.write_text(
        "import os, sys, cqa.ranks\n"
        "from cqa_fast.main import main\n"
        "cqa.ranks._FIRST_ENDS_WITHIN_S = 0.1\n"
        "sys.argv += ['--grad-accum', '0'] * (os.environ['RANK'] == '1')\n"
        "main()\n"
    )
    launcher = torchrun(2)
    launcher[launcher.index("-m", 3) : -1] = [str(script)]
    options = flags(data, tmp_path / "run")
    done = run([*launcher, *map(str, options[: options.index("--grad-accum")])])
    told = "error: expected grad-accum to be at least 1, got: 0"
    assert done.stderr.count(told) == 1, done.stderr


def test_a_rank_that_does_not_tell_ends_after_the_one_that_does():
    """The launcher ends all as soon as one has ended, also one that has not yet printed."""
    store = torch.distributed.HashStore()
    assert ranks._tells(store, 0)
    assert not ranks._tells(store, 1)
    waits = threading.Thread(target=ranks._wait_until_told, args=(store,), daemon=True)
    waits.start()
    waits.join(0.3)
    assert waits.is_alive()
    ranks._say_told(store)
    waits.join(10)
    assert not waits.is_alive()


def test_graphs_are_of_one_process(data, tmp_path):
    with pytest.raises(ConfigError, match="expected one process with --cuda-graphs"):
        train(config_of(data, tmp_path / "run", cuda_graphs=True), ranks=Ranks(0, 2))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        ({"RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "a"}, (1, 2)),
        ({"RANK": "1", "WORLD_SIZE": "2"}, (0, 1)),
        ({"RANK": "5", "WORLD_SIZE": "2", "MASTER_ADDR": "a"}, (0, 1)),
        ({"RANK": "x", "WORLD_SIZE": "2", "MASTER_ADDR": "a"}, (0, 1)),
        ({}, (0, 1)),
    ],
)
def test_only_what_a_launcher_sets_whole_makes_a_rank(monkeypatch, found, expected):
    for name in ("RANK", "WORLD_SIZE", "MASTER_ADDR"):
        monkeypatch.delenv(name, raising=False)
    for name, value in found.items():
        monkeypatch.setenv(name, value)
    assert launched() == expected
