"""Passes that a thread runs, as on a GPU: the same bytes, whatever interrupts or runs out."""

import os
import signal
import threading

import pytest
from faults import scores_contents
from score import test_crash
from score.test_crash import ERRORS, config_of, limit_memory

from cqa.interrupt import Interrupted
from cqa.score import decoder_engine
from cqa.score.decoder_engine import DecoderEngine
from cqa.score.prefix_batch import PrefixBatch
from cqa.score.results import Results
from cqa.score.run import score

inputs = test_crash.inputs
PATIENCE_S = 120


@pytest.fixture(scope="module")
def expected(inputs, tmp_path_factory) -> dict:
    """What a run without a thread leaves: six passes under the base, as many under an adapter."""
    out = tmp_path_factory.mktemp("expected") / "scores"
    score(config_of(inputs, out))
    return scores_contents(out)


@pytest.fixture(autouse=True)
def _ahead(expected, monkeypatch):
    monkeypatch.setattr(DecoderEngine, "computes_elsewhere", True)


def before_each(monkeypatch, owner, name: str, act) -> None:
    real = getattr(owner, name)

    def called(*args, **options):
        act(*args)
        return real(*args, **options)

    monkeypatch.setattr(owner, name, called)


@pytest.mark.parametrize("batch_tokens", [1, 30, 4096])
def test_no_byte_changes(inputs, expected, tmp_path, batch_tokens):
    config = config_of(inputs, tmp_path / "scores", batch_tokens=batch_tokens)
    score(config)
    assert scores_contents(config.out) == expected


def test_the_next_pass_is_packed_while_one_runs_and_rows_are_written_meanwhile(
    inputs, expected, tmp_path, monkeypatch
):
    n_packed, n_written, n_run = [0], [0], [0]
    moved = threading.Condition()

    def count(counter):
        with moved:
            counter[0] += 1
            moved.notify_all()

    def before_a_pass(_decoder, _prefixes):
        count(n_run)
        with moved:
            if n_run[0] == 2:
                assert moved.wait_for(lambda: n_packed[0] > 2 and n_written[0] == 1, PATIENCE_S)

    before_each(monkeypatch, PrefixBatch, "packed", lambda _: count(n_packed))
    before_each(monkeypatch, Results, "append", lambda *_: count(n_written))
    before_each(monkeypatch, decoder_engine, "run_prefix_batch", before_a_pass)
    config = config_of(inputs, tmp_path / "scores", run=(), epochs=(), batch_tokens=1)
    score(config)
    rows = (config.out / "scores.jsonl").read_bytes()
    assert n_run[0] == len(rows.splitlines()) == 5
    assert expected["scores.jsonl"].startswith(rows)


@pytest.mark.parametrize("batch_tokens", [60, 4096])
def test_pass_that_runs_out_of_memory_is_halved_and_no_byte_changes(
    inputs, expected, tmp_path, monkeypatch, batch_tokens
):
    fed = limit_memory(monkeypatch, 20, ERRORS["cpu"])
    config = config_of(inputs, tmp_path / "scores", batch_tokens=batch_tokens)
    score(config)
    assert max(fed) <= 20
    assert (config.out / "scores.jsonl").read_bytes() == expected["scores.jsonl"]


def test_signal_stops_it_between_two_passes_and_it_goes_on(inputs, expected, tmp_path, monkeypatch):
    calls = []

    def signal_at_the_third(*_):
        calls.append(1)
        if len(calls) == 3:
            os.kill(os.getpid(), signal.SIGINT)

    config = config_of(inputs, tmp_path / "scores", run=(inputs / "run",), epochs=(2,))
    with monkeypatch.context() as patch:
        before_each(patch, Results, "append", signal_at_the_third)
        with pytest.raises(Interrupted, match="stopped between two passes"):
            score(config)
    assert len((config.out / "scores.jsonl").read_bytes().splitlines()) >= 3
    score(config)
    assert scores_contents(config.out) == expected


def test_an_error_of_a_pass_is_raised_after_the_rows_before_it(inputs, tmp_path, monkeypatch):
    calls = []

    def third_fails(*_):
        calls.append(1)
        if len(calls) == 3:
            raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    before_each(monkeypatch, decoder_engine, "run_prefix_batch", third_fails)
    config = config_of(inputs, tmp_path / "scores", run=(), epochs=(), batch_tokens=1)
    with pytest.raises(RuntimeError, match="shapes"):
        score(config)
    assert len((config.out / "scores.jsonl").read_bytes().splitlines()) == 2
