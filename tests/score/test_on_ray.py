"""Scoring on a local Ray of two actors: the bytes of one process, also where one is killed."""

import os
import signal
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
from helpers import tiny_run, write_lines
from score.test_shards import LONG, PAIRS, TEXTS, config_of, contents

from cqa.errors import ConfigError, CqaError
from cqa.schema.events import RowsWritten, ScoreEvent, ScoreStart
from cqa.score.config import ScoreConfig
from cqa.score.on_ray import score_on_ray
from cqa.score.run import score

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


@pytest.mark.slow
def test_folder_is_byte_equal_though_an_actor_is_killed(ray, inputs, whole, tmp_path):
    killed: list[int] = []
    stop = threading.Event()

    def kill() -> None:
        """Kill the first process that is seen to write a shard."""
        while not killed and not stop.wait(0.002):
            for holder in tmp_path.glob("out.shards/*/.lock-holder"):
                words = holder.read_text().split() if holder.exists() else []
                if len(words) > 1 and words[1].isdecimal() and int(words[1]) != os.getpid():
                    os.kill(int(words[1]), signal.SIGKILL)
                    killed.append(int(words[1]))
                    return

    events: list[ScoreEvent] = []
    watcher = threading.Thread(target=kill)
    watcher.start()
    try:
        config = config_of(inputs, Path("out"), on_error="skip", ray="local")
        result = score_on_ray(config, on_event=events.append)
    finally:
        stop.set()
        watcher.join()
    assert killed
    assert untimed(Path("out")) == whole
    assert result.n_items == 14
    assert not Path("out.shards").exists()
    assert [e.n_items for e in events if isinstance(e, ScoreStart)] == [14]
    assert sum(isinstance(e, RowsWritten) for e in events) == 8
    with pytest.raises(ConfigError, match="expected a new folder with --ray"):
        score_on_ray(config)


def test_bad_item_is_refused_before_ray_is_started(inputs, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(CqaError, match=r"pairs.jsonl:8: expected text in `good`"):
        score_on_ray(config_of(inputs, Path("out"), ray="local"))
    assert not Path("out").exists()
    assert not Path("out.shards").exists()


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
    assert ScoreConfig.ray_actors == 2
