"""The scale study: nested subsets, matched arms, one base, and a killed study that goes on."""

import csv
import json
import math
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers import ROOT, read_lines, write_lines
from scipy import stats
from study.common import MODEL, SMALL, write_pairs, write_samples

from cqa.errors import ConfigError, DataError
from cqa.files import claimed
from cqa.interrupt import Interrupted
from cqa.model import load
from cqa.model.adapter_files import adapter_digest
from cqa.output_folder import filled
from cqa.schema.events import (
    ModelScored,
    RowsWritten,
    ScaleEvent,
    ScaleRun,
    ScaleWait,
    ScoreEvent,
    Step,
)
from cqa.schema.scale import ScaleResult
from cqa.score.config import ScoreConfig
from cqa.score.run import score
from cqa.study.config import ScaleConfig
from cqa.study.scale import scale, scale_text
from cqa.study.scale_runs import cells_of, claim_of
from cqa.train.config import TrainConfig
from cqa.train.loop import train
from cqa.train.plan import make_plan

RUNS = [
    "n002-seed3-epochs2", "n002-seed4-epochs2", "n004-seed3-epochs2", "n004-seed4-epochs2",
    "n002-seed3-epochs4", "n002-seed4-epochs4",
]  # fmt: skip


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> tuple[Path, Path]:
    """Training samples and pairs."""
    folder = tmp_path_factory.mktemp("files")
    pairs = write_pairs(folder / "pairs.jsonl", 4, "literary", "factual")
    return write_samples(folder / "train.jsonl", 6), pairs


def config_of(files: tuple[Path, Path], out: Path, **changes: Any) -> ScaleConfig:
    settings = {
        **SMALL, "data": (files[0],), "pairs": (files[1],), "out": out, "sizes": (2, 4), "seeds": 2,
        "epochs": 2, "seed": 3, **changes,
    }  # fmt: skip
    return ScaleConfig(model=str(MODEL), **settings)


@pytest.fixture(scope="module")
def done(files, tmp_path_factory) -> tuple[ScaleConfig, ScaleResult, list[ScaleEvent]]:
    """A finished study: its settings, its result, and the events of training."""
    config = config_of(files, tmp_path_factory.mktemp("scale") / "out")
    events: list[ScaleEvent] = []
    return config, scale(config, on_train=events.append), events


def runs_of(events: list[ScaleEvent]) -> list[tuple[str, bool]]:
    return [(e.name, e.done) for e in events if isinstance(e, ScaleRun)]


def adapters_of(out: Path) -> dict[str, bytes]:
    return {str(p.relative_to(out)): p.read_bytes() for p in out.rglob("adapter_model.safetensors")}


def test_default_arms_match_epochs_or_steps(files, tmp_path):
    config = config_of(files, tmp_path, sizes=(10, 30, 60, 100), seeds=1, epochs=12)
    by_epoch, by_step = (
        [(c.size, c.epochs) for c in cells_of(config, a)] for a in ("epoch", "step")
    )
    assert by_epoch == [(10, 12), (30, 12), (60, 12), (100, 12)]
    assert by_step == [(10, 120), (30, 40), (60, 20), (100, 12)]
    assert all(math.ceil(size / 2) * epochs == 600 for size, epochs in by_step)


def test_scored_epoch_of_smaller_subsets_comes_after_as_many_steps(files, tmp_path):
    config = config_of(files, tmp_path, sizes=(10, 30, 60, 100), seeds=1, epochs=12, scored_epoch=5)
    assert [c.scored_epoch for c in cells_of(config, "epoch")] == [5, 5, 5, 5]
    assert [c.scored_epoch for c in cells_of(config, "step")] == [50, 17, 8, 5]


def test_subsets_are_nested_and_drawn_by_the_seed(done, files):
    folder = done[0].out / "data"
    subsets = {(n, s): read_lines(folder / f"n00{n}-seed{s}.jsonl") for n in (2, 4) for s in (3, 4)}
    samples = read_lines(files[0])
    for seed in (3, 4):
        assert subsets[4, seed][:2] == subsets[2, seed]
        assert len({r["id"] for r in subsets[4, seed]}) == 4
        assert all(record in samples for record in subsets[4, seed])
    assert subsets[4, 3] != subsets[4, 4]


def test_every_run_is_trained_once_and_the_largest_serves_both_arms(done):
    config, result, events = done
    assert runs_of(events) == [(name, False) for name in RUNS]
    assert {row.run for row in result.runs} == set(RUNS)
    assert len(result.runs) == 2 * 2 * 2 * 2  # arms, sizes, seeds, groups
    kept = sorted(p.parent.name for p in config.out.glob("runs/*/epoch-*"))
    assert kept == sorted(RUNS)
    assert not list(config.out.rglob("state.safetensors"))


def test_steps_of_the_step_arm_are_those_of_the_largest_subset(done):
    steps = {(r.arm, r.size): r.steps for r in done[1].curve}
    assert steps == {("epoch", 2): 2, ("epoch", 4): 4, ("step", 2): 4, ("step", 4): 4}
    for run in RUNS:
        log = read_lines(done[0].out / "runs" / run / "log.jsonl")
        n_steps = sum(event["event"] == "step" for event in log)
        assert n_steps in {r.steps for r in done[1].runs if r.run == run}


def test_runs_may_start_from_an_adapter(done, files, tmp_path):
    start = done[0].out / "runs" / RUNS[0] / "epoch-02"
    config = config_of(files, tmp_path / "out", from_=start, sizes=(2,), seeds=1)
    scale(config)
    run = config.out / "runs" / RUNS[0]
    held = json.loads((run / "run.json").read_text())
    assert held["from"]["adapter_digest"] == adapter_digest(start)
    assert adapter_digest(run / "epoch-02") != adapter_digest(start)


def test_run_and_scores_are_those_of_train_and_score_alone(done, files, tmp_path):
    config, result, _ = done
    name = RUNS[-1]
    alone = TrainConfig(
        model=str(MODEL), data=(config.out / "data" / "n002-seed4.jsonl",), out=tmp_path / "run",
        epochs=4, seed=4, **SMALL,
    )  # fmt: skip
    train(alone)
    ours = config.out / "runs" / name / "epoch-04" / "adapter_model.safetensors"
    assert ours.read_bytes() == (tmp_path / "run/epoch-04/adapter_model.safetensors").read_bytes()
    alone_scored = score(
        ScoreConfig(
            model=str(MODEL), adapter=(alone.out / "epoch-04",), pairs=(files[1],),
            out=tmp_path / "scores", device="cpu",
        )
    )  # fmt: skip
    for row in (r for r in result.runs if r.run == name):
        truth = alone_scored.summary.statistics.groups[row.group]["epoch-04"]
        assert row.mean_ddi_nats == truth.delta_i_nats.change
        assert row.wilcoxon_p == truth.wilcoxon.p
        assert row.n_items == 4


def test_curve_is_the_mean_over_seeds_with_its_t_interval(done):
    for point in done[1].curve:
        keys = ("arm", "size", "group")
        same = [r for r in done[1].runs if all(getattr(r, k) == getattr(point, k) for k in keys)]
        ddi = [run.mean_ddi_nats for run in same]
        interval = stats.ttest_1samp(ddi, 0).confidence_interval()
        assert point.n_seeds == len(ddi) == 2
        assert point.mean_ddi_nats == pytest.approx(np.mean(ddi))
        assert point.ci95_low_nats == pytest.approx(interval.low)
        assert point.ci95_high_nats == pytest.approx(interval.high)


def test_json_and_csv_say_the_same(done):
    config, result, _ = done
    held = json.loads((config.out / "scale.json").read_text())
    assert held["settings"]["sizes"] == [2, 4]
    for name in ("curve", "runs"):
        assert held[name] == result.to_json()[name]
        with (config.out / f"{name}.csv").open(newline="") as file:
            rows = list(csv.DictReader(file))
        assert [float(row["mean_ddi_nats"]) for row in rows] == [
            row.mean_ddi_nats for row in getattr(result, name)
        ]
    text = scale_text(result)
    assert "literary: 4 items\narm    samples" in text
    assert text.count("step ") == 4


def test_base_is_loaded_once(files, tmp_path, monkeypatch):
    loads = []

    def counted(*args: Any, **options: Any) -> Any:
        loads.append(args)
        return real(*args, **options)

    real = load.load_model
    monkeypatch.setattr(load, "load_model", counted)
    scale(config_of(files, tmp_path / "out", seeds=1))
    assert len(loads) == 1


@pytest.mark.parametrize("run", [1, 3], ids=["in-the-first-run", "in-a-later-run"])
def test_killed_study_goes_on_where_it_was(done, files, tmp_path, run):
    seen: list[ScaleEvent] = []

    def crash(event: ScaleEvent) -> None:
        seen.append(event)
        if len(runs_of(seen)) == run and isinstance(event, Step) and event.step == 2:
            raise KeyboardInterrupt

    config = config_of(files, tmp_path / "out")
    with pytest.raises(KeyboardInterrupt):
        scale(config, on_train=crash)
    before = adapters_of(config.out)
    times = {name: (config.out / name).stat().st_mtime_ns for name in before}
    events: list[ScaleEvent] = []
    assert scale(config, on_train=events.append) == done[1]
    assert runs_of(events) == [(name, k < run - 1) for k, name in enumerate(RUNS)]
    assert adapters_of(config.out) == adapters_of(done[0].out)
    assert times == {name: (config.out / name).stat().st_mtime_ns for name in before}


SMALLER = {"seeds": 1, "arms": ("epoch",)}
TWO = [RUNS[0], RUNS[2]]


@pytest.fixture(scope="module")
def small(files, tmp_path_factory) -> tuple[ScaleConfig, ScaleResult]:
    """A finished study of two runs."""
    config = config_of(files, tmp_path_factory.mktemp("small") / "out", **SMALLER)
    return config, scale(config)


def results_of(out: Path) -> dict[str, bytes]:
    """What a study comes to, wherever it was made."""
    names = ("curve.csv", "runs.csv", "scores/scores.jsonl", "scores/summary.json")
    return {**adapters_of(out), **{name: (out / name).read_bytes() for name in names}}


def begun(config: ScaleConfig) -> None:
    """Make the folder as another process has begun it."""
    with filled(config.out, "scale"):
        (config.out / "runs").mkdir()


def test_run_that_another_process_does_is_waited_for_and_the_others_are_done(
    small, files, tmp_path
):
    config = config_of(files, tmp_path / "out", **SMALLER)
    first, *_ = cells_of(config, "epoch")
    events: list[ScaleEvent] = []
    waits = threading.Event()

    def see(event: ScaleEvent) -> None:
        events.append(event)
        if isinstance(event, ScaleWait):
            waits.set()

    begun(config)
    found: list[ScaleResult] = []
    worker = threading.Thread(target=lambda: found.append(scale(config, on_train=see)))
    with claimed(claim_of(config, first)) as ours:
        assert ours
        worker.start()
        while worker.is_alive() and not waits.wait(0.1):
            pass
        assert runs_of(events) == [(name, False) for name in TWO[1:]]
        assert not (config.out / "runs" / TWO[0]).exists()
    worker.join()
    assert runs_of(events)[-1] == (TWO[0], False)
    assert [e.names for e in events if isinstance(e, ScaleWait)] == [(TWO[0],)]
    assert found == [small[1]]
    assert results_of(config.out) == results_of(small[0].out)


def test_claim_of_a_process_that_was_killed_is_taken_up(small, files, tmp_path):
    config = config_of(files, tmp_path / "out", **SMALLER)
    first, *_ = cells_of(config, "epoch")
    begun(config)
    code = (
        "import sys, time; from pathlib import Path; from cqa.files import claimed\n"
        "with claimed(Path(sys.argv[1])) as ours: print(ours, flush=True); time.sleep(600)"
    )
    holder = subprocess.Popen(
        [sys.executable, "-c", code, str(claim_of(config, first))], cwd=ROOT,
        stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert holder.stdout is not None
    with holder.stdout as said:
        assert said.readline() == "True\n"

    def kill(event: ScaleEvent) -> None:
        if isinstance(event, ScaleWait):
            holder.kill()
            holder.wait()

    assert scale(config, on_train=kill) == small[1]
    assert holder.returncode == -signal.SIGKILL
    assert results_of(config.out) == results_of(small[0].out)


def test_two_processes_share_a_study_and_one_killed_is_replaced(small, files, tmp_path):
    config = config_of(files, tmp_path / "out", **SMALLER)
    settings = [
        "--model", MODEL, "--data", files[0], "--pairs", files[1], "--out", config.out,
        "--sizes", "2,4", "--seeds", 1, "--arms", "epoch", "--epochs", 2, "--seed", 3, "--rank", 2,
        "--targets", "q,v", "--lr", 5e-3, "--validation", 0, "--device", "cpu",
    ]  # fmt: skip
    code = (  # kills itself in its first run, whose claim and state it leaves
        "import os, signal, sys; from cqa_fast.main import main\n"
        "from cqa.train import background\n"
        "real = background.save_state\n"
        "def killed(*a): real(*a); os.kill(os.getpid(), signal.SIGKILL)\n"
        "background.save_state = killed; main(sys.argv[1:])"
    )
    environment = {**os.environ, "PYTHONPATH": f"{ROOT / 'cli'}{os.pathsep}{ROOT}"}
    other = subprocess.Popen(
        [sys.executable, "-c", code, "scale", *map(str, settings)], env=environment,
        stderr=subprocess.DEVNULL,
    )  # fmt: skip
    while other.poll() is None and not list(config.out.glob("runs/.*.claim")):
        time.sleep(0.05)
    events: list[ScaleEvent] = []
    assert scale(config, on_train=events.append) == small[1]
    assert other.wait() == -signal.SIGKILL
    assert results_of(config.out) == results_of(small[0].out)
    assert sorted(name for name, _ in runs_of(events)) == sorted(TWO)


def test_signal_while_waiting_stops_it_and_says_what_continues(files, tmp_path):
    config = config_of(files, tmp_path / "out", seeds=1, sizes=(2,), arms=("epoch",))
    (cell,) = cells_of(config, "epoch")
    begun(config)

    def stop(event: ScaleEvent) -> None:
        assert isinstance(event, ScaleWait)
        timer.start()

    timer = threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGTERM))
    message = "^stopped while waiting for runs of other processes\nhint: continue with: cqa-fast sc"
    with claimed(claim_of(config, cell)), pytest.raises(Interrupted, match=message) as caught:
        scale(config, on_train=stop)
    assert caught.value.exit_code == 143


def test_study_killed_while_scoring_trains_nothing_again(done, files, tmp_path):
    config = config_of(files, tmp_path / "out", seeds=1)

    def crash(event: ScoreEvent) -> None:
        if isinstance(event, ModelScored) and event.adapter:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        scale(config, on_score=crash)
    events: list[ScaleEvent] = []
    rows: list[ScoreEvent] = []
    scale(config, on_train=events.append, on_score=rows.append)
    assert all(is_done for _, is_done in runs_of(events))
    assert sum(e.n for e in rows if isinstance(e, RowsWritten)) == 2 * 8  # two of four models


def test_more_seeds_later_add_their_runs_only(files, tmp_path):
    scale(config_of(files, tmp_path / "out", seeds=1, arms=("epoch",)))
    events: list[ScaleEvent] = []
    result = scale(config_of(files, tmp_path / "out", arms=("epoch",)), on_train=events.append)
    assert [name for name, is_done in runs_of(events) if not is_done] == [RUNS[1], RUNS[3]]
    assert {point.n_seeds for point in result.curve} == {2}


def test_one_seed_has_no_interval(files, tmp_path):
    result = scale(config_of(files, tmp_path / "out", seeds=1, sizes=(2,), arms=("epoch",)))
    assert all(point.ci95_low_nats is None for point in result.curve)
    assert "n/a" in scale_text(result)
    assert ",,," not in (tmp_path / "out" / "runs.csv").read_text()


def test_signal_stops_it_and_says_what_continues(files, tmp_path):
    def stop(event: ScaleEvent) -> None:
        if isinstance(event, Step):
            os.kill(os.getpid(), signal.SIGTERM)

    message = f"^stopped in run {RUNS[0]}\nhint: continue with: cqa-fast scale --model "
    with pytest.raises(Interrupted, match=message) as caught:
        scale(config_of(files, tmp_path / "out"), on_train=stop)
    assert caught.value.exit_code == 143


def test_other_settings_for_runs_that_are_there_are_refused(done, files):
    with pytest.raises(ConfigError, match="run to resume with --lr "):
        scale(config_of(files, done[0].out, lr=0.1))


def test_other_samples_for_runs_that_are_there_are_refused(files, tmp_path):
    data = write_samples(tmp_path / "train.jsonl", 3)
    config = config_of((data, files[1]), tmp_path / "out", sizes=(2,), seeds=1, arms=("epoch",))
    scale(config)
    data.write_bytes(b"".join(data.read_bytes().splitlines(keepends=True)[::-1]))
    with pytest.raises(DataError, match="data of the study to go on with, got other samples"):
        scale(config)


def test_held_out_samples_are_the_same_for_all_and_in_no_subset(files, tmp_path):
    config = config_of(files, tmp_path / "out", validation="0.3", seeds=1, arms=("epoch",))
    scale(config)
    held = {r["id"] for r in read_lines(config.out / "data" / "validation.jsonl")}
    assert len(held) == 2
    for size in (2, 4):
        subset = read_lines(config.out / "data" / f"n00{size}-seed3.jsonl")
        assert held.isdisjoint(r["id"] for r in subset)
        log = read_lines(config.out / "runs" / f"n00{size}-seed3-epochs2" / "log.jsonl")
        assert sum(event["event"] == "eval" for event in log) == 3


@pytest.mark.parametrize("held", ["0.3", "{file}"])
def test_named_columns_are_those_of_the_given_files(files, tmp_path, held):
    """Subsets, and samples held out of them, are written with the keys that are read."""
    named = [{"id": r["id"], "q": r["prompt"], "a": r["response"]} for r in read_lines(files[0])]
    data = write_lines(tmp_path / "named.jsonl", named)
    given = write_lines(tmp_path / "held.jsonl", [{"id": "h", "q": "She waited.", "a": " He ran."}])
    config = config_of(
        (data, files[1]), tmp_path / "out", validation=held.format(file=given), seeds=1,
        arms=("epoch",), columns=("prompt=q", "response=a"),
    )  # fmt: skip
    result = scale(config)
    assert {run.size for run in result.runs} == {2, 4}
    assert scale(config).curve == result.curve  # gone on with


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sizes": (2, 7)}, "expected sizes up to 6"),
        (
            {"sizes": (2, 4), "validation": "0.5"},
            "expected sizes up to 3",
        ),
    ],
)
def test_more_samples_than_there_are_is_refused(files, tmp_path, changes, message):
    with pytest.raises(ConfigError, match=message):
        scale(config_of(files, tmp_path / "out", **changes))
    assert not (tmp_path / "out").exists()


def test_samples_that_are_too_long_and_dropped_are_in_no_subset(files, tmp_path):
    lengths = {s.id: len(s.ids) for s in make_plan(config_of(files, tmp_path)).train}
    longest = max(lengths, key=lambda name: lengths[name])
    limits = {"max_tokens": lengths[longest] - 1, "too_long": "drop"}
    config = config_of(files, tmp_path / "out", sizes=(2, 5), seeds=1, arms=("epoch",), **limits)
    result = scale(config)
    subset = read_lines(config.out / "data" / "n005-seed3.jsonl")
    assert {r["id"] for r in subset} == lengths.keys() - {longest}
    assert result.too_long.samples == (longest,)
    line = f"left out, over --max-tokens: 1 sample ({longest}; scale.json names all)"
    assert scale_text(result).splitlines()[-1] == line


def test_samples_that_are_cut_are_named_as_cut(files, tmp_path):
    lengths = {s.id: len(s.ids) for s in make_plan(config_of(files, tmp_path)).train}
    longest = max(lengths, key=lambda name: lengths[name])
    limits = {"max_tokens": lengths[longest] - 1, "too_long": "truncate"}
    result = scale(
        config_of(files, tmp_path / "out", sizes=(6,), seeds=1, arms=("epoch",), **limits)
    )
    line = f"prompt cut at its start, over --max-tokens: 1 sample ({longest}; scale.json names all)"
    assert scale_text(result).splitlines()[-1] == line
    run = json.loads((tmp_path / "out/runs/n006-seed3-epochs2/run.json").read_text())
    assert run["too_long_ids"] == list(result.too_long.samples)


@pytest.fixture
def with_long(files, tmp_path) -> tuple[Path, Path]:
    """The files, with a pair that the model has no room for."""
    pair = {"id": "long", "context": "word " * 1100, "good": " x", "bad": " y", "group": "literary"}
    return files[0], write_lines(tmp_path / "long.jsonl", [*read_lines(files[1]), pair])


@pytest.mark.parametrize("policy", ["refuse", "truncate"])
def test_pairs_that_are_too_long_are_refused_before_any_training(with_long, tmp_path, policy):
    with pytest.raises(DataError, match=f"^{with_long[1]}:9: expected at most 1024 tokens"):
        scale(config_of(with_long, tmp_path / "out", too_long=policy))
    assert not (tmp_path / "out").exists()


def test_pairs_that_are_too_long_and_dropped_are_named_and_not_counted(done, with_long, tmp_path):
    limits = {"sizes": (2,), "arms": ("epoch",), "too_long": "drop"}
    config = config_of(with_long, tmp_path / "out", **limits)
    result = scale(config)
    curve = [p for p in done[1].curve if (p.arm, p.size) == ("epoch", 2)]
    assert list(result.curve) == curve
    assert result.too_long.items == {"long": "literary"}
    assert (
        json.loads((config.out / "scale.json").read_text())["too_long"] == result.too_long.to_json()
    )
    text = scale_text(result)
    assert text.startswith("literary: 4 items\n")
    line = "left out, over the model's 1024 positions: 1 literary (long; scale.json names all)"
    assert text.splitlines()[-1] == line
    assert "left out" not in scale_text(done[1])


@pytest.mark.parametrize(
    "changes",
    [
        {"sizes": ()}, {"sizes": (0, 3)}, {"sizes": (4, 2)}, {"sizes": (2, 2)}, {"seeds": 0},
        {"arms": ("epochs",)}, {"scored_epoch": 3}, {"scored_epoch": 0}, {"pairs": ()},
    ],
    ids=str,
)  # fmt: skip
def test_settings_out_of_range_are_refused(files, tmp_path, changes):
    with pytest.raises(ConfigError):
        config_of(files, tmp_path, **changes)


def test_bad_pairs_are_refused_before_any_training(files, tmp_path):
    bad = tmp_path / "bad.jsonl"
    bad.write_text('{"id": "a", "context": "x"}\n')
    with pytest.raises(DataError, match=f"^{bad}:1: "):
        scale(config_of((files[0], bad), tmp_path / "out"))
    assert not (tmp_path / "out").exists()
