"""Scoring with a base that is spread over ranks: the bytes of one process, whoever is killed."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from helpers import tiny_run, write_lines
from hypothesis import given
from hypothesis import strategies as st
from score.test_shards import LONG, PAIRS, TEXTS, config_of, contents
from train.test_ranks import ENVIRONMENT, children, run

from cqa.config import command_line, given_settings
from cqa.errors import ConfigError
from cqa.schema.events import RowsWritten, ScoreEvent
from cqa.score.anywhere import score_anywhere
from cqa.score.config import ScoreConfig
from cqa.score.prefix_batch import PrefixBatch
from cqa.score.run import score
from cqa.score.spread_engine import deal


@pytest.fixture(scope="module")
def inputs(tmp_path_factory) -> Path:
    """A folder with a model, a training run of two epochs, and items."""
    folder = tiny_run(tmp_path_factory.mktemp("inputs"))
    write_lines(folder / "pairs.jsonl", [*PAIRS[:6], LONG, {"id": "bad"}, *PAIRS[6:]])
    write_lines(folder / "texts.jsonl", TEXTS)
    return folder


def settings_of(inputs: Path, out: Path, **more: object) -> ScoreConfig:
    return config_of(inputs, out, on_error="skip", **more)


def torchrun(n: int, config: ScoreConfig) -> list[str]:
    import shlex

    words = shlex.split(command_line(ScoreConfig, "score", given_settings(config)))[1:]
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    return [*launcher, f"--nproc-per-node={n}", "-m", "--", "cqa_fast", *words]


def without_settings(folder: Path) -> dict[str, object]:
    """Everything in a folder but times, threads, tokens fed, and what the settings say."""
    found = contents(folder)
    meta = json.loads(str(found["meta.json"]))
    for name in ("settings", "n_threads"):
        meta.pop(name)
    for model in meta["models"]:
        model.pop("n_tokens", None)
    return {**found, "meta.json": meta}


@pytest.fixture(scope="module")
def whole(inputs, tmp_path_factory) -> dict[str, object]:
    out = tmp_path_factory.mktemp("whole") / "out"
    score(settings_of(inputs, out))
    return without_settings(out)


def test_ranks_leave_the_bytes_of_one_process_and_print_once(inputs, whole, tmp_path):
    out = tmp_path / "out"
    done = run(torchrun(3, settings_of(inputs, out, shard_base=True)))
    assert done.returncode == 0, done.stderr
    assert without_settings(out) == whole
    assert done.stdout.count("dI = I(good) - I(bad)") == 1
    assert json.loads((out / "meta.json").read_text())["settings"]["shard-base"] is True
    again = score(settings_of(inputs, out), on_event=refuse_rows)  # a whole base adds nothing
    assert again.n_items == 14


def refuse_rows(event: ScoreEvent) -> None:
    assert not isinstance(event, RowsWritten)


def test_killed_rank_ends_all_and_one_process_goes_on(inputs, whole, tmp_path):
    """Rank 1 is killed at its third pass, by itself."""
    out, script = tmp_path / "out", tmp_path / "dies.py"
    script.write_text(
        "import os, signal\n"
        "from cqa.score import spread_engine\n"
        "run, passes = spread_engine.SpreadEngine._run, []\n"
        "def dies(self, prefixes):\n"
        "    passes.append(1)\n"
        "    if os.environ['RANK'] == '1' and len(passes) == 12:\n"
        "        os.kill(os.getpid(), signal.SIGKILL)\n"
        "    return run(self, prefixes)\n"
        "spread_engine.SpreadEngine._run = dies\n"
        "from cqa_fast.main import main\n"
        "main()\n"
    )
    command = torchrun(2, settings_of(inputs, out, shard_base=True))
    at = command.index("--") - 1
    done = run([*command[:at], "--", str(script), *command[at + 3 :]])
    assert done.returncode != 0
    assert done.stderr.count("error: ") == 1, done.stderr
    assert f"error: {out}: expected all 2 ranks to go on, got one that ended or" in done.stderr
    assert "with: torchrun --nproc-per-node 2 -m -- cqa_fast score " in done.stderr
    n_rows = (out / "scores.jsonl").read_bytes().count(b"\n")
    assert 0 < n_rows < whole["scores.jsonl"].count(b"\n")
    score(settings_of(inputs, out))
    assert without_settings(out) == whole


@pytest.mark.slow
def test_signal_stops_all_between_two_passes(inputs, whole, tmp_path):
    out = tmp_path / "out"
    more = write_lines(
        tmp_path / "more.jsonl", [{**p, "id": f"{k}-{p['id']}"} for k in range(40) for p in PAIRS]
    )
    config = settings_of(inputs, out, shard_base=True, pairs=(more,))
    process = subprocess.Popen(
        torchrun(2, config), env=ENVIRONMENT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
        text=True,
    )  # fmt: skip
    rows = out / "scores.jsonl"
    while process.poll() is None and not (rows.exists() and rows.stat().st_size):
        time.sleep(0.02)
    for pid in children(process.pid).values():
        os.kill(pid, signal.SIGINT)
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=120)
    assert process.returncode != 0
    assert stderr.count("error: ") == 1, stderr
    assert "error: stopped between two passes" in stderr


def test_bad_items_are_told_once_and_nothing_is_written(inputs, tmp_path):
    done = run(torchrun(2, config_of(inputs, tmp_path / "out", shard_base=True)))
    assert done.returncode != 0
    assert done.stderr.count("error: ") == 1, done.stderr
    assert "pairs.jsonl:8: expected text in `good`" in done.stderr
    assert not (tmp_path / "out").exists()


def test_several_processes_without_the_setting_are_refused_once(inputs, tmp_path):
    done = run(torchrun(2, settings_of(inputs, tmp_path / "out")))
    assert done.returncode != 0
    assert done.stderr.count("error: ") == 1, done.stderr
    assert "expected --shard-base where torchrun starts several processes, got 2" in done.stderr
    assert not (tmp_path / "out").exists()


def test_what_does_not_go_together_is_refused(inputs, tmp_path):
    with pytest.raises(ConfigError, match="expected several processes with --shard-base, got one"):
        score_anywhere(settings_of(inputs, tmp_path / "out", shard_base=True))
    with pytest.raises(ConfigError, match="expected --shard-base without --ray"):
        settings_of(inputs, tmp_path / "out", shard_base=True, ray="local")
    with pytest.raises(ConfigError, match="expected --shard-base with --engine cqa"):
        settings_of(inputs, tmp_path / "out", shard_base=True, engine="transformers")
    with pytest.raises(ConfigError, match="expected --shard-base without --server"):
        ScoreConfig(
            model="m", pairs=(inputs / "pairs.jsonl",), out=tmp_path / "out", shard_base=True,
            server="http://localhost:1", served_model="m",
        )  # fmt: skip
    assert not (tmp_path / "out").exists()


ids = st.lists(st.integers(0, 9), min_size=1, max_size=4).map(tuple)


@given(st.lists(st.tuples(ids, ids), min_size=1, max_size=12), st.integers(1, 4))
def test_sequences_are_dealt_once_each_in_their_order(pairs, count):
    prefixes = PrefixBatch()
    prefixes.add(pairs)
    dealt = deal(prefixes, count)
    assert len(dealt) == count
    assert dealt[0].sequences
    found = [(c, o) for part in dealt for c, options in part.sequences.items() for o in options]
    assert found == [(c, o) for c, options in prefixes.sequences.items() for o in options]
