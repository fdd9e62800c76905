"""What a stopped command says continues it does so, as it stands there."""

import json
import shlex
from pathlib import Path

import pytest
from cli.test_cli import MODEL, assert_one_error, invoke
from helpers import DEMO, read_lines, write_lines
from observers import interrupt
from train.runs import adapter_bytes, steps_of

import cqa
from cqa.config import command_line, describe, given_settings, resolve
from cqa.score.config import ScoreConfig

TRAIN = [
    "--data", "train.jsonl", "--rank", "2", "--targets", "q", "--validation", "0", "--epochs", "2",
]  # fmt: skip
COMMANDS = {
    "train": ["--out", "a run", "--dropout", "0", "--columns", "prompt=question", *TRAIN],
    "score": ["--pairs", "pairs.jsonl", "--out", "it's", "--batch-tokens", "1", "--no-summary"],
    "prescreen": ["--pairs", "pairs.jsonl", "--out", "points", "--batch-tokens", "1"],
    "scale": [*TRAIN, "--out", "scale", "--pairs", "pairs.jsonl", "--sizes", "1,2", "--seeds", "1"],
}


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch) -> Path:
    """A current folder with a few samples and pairs."""
    monkeypatch.chdir(tmp_path)
    samples = [
        {"id": s["id"], "question": s["prompt"][-60:], "response": s["response"][:40]}
        for s in read_lines(DEMO / "train.jsonl")[:4]
    ]
    write_lines(tmp_path / "train.jsonl", [{**s, "prompt": s["question"]} for s in samples])
    pairs = [
        {"id": str(k), "context": f"It rained {k}.", "good": " She ran.", "bad": " She sat down."}
        for k in range(4)
    ]
    write_lines(tmp_path / "pairs.jsonl", pairs)
    return tmp_path


def stopped(monkeypatch, name: str, *args: str) -> str:
    """Run a command that a signal stops at its first progress; return what it says continues it."""
    signals = iter([interrupt])  # one: a second ends the work at once
    with monkeypatch.context() as patched:
        patched.setattr(
            "cqa_fast.progress._Display.advance", lambda *_: next(signals, lambda: None)()
        )
        result = invoke(name, "--model", MODEL, *args)
    assert result.exit_code == 130
    message, hint = result.stderr.splitlines()[-2:]
    assert message.startswith("error: stopped ")
    assert hint.startswith("hint: continue with: cqa-fast ")
    return hint.removeprefix("hint: continue with: ")


@pytest.mark.parametrize("name", COMMANDS)
def test_what_a_stopped_command_prints_continues_it_as_it_stands(monkeypatch, folder, name):
    command = stopped(monkeypatch, name, *COMMANDS[name])
    program, *args = shlex.split(command)
    assert program == "cqa-fast"
    result = invoke(*args)
    assert result.exit_code == 0, result.stderr
    if name == "train":
        assert command == "cqa-fast train --resume --out 'a run'"
        assert result.stderr.splitlines()[1] == "resuming after step 1"
        assert [step["step"] for step in steps_of(folder / "a run")] == [1, 2, 3, 4]
    if name == "score":
        assert len(read_lines(folder / "it's" / "scores.jsonl")) == 4
        assert not (folder / "it's" / "summary.json").exists()


def test_resumed_run_takes_every_setting_from_the_run(monkeypatch, folder):
    arguments = COMMANDS["train"]
    whole = invoke("train", "--model", MODEL, *arguments, "--out", "whole")
    assert whole.exit_code == 2  # --out twice
    stopped(monkeypatch, "train", *arguments)
    settings = json.loads((folder / "a run" / "run.json").read_text())["settings"]
    cqa.train(resume=True, out="a run")
    assert json.loads((folder / "a run" / "run.json").read_text())["settings"] == settings
    whole = invoke("train", "--model", MODEL, *arguments[2:], "--out", "whole")
    assert whole.exit_code == 0, whole.stderr
    assert adapter_bytes(folder / "a run") == adapter_bytes(folder / "whole")


@pytest.mark.parametrize("given", [["--lr", "0.1"], ["--preset", "paper"]], ids=" ".join)
def test_what_may_not_change_is_refused_with_the_reason(monkeypatch, given):
    stopped(monkeypatch, "train", *COMMANDS["train"])
    result = invoke("train", "--resume", "--out", "a run", *given)
    assert_one_error(result, 2, "expected the run to resume with --", "hint: every step follows")


def test_what_decides_no_number_may_change(monkeypatch, folder):
    stopped(monkeypatch, "train", *COMMANDS["train"])
    result = invoke("train", "--resume", "--out", "a run", "--recompute")
    assert result.exit_code == 0, result.stderr


def test_dry_run_of_a_run_to_resume_needs_no_more_either(monkeypatch):
    stopped(monkeypatch, "train", *COMMANDS["train"])
    result = invoke("train", "--resume", "--out", "a run", "--dry-run")
    assert "rank 2," in result.stdout


@pytest.mark.parametrize("args", [[], ["--model", MODEL]], ids=["nothing", "model"])
def test_resuming_no_run_says_so(args):
    result = invoke("train", "--resume", "--out", "nothing", *args)
    missing = "--data" if args else "--model"
    assert_one_error(result, 2, "nothing: expected a run to resume, got no run.json", missing)


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("{", "run.json: "),
        ("{}", "run.json: expected `settings`, got none"),
        ('{"settings": {"epochs": "x"}}', "run.json: expected epochs to be a whole number"),
        ('{"settings": {"colour": 1}}', "run.json: expected a known setting, got: `colour`"),
        ('{"settings": {"out": "x"}}', "run.json: expected a value for --model, got none"),
    ],
)
def test_damaged_run_is_named(folder, text, part):
    (folder / "broken").mkdir()
    (folder / "broken" / "run.json").write_text(text)
    assert_one_error(invoke("train", "--resume", "--out", "broken"), 3, part)


def test_command_line_says_what_was_given_and_no_more():
    config = resolve(
        ScoreConfig,
        {"model": "a b", "out": "o", "pairs": ["x", "y's"], "run": ["r"], "epochs": "1-3,5"},
        {"summary": False, "margin": 0.5, "columns": "context=question,good=right"},
    )
    line = command_line(ScoreConfig, "score", given_settings(config))
    assert line == (
        "cqa-fast score --margin 0.5 --model 'a b' --run r --epochs 1,2,3,5 --pairs x "
        "--pairs 'y'\"'\"'s' --out o --columns context=question,good=right --no-summary"
    )
    assert set(given_settings(config)) < set(describe(config))
