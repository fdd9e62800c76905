"""What a user can mend is one message and its exit code."""

import os

import pytest
from cli.common import MODEL, assert_one_error, execute, invoke
from helpers import read_lines, write_lines

from cqa.files import locked


@pytest.mark.parametrize(
    ("typed", "meant"), [("scor", "score"), ("trian", "train"), ("demos", "demo")]
)
def test_unknown_command_is_refused_and_the_nearest_named(typed, meant):
    result = invoke(typed, "--model", "x")
    assert_one_error(result, 2, f"got: {typed}\n", f"hint: did you mean `{meant}`?")


@pytest.mark.parametrize("args", [["zzzzzz"], ["train", "--zzz"], ["demo", "--epochs", "0"]])
def test_what_click_refuses_is_a_usage_error_too(args):
    result = invoke(*args)
    assert (result.exit_code, result.stdout) == (2, "")
    assert args[-1] in result.stderr
    assert "Traceback" not in result.stderr


NO_UTF8 = os.fsdecode(b"name\xff")


@pytest.mark.parametrize(
    ("args", "name"),
    [
        (["export", "adapter", "--plain-alpha", "--out", NO_UTF8], "--out"),
        (["export", NO_UTF8, "--merge", "--out", "merged"], "ADAPTER"),
        (["merge", "whole", NO_UTF8], "SHARD"),
        (["report", NO_UTF8, "--out", "page"], "SCORES"),
        (["score", "--model", MODEL, "--pairs", NO_UTF8, "--out", "scores"], "pairs"),
    ],
)
def test_paths_that_are_no_unicode_are_refused(args, name):
    result = invoke(*args)
    assert_one_error(result, 2, name, "to be plain text, got: ", r"name\udcff")


TRAIN = ["train", "--model", MODEL, "--data", "{samples}", "--out", "{out}"]
SCORE = ["score", "--model", MODEL, "--pairs", "{pairs}", "--out", "{out}"]
PRESCREEN = ["prescreen", "--model", MODEL, "--pairs", "{pairs}", "--out", "{out}"]
GENERATE = ["generate", "--model", MODEL, "--prompts", "{pairs}", "--max-tokens", "2"]
SCALE = ["scale", *TRAIN[1:], "--pairs", "{pairs}"]


def changed(args: list[str], flag: str, value: str) -> list[str]:
    """Return a command line with another value of one of its flags."""
    k = args.index(flag) + 1
    return [*args[:k], value, *args[k + 1 :]]


REFUSED = {
    "train-no-model": (2, ["train", "--data", "{samples}", "--out", "{out}"], "--model, got none"),
    "train-rate": (2, [*TRAIN, "--lr", "-1"], "expected lr to be positive"),
    "train-targets": (2, [*TRAIN, "--targets", "q,x"], "expected targets among q,k,v,"),
    "train-no-config": (2, [*TRAIN, "--config", "{absent}"], "{absent}: expected a settings file"),
    "train-no-data": (3, changed(TRAIN, "--data", "{absent}"), "{absent}: expected a readable"),
    "train-bad-line": (3, changed(TRAIN, "--data", "{torn}"), "{torn}:2: expected one JSON object"),
    "train-too-long": (3, [*TRAIN, "--max-tokens", "9"], "{samples}:1: expected at most 9 tokens"),
    "train-model": (4, changed(TRAIN, "--model", "{absent}"), "{absent}: expected a model folder"),
    "train-hub": (4, changed(TRAIN, "--model", "no/such-model"), "no/such-model: expected a model"),
    "train-chat": (4, [*TRAIN, "--template", "chat"], "expected a tokenizer with a chat template"),
    "score-nothing": (2, ["score", "--model", MODEL, "--out", "{out}"], "got: neither"),
    "score-epochs": (2, [*SCORE, "--epochs", "1,2"], "expected --run with --epochs"),
    "score-twice": (2, [*SCORE, "--run", "{out}", "--epochs", "1,1"], "expected each epoch once"),
    "score-no-pairs": (3, [*SCORE, "--pairs", "{absent}"], "{absent}: expected a readable"),
    "score-bad-line": (3, [*SCORE, "--pairs", "{torn}"], "{torn}:2: expected one JSON object"),
    "score-kind": (3, [*SCORE, "--continuations", "{pairs}"], "hint: give it to score --pairs"),
    "score-same": (3, [*SCORE, "--pairs", "{pairs}"], "`a` again\nhint: first seen at {pairs}:1"),
    "score-adapter": (4, [*SCORE, "--adapter", "{absent}"], "{absent}: expected an adapter folder"),
    "score-run": (4, [*SCORE, "--run", "{absent}"], "{absent}: expected a training run"),
    "score-null": (4, [*SCORE, "--null-token", "zz zz"], "expected --null-token to be one token"),
    "score-file": (2, changed(SCORE, "--out", "{samples}"), "--out to be a folder, got a file"),
    "dev-no-file": (3, [*TRAIN, "--dev", "{absent}"], "{absent}: expected a readable"),
    "prescreen-high": (2, [*PRESCREEN, "--high", "0.4"], "expected high above 0.5"),
    "prescreen-bad-line": (3, [*PRESCREEN, "--pairs", "{torn}"], "{torn}:2: expected one JSON"),
    "prescreen-model": (4, changed(PRESCREEN, "--model", "{absent}"), "expected a model folder"),
    "generate-nothing": (2, GENERATE[:3], "expected --prompt or --prompts, got: neither"),
    "generate-both": (2, [*GENERATE, "--prompt", "x"], "--prompt or --prompts, got: both"),
    "generate-empty": (2, [*GENERATE[:3], "--prompt", ""], "--prompt to be a text, got: an empty"),
    "generate-cold": (2, [*GENERATE, "--temperature", "-1"], "expected temperature from 0"),
    "generate-hot": (2, [*GENERATE, "--temperature", "inf"], "from 0, finite, got: inf"),
    "generate-mass": (2, [*GENERATE, "--top-p", "0"], "expected top-p above 0, up to 1, got: 0.0"),
    "generate-bad-line": (3, changed(GENERATE, "--prompts", "{torn}"), "{torn}:2: expected one"),
    "generate-long": (
        3, [*GENERATE[:3], "--prompt", "long " * 3000],
        "--prompt: expected a prompt of fewer tokens than the model's 1024 positions",
    ),
    "generate-no-file": (3, changed(GENERATE, "--prompts", "{absent}"), "{absent}: expected a"),
    "generate-model": (4, changed(GENERATE, "--model", "{absent}"), "expected a model folder"),
    "generate-adapter": (4, [*GENERATE, "--adapter", "{absent}"], "{absent}: expected an adapter"),
    "generate-input": (2, [*GENERATE, "--out", "{pairs}"], "expected --out to be no input"),
    "generate-other": (2, [*GENERATE, "--out", "{samples}"], "expected a new file, or one that"),
    "coverage-no-file": (3, ["coverage", "{absent}"], "{absent}: expected a readable"),
    "coverage-pairs": (3, ["coverage", "{pairs}"], "{pairs}:1: expected a sample to learn"),
    "coverage-tags": (3, ["coverage", "--by", "tags", "{samples}"], "{samples}:1: expected `tags`"),
    "scale-sizes": (2, [*SCALE, "--sizes", "5,2"], "expected sizes from 1, each larger"),
    "scale-too-many": (2, [*SCALE, "--sizes", "7"], "{samples}: expected sizes up to 6"),
    "scale-no-data": (3, changed(SCALE, "--data", "{absent}"), "{absent}: expected a readable"),
    "scale-bad-pairs": (
        3, ["scale", "--sizes", "2", *changed(SCALE, "--pairs", "{torn}")[1:]],
        "{torn}:2: expected one",
    ),
    "score-cutoff": (2, [*SCORE, "--cutoff", "soon"], "expected cutoff to be a date such as 2024-"),
    "score-margin": (2, [*SCORE, "--margin", "0"], "expected margin to be positive and finite"),
    "score-run-is-file": (4, [*SCORE, "--run", "{samples}"], "epoch folders, got a file"),
    "score-adapter-is-file": (
        4, [*SCORE, "--adapter", "{samples}"], "expected an adapter folder, got a file",
    ),
    "report-file": (3, ["report", "{samples}", "--out", "{out}"], "with scores.jsonl, got a file"),
    "report-two": (2, ["report", "a", "b", "--out", "{out}"], "expected no more arguments, got: b"),
    "report-no-out": (2, ["report", "{out}"], "--out, got none"),
    "report-nothing": (3, ["report", "{absent}", "--out", "{out}"], "{absent}: expected a folder"),
    "demo-file": (6, ["demo", "--out", "{samples}/x"], "{samples}/x"),
}  # fmt: skip


def test_folder_of_another_kind_is_told_where_it_belongs(pairs, tmp_path):
    run = tmp_path / "run"
    for name in ("epoch-01", "epoch-02"):
        (run / name).mkdir(parents=True)
        for file in ("adapter_config.json", "adapter_model.safetensors"):
            (run / name / file).write_text("{}")
    (run / "run.json").write_text("{}")
    score = ["score", "--model", MODEL, "--pairs", pairs, "--out", tmp_path / "out"]
    assert_one_error(invoke(*score, "--adapter", run), 4, "hint: name one of them; score --run")
    refused = invoke(*score, "--run", run / "epoch-01")
    assert_one_error(refused, 4, "epoch folders, got an adapter", "hint: --adapter takes it")
    refused = invoke("report", run, "--out", tmp_path / "out")
    assert_one_error(refused, 3, "got a training run", "hint: score it; --run names it")


@pytest.mark.parametrize(("code", "args", "part"), REFUSED.values(), ids=REFUSED)
def test_what_a_user_can_mend_is_one_message_and_its_exit_code(
    samples, pairs, tmp_path, code, args, part
):
    fine = read_lines(samples if args[0] == "train" else pairs)[0]
    torn = write_lines(tmp_path / "torn.jsonl", [{**fine, "id": "fine"}])
    torn.write_bytes(torn.read_bytes() + b'{"id"\n')
    paths = {"samples": samples, "pairs": pairs, "torn": torn, "out": tmp_path / "out"}
    paths["absent"] = tmp_path / "absent"
    before = sorted(tmp_path.rglob("*"))
    result = invoke(*[arg.format(**paths) for arg in args])
    assert_one_error(result, code, part.format(**paths))
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("name", ["train", "score"])
def test_folder_in_use_is_a_matter_of_resources(samples, pairs, tmp_path, name):
    data = ["--data", samples] if name == "train" else ["--pairs", pairs]
    with locked(tmp_path / "out"):
        result = invoke(name, "--model", MODEL, *data, "--out", tmp_path / "out")
    assert_one_error(result, 6, f"held by process {os.getpid()}")
    assert not list((tmp_path / "out").glob("*.json*"))


def test_real_command_prints_one_message_and_no_traceback(samples, tmp_path):
    result = execute("train", "--model", tmp_path / "no", "--data", samples, "--out", "unused")
    assert_one_error(result, 4, f"error: {tmp_path / 'no'}: expected a model folder")
