"""Scoring on a local Ray of two actors: the bytes of one process, also where one is killed."""

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from helpers import tiny_run, write_lines
from score.test_shards import LONG, PAIRS, POINTS, TEXTS, config_of, contents, points_of
from study.common import MODEL, SMALL, write_pairs, write_samples

from cqa.errors import ConfigError, CqaError, ResourceError
from cqa.files import locked
from cqa.schema.events import Note, RowsWritten, ScaleEvent, ScaleRun, ScoreEvent, ScoreStart
from cqa.score.config import ScoreConfig
from cqa.score.on_ray import prescreen_anywhere, score_on_ray
from cqa.score.prescreen import prescreen
from cqa.score.run import score
from cqa.study.config import ScaleConfig
from cqa.study.scale import scale

pytestmark = pytest.mark.filterwarnings("ignore")  # of Ray and what it imports


@pytest.fixture(scope="module")
def inputs(tmp_path_factory) -> Path:
    """A folder with a model, a training run of two epochs, and items."""
    folder = tiny_run(tmp_path_factory.mktemp("inputs"))
    write_lines(folder / "pairs.jsonl", [*PAIRS[:6], LONG, {"id": "bad"}, *PAIRS[6:]])
    write_lines(folder / "texts.jsonl", TEXTS)
    return folder


@pytest.fixture
def ray(monkeypatch) -> Any:
    """Ray, whose workers find what this process finds."""
    found = pytest.importorskip("ray", reason="needs Ray: pip install 'cqa-fast[ray]'")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(path for path in sys.path if path))
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    return found


def untimed(folder: Path) -> dict[str, object]:
    """Everything in a folder but for times, and the threads of the process."""
    found = contents(folder)
    found["meta.json"] = [
        line for line in str(found["meta.json"]).split(", ") if "n_threads" not in line
    ]
    return found


@pytest.fixture
def whole(inputs, tmp_path, monkeypatch) -> dict[str, object]:
    """What one process leaves in `out`."""
    (tmp_path / "one").mkdir()
    monkeypatch.chdir(tmp_path / "one")
    score(config_of(inputs, Path("out"), on_error="skip"))
    monkeypatch.chdir(tmp_path)
    return untimed(Path("out") if Path("out").exists() else tmp_path / "one" / "out")


@contextmanager
def one_worker_killed(folder: Path, pattern: str) -> Iterator[None]:
    """Kill the first other process that is seen to hold one of some folders."""
    killed: list[int] = []
    stop = threading.Event()

    def kill() -> None:
        while not killed and not stop.wait(0.002):
            for holder in folder.glob(f"{pattern}/.lock-holder"):
                words = holder.read_text().split() if holder.exists() else []
                if len(words) > 1 and words[1].isdecimal() and int(words[1]) != os.getpid():
                    os.kill(int(words[1]), signal.SIGKILL)
                    killed.append(int(words[1]))
                    return

    watcher = threading.Thread(target=kill)
    watcher.start()
    try:
        yield
    finally:
        stop.set()
        watcher.join()
    assert killed


@pytest.mark.slow
def test_folder_is_byte_equal_though_an_actor_is_killed(ray, inputs, whole, tmp_path):
    events: list[ScoreEvent] = []
    mine = tmp_path / "out.shards" / "notes.txt"
    mine.parent.mkdir()
    mine.write_text("no shard")
    with one_worker_killed(tmp_path, "out.shards/*"):
        config = config_of(inputs, Path("out"), on_error="skip", ray="local")
        result = score_on_ray(config, on_event=events.append)
    assert untimed(Path("out")) == whole
    assert result.n_items == 14
    assert list(Path("out.shards").iterdir()) == [mine.relative_to(tmp_path)]
    assert mine.read_text() == "no shard"
    notes = [e.text for e in events if isinstance(e, Note)]
    assert [text.partition(":")[0] for text in notes] == [
        "rejected",
        "left out, over the model's 256 positions",
    ]
    assert [e.n_items for e in events if isinstance(e, ScoreStart)] == [14]
    assert sum(isinstance(e, RowsWritten) for e in events) == 8
    with pytest.raises(ConfigError, match="expected a new folder with --ray"):
        score_on_ray(config)


@pytest.mark.slow
def test_points_are_ranked_as_by_one_process_though_an_actor_is_killed(
    ray, inputs, tmp_path, monkeypatch
):
    write_lines(inputs / "points.jsonl", [*POINTS, LONG, *PAIRS])
    (tmp_path / "one").mkdir()
    monkeypatch.chdir(tmp_path / "one")
    summary = prescreen(points_of(inputs, Path("out")))
    expected = untimed(Path("out"))
    monkeypatch.chdir(tmp_path)
    with one_worker_killed(tmp_path, "out.shards/*"):
        found = prescreen_anywhere(points_of(inputs, Path("out"), ray="local"))
    assert found == summary
    assert untimed(Path("out")) == expected
    assert not Path("out.shards").exists()


@pytest.mark.slow
def test_study_of_runs_is_that_of_one_process_though_an_actor_is_killed(ray, tmp_path, monkeypatch):
    data = write_samples(tmp_path / "train.jsonl", 6)
    pairs = write_pairs(tmp_path / "pairs.jsonl", 4, "literary", "factual")
    settings = {**SMALL, "data": (data,), "pairs": (pairs,), "sizes": (2, 4), "seeds": 2}
    config = ScaleConfig(
        model=str(MODEL), **{**settings, "epochs": 2, "seed": 3, "out": Path("scale")}
    )
    (tmp_path / "one").mkdir()
    monkeypatch.chdir(tmp_path / "one")
    result = scale(config)
    expected = of_study(Path("scale"))
    monkeypatch.chdir(tmp_path)
    events: list[ScaleEvent] = []
    with one_worker_killed(tmp_path, "scale/runs/*"):
        found = scale(replace(config, ray="local"), on_train=events.append)
    assert found == result
    assert of_study(Path("scale")) == expected
    begun = [event.name for event in events if isinstance(event, ScaleRun)]
    assert len(begun) > len(set(begun)) == 6
    again = scale(replace(config, ray="local"))
    assert again == result


def of_study(folder: Path) -> dict[str, bytes]:
    """The results of a study, and the adapters of its runs."""
    paths = [folder / name for name in ("scale.json", "curve.csv", "runs.csv")]
    paths += [folder / "scores" / name for name in ("scores.jsonl", "summary.json")]
    paths += sorted(folder.glob("runs/*/epoch-*/adapter_model.safetensors"))
    return {str(path): path.read_bytes() for path in paths}


def test_bad_item_is_refused_before_ray_is_started(inputs, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(CqaError, match=r"pairs.jsonl:8: expected text in `good`"):
        score_on_ray(config_of(inputs, Path("out"), ray="local"))
    assert not Path("out").exists()
    assert not Path("out.shards").exists()


def test_two_of_one_job_are_not_done_at_once(inputs, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "ray", None)
    config = config_of(inputs, Path("out"), on_error="skip", ray="local")
    message = f"^out.shards: expected a folder that no other run uses, got .* {os.getpid()} "
    with locked(Path("out.shards")), pytest.raises(ResourceError, match=message):
        score_on_ray(config)
    assert not Path("out").exists()


def test_without_ray_it_is_named(inputs, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ConfigError, match=r"expected Ray for --ray, got none\nhint: pip install"):
        score_on_ray(config_of(inputs, Path("out"), on_error="skip", ray="local"))
    assert not Path("out").exists()


@pytest.mark.parametrize(
    "changes", [{"ray_actors": 0}, {"ray": ""}, {"shard": "1/2", "ray": "auto"}]
)
def test_settings_that_do_not_go_together_are_refused(inputs, tmp_path, changes):
    with pytest.raises(ConfigError):
        config_of(inputs, tmp_path, **changes)
    with pytest.raises(ConfigError):
        points_of(inputs, tmp_path, **changes)
    assert ScoreConfig.ray_actors == 2
