"""The command: its flags, what it prints where, and how it ends."""

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import click
import pytest
import yaml
from click.testing import CliRunner, Result
from cqa_fast.main import main
from helpers import DEMO, ROOT, read_lines, write_lines

from cqa.files import locked
from cqa.train.config import PRESETS

MODEL = str(DEMO / "model")
ENVIRONMENT = {**os.environ, "PYTHONPATH": f"{ROOT / 'cli'}{os.pathsep}{ROOT}"}
TRAIN_DEFAULTS = {
    "--epochs": "12",
    "--micro-batch": "1",
    "--grad-accum": "2",
    "--lr": "0.0002",
    "--warmup-ratio": "0.1",
    "--max-grad-norm": "1",
    "--weight-decay": "0",
    "--rank": "32",
    "--alpha": "32",
    "--rslora": "on",
    "--dropout": "0.05",
    "--neftune-alpha": "5",
    "--targets": "q,k,v,o,gate,up,down; separated by commas",
    "--validation": "0.1",
    "--seed": "0",
    "--too-long": "refuse",
    "--device": "auto",
    "--dtype": "auto",
    "--recompute": "off",
}
FLAGS = {
    "train": [
        *TRAIN_DEFAULTS, "--model", "--data", "--out", "--preset", "--config", "--resume",
        "--dry-run", "--max-tokens", "--no-rslora", "--no-recompute", "--json", "--dev",
    ],
    "score": [
        "--model", "--adapter", "--run", "--epochs", "--pairs", "--continuations", "--out",
        "--tokens", "--null-token", "--score-eos", "--dtype", "--cutoff", "--margin", "--config",
        "--json", "--shard",
    ],
    "merge": ["--json"],
    "report": ["--run", "--out", "--cutoff", "--margin", "--config", "--json"],
    "demo": ["--json"],
    "prescreen": [
        "--model", "--pairs", "--out", "--budget", "--high", "--per", "--too-long", "--device",
        "--config", "--json", "--shard",
    ],
    "coverage": ["--by", "--gold", "--json"],
    "bench": [
        "--shape", "--model", "--levels", "--window", "--job", "--peers", "--seconds", "--steps",
        "--device", "--dtype", "--out", "--config", "--json",
    ],
    "scale": [
        *TRAIN_DEFAULTS, "--model", "--data", "--out", "--pairs", "--sizes", "--seeds", "--arms",
        "--scored-epoch", "--preset", "--config", "--json",
    ],
}  # fmt: skip


def invoke(*args: object) -> Result:
    """Run the command in this process."""
    result = CliRunner().invoke(main, [str(arg) for arg in args])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exc_info
    return result


def command(*args: object) -> list[str]:
    return [sys.executable, "-m", "cqa_fast", *map(str, args)]


def execute(*args: object) -> subprocess.CompletedProcess[str]:
    """Run the command as a process of its own."""
    return subprocess.run(
        command(*args), env=ENVIRONMENT, capture_output=True, text=True, check=False
    )


def assert_one_error(result: Any, code: int, *parts: str) -> None:
    """Check that a run printed one message and nothing else, and ended with its code."""
    assert result.stdout == ""
    lines = result.stderr.splitlines()
    assert lines[0].startswith("error: ")
    assert all(line.startswith("hint: ") for line in lines[1:])
    assert len(lines) <= 2
    for part in parts:
        assert part in result.stderr
    assert getattr(result, "exit_code", None) == code or getattr(result, "returncode", None) == code


def option_of(name: str, flag: str) -> click.Option:
    for parameter in main.commands[name].params:
        if flag in [*parameter.opts, *parameter.secondary_opts]:
            return parameter
    raise AssertionError(f"{name} has no {flag}")


@pytest.fixture
def samples(tmp_path) -> Path:
    """A training file of six short samples."""
    records = [
        {"id": s["id"], "prompt": s["prompt"][-60:], "response": s["response"][:40]}
        for s in read_lines(DEMO / "train.jsonl")[:6]
    ]
    return write_lines(tmp_path / "train.jsonl", records)


@pytest.fixture
def pairs(tmp_path) -> Path:
    """An item file of one pair and one text with three options."""
    return write_lines(
        tmp_path / "pairs.jsonl",
        [
            {"id": "a", "context": "It rained.", "good": " She ran.", "bad": " She sat down."},
            {"id": "b", "context": "So", "options": [" it is.", " he.", " no"], "answer": 1},
        ],
    )


def plan_of(samples: Path, *args: object, validation: float = 0) -> dict[str, Any]:
    """Return what a dry run prints."""
    out = samples.parent / "run"
    paths = ["--model", MODEL, "--data", samples, "--out", out, "--validation", validation]
    result = invoke("train", *paths, "--dry-run", "--json", *args)
    assert result.exit_code == 0, result.stderr
    return json.loads(result.stdout)


def test_help_takes_less_than_three_tenths_of_a_second():
    def seconds() -> float:  # of the processor, so that a busy machine does not count
        before = os.times()
        assert execute("--help").returncode == 0
        after = os.times()
        return sum(after[2:4]) - sum(before[2:4])

    assert min(seconds() for _ in range(5)) < 0.3


@pytest.mark.parametrize("args", [["--help"], ["train", "--help"], ["--version"]], ids=" ".join)
def test_help_imports_nothing_heavy(args):
    code = (
        "import sys\n"
        "from cqa_fast.main import main\n"
        f"main({args!r}, standalone_mode=False)\n"
        "heavy = {'torch', 'transformers', 'tokenizers', 'scipy', 'numpy', 'yaml', 'rich'}\n"
        "print(sorted(heavy & set(sys.modules)), file=sys.stderr)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], env=ENVIRONMENT, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "[]\n")
    assert done.stdout


@pytest.mark.parametrize("name", FLAGS)
def test_every_flag_of_the_contract_is_there_and_explained(name):
    for flag in FLAGS[name]:
        assert option_of(name, flag).help


@pytest.mark.parametrize(("flag", "value"), TRAIN_DEFAULTS.items(), ids=TRAIN_DEFAULTS)
def test_defaults_of_train_are_the_papers_recipe_and_shown(flag, value):
    assert f"[default: {value}]" in option_of("train", flag).help


def test_too_long_means_the_same_wherever_it_is_said():
    of = {name: option_of(name, "--too-long") for name in ("train", "score", "prescreen", "scale")}
    assert of["prescreen"].help == of["score"].help
    assert of["prescreen"].type.choices == of["score"].type.choices == ("refuse", "drop")
    assert of["scale"].type.choices == of["train"].type.choices == ("refuse", "drop", "truncate")
    samples = of["train"].help.split("  [")[0]
    assert of["scale"].help.startswith(f"{samples} Pairs over the model's positions are left out")
    assert all("[default: refuse]" in option.help for option in of.values())


@pytest.mark.parametrize(
    "args", [[], ["-h"], ["train", "-h"], ["score", "--help"], ["report", "-h"]]
)
def test_help_names_an_example(args):
    assert "cqa-fast " in invoke(*args).output


@pytest.mark.parametrize(
    ("given", "expected"),
    [({}, "6000"), ({"GOMP_SPINCOUNT": "7"}, "7"), ({"OMP_WAIT_POLICY": "active"}, None)],
    ids=["unset", "set", "by-policy"],
)
def test_threads_wait_briefly_unless_the_user_has_said_how(samples, monkeypatch, given, expected):
    monkeypatch.setattr("os.environ", {**given})
    assert invoke("validate", samples).exit_code == 0
    assert os.environ.get("GOMP_SPINCOUNT") == expected


def test_settings_come_from_default_then_preset_then_file_then_flag(samples, monkeypatch):
    monkeypatch.setitem(PRESETS, "paper", {**PRESETS["paper"], "epochs": 2, "rank": 4, "lr": 1e-3})
    file = samples.parent / "settings.yaml"
    file.write_text(yaml.safe_dump({"rank": 16, "grad-accum": 3, "alpha": 8}))

    def steps_and_scaling(*args: object) -> tuple[int, float]:
        plan = plan_of(samples, *args)
        return plan["total_steps"], plan["scaling"]

    preset, config = ["--preset", "paper"], ["--config", file]
    assert steps_and_scaling() == (36, pytest.approx(32 / 32**0.5))
    assert steps_and_scaling(*preset) == (6, 32 / 4**0.5)
    assert steps_and_scaling(*preset, *config) == (4, 8 / 16**0.5)
    assert steps_and_scaling(*preset, *config, "--rank", 64) == (4, 8 / 64**0.5)
    assert steps_and_scaling(*config, "--no-rslora", "--epochs", 1) == (2, 8 / 16)


def test_settings_file_may_name_everything_with_dashes(samples):
    settings = {"model": MODEL, "data": str(samples), "out": "unused", "validation": 0}
    settings |= {"micro-batch": 3, "grad-accum": 1, "epochs": 2, "warmup-ratio": 0.5}
    settings |= {"targets": ["q", "v"], "rslora": False, "rank": 8, "lr": "2e-4"}
    file = samples.parent / "settings.yaml"
    file.write_text(yaml.safe_dump(settings))
    result = invoke("train", "--config", file, "--dry-run", "--json")
    plan = json.loads(result.stdout)
    assert (plan["steps_per_epoch"], plan["total_steps"], plan["warmup_steps"]) == (2, 4, 2)
    assert plan["scaling"] == 4


def test_settings_file_of_score_may_list_several_files(pairs, tmp_path):
    more = write_lines(
        tmp_path / "more.jsonl", [{**read_lines(pairs)[0], "id": "c", "context": "Then"}]
    )
    file = tmp_path / "settings.yaml"
    settings = {"model": MODEL, "out": str(tmp_path / "out"), "pairs": [str(pairs), str(more)]}
    file.write_text(yaml.safe_dump({**settings, "batch-tokens": 50}))
    result = invoke("score", "--config", file, "--json")
    assert json.loads(result.stdout)["base"]["ungrouped"]["n"] == 3


@pytest.mark.parametrize(
    ("settings", "part"),
    [
        ("epoch: 3", "got: `epoch`\nhint: did you mean `epochs`?"),
        ("micro_batches: 3", "hint: did you mean `micro-batch`?"),
        ("zzz: 3", "got: `zzz`\nhint: `--help` lists all settings"),
        ("epochs: many", "expected epochs to be a whole number, got: 'many'"),
        ("epochs: 0", "expected epochs to be at least 1, got: 0"),
        ("device: gpu", "expected device to be auto | cpu | cuda, got: 'gpu'"),
        ("targets: 5", "expected targets"),
        ("- epochs", "settings.yaml: expected a mapping of settings, got: list"),
        ("a: [1\nb", "settings.yaml:2: expected YAML settings"),
    ],
    ids=["near", "plural", "far", "word", "zero", "choice", "scalar-for-list", "list", "torn"],
)
def test_settings_file_that_is_wrong_is_refused(samples, settings, part):
    file = samples.parent / "settings.yaml"
    file.write_text(settings)
    out = samples.parent / "run"
    paths = ["--model", MODEL, "--data", samples, "--out", out]
    assert_one_error(invoke("train", *paths, "--config", file), 2, part)
    assert not out.exists()


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


TRAIN = ["train", "--model", MODEL, "--data", "{samples}", "--out", "{out}"]
SCORE = ["score", "--model", MODEL, "--pairs", "{pairs}", "--out", "{out}"]
PRESCREEN = ["prescreen", "--model", MODEL, "--pairs", "{pairs}", "--out", "{out}"]
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


def test_dry_run_prints_one_object_and_trains_nothing(samples):
    out = samples.parent / "run"
    paths = ["--model", MODEL, "--data", samples, "--out", out]
    result = execute("train", *paths, "--dry-run", "--json")
    assert (result.returncode, result.stderr) == (0, "")
    plan = json.loads(result.stdout)
    assert (plan["n_train"], plan["n_validation"], plan["total_steps"]) == (5, 1, 36)
    assert not out.exists()


def test_dry_run_estimates_the_memory_part_by_part(samples):
    memory = plan_of(samples)["memory_bytes"]
    parts = {"weights", "adapter", "activations", "workspace"}
    assert memory.keys() == parts | {"total"}
    assert all(memory[part] > 0 for part in parts)
    assert memory["total"] == sum(memory[part] for part in parts)
    weights = (DEMO / "model" / "model.safetensors").stat().st_size
    assert memory["weights"] > weights
    assert plan_of(samples, "--rank", 64)["memory_bytes"]["adapter"] == 2 * memory["adapter"]
    recomputed = plan_of(samples, "--recompute")["memory_bytes"]
    assert recomputed["activations"] < memory["activations"]


def test_dry_run_counts_tokens_of_the_samples(samples):
    plan = plan_of(samples)
    (first,) = plan["examples"]
    assert first["id"] == read_lines(samples)[0]["id"]
    assert len(first["ids"]) == len(first["learned"]) <= plan["longest_sample_tokens"]
    assert plan["longest_sample_tokens"] < plan["longest_pass_tokens"] < plan["tokens_per_epoch"]
    assert 6 < plan["labels_per_epoch"] < plan["tokens_per_epoch"]
    assert plan_of(samples, "--loss-on", "whole-text")["examples"][0]["learned"].count(False) == 0


def test_dry_run_shows_the_learned_part_of_the_first_sample_in_brackets(samples):
    paths = ["--model", MODEL, "--data", samples, "--out", "unused", "--validation", 0]
    result = invoke("train", *paths, "--dry-run")
    first = read_lines(samples)[0]
    shown = f"{first['prompt']}⟦{first['response']}<|endoftext|>⟧\n"
    title = f"`{first['id']}`, prompt of user, assistant (6 of 6 samples):"
    assert result.stdout.endswith(f"{title}\n{shown}")
    assert "6 to train on, 0 held out" in result.stdout
    assert result.stdout.count("⟦") == 1


def test_dry_run_takes_its_time_from_a_step(samples):
    plan = plan_of(samples, "--epochs", 3, validation=0.5)
    rate, tokens = plan["rate"], plan["tokens_per_epoch"]
    assert 0 < rate["step_tokens"] < tokens
    expected = 3 * tokens * rate["step_s"] / rate["step_tokens"] + 4 * rate["eval_s"]
    assert rate["total_s"] == pytest.approx(expected, rel=1e-5)
    assert plan_of(samples)["rate"]["eval_s"] is None
    text = invoke("train", "--model", MODEL, "--data", samples, "--out", "o", "--dry-run").stdout
    (line,) = re.findall(r"^time       .*", text, re.MULTILINE)
    assert re.fullmatch(
        r"time       [\d.]+ (s|min), loading left out: here a step of \d+ tokens took [\d.]+ s "
        r"\([\d,]+ tokens/s\), the held-out samples [\d.]+ s",
        line,
    )


def test_dry_run_says_where_memory_holds_no_step(samples, monkeypatch):
    monkeypatch.setattr("cqa.train.memory.free_bytes", lambda _: 1000)
    paths = ["--model", MODEL, "--data", samples, "--out", "o"]
    assert "time       not measured: memory does not" in invoke("train", *paths, "--dry-run").stdout
    assert plan_of(samples)["rate"] is None


def test_dry_run_shows_a_sample_of_every_pattern_of_turns(tmp_path):
    def chat(*roles: str, **more: object) -> dict:
        turns = [{"role": role, "content": f"{role} {k}"} for k, role in enumerate(roles)]
        turns[-1] |= more
        return {"messages": turns}

    one, two = ("user", "assistant"), ("user", "assistant") * 2
    data = write_lines(
        tmp_path / "chats.jsonl",
        [
            chat(*one), chat(*one), chat(*two), chat(*two, *one), chat("system", *one),
            chat(*two, weight=0), chat("user", *one),
        ],
    )  # fmt: skip
    held = write_lines(tmp_path / "held.jsonl", [{"instruction": "Why?", "output": "So."}])
    paths = ["--model", MODEL, "--data", data, "--out", tmp_path / "o", "--validation", held]
    text = invoke("train", *paths, "--dry-run").stdout
    assert re.findall(r"^`.*:$", text, re.MULTILINE) == [
        "`line-1`, messages of user, assistant (2 of 8 samples):",
        "`line-3`, messages of user, assistant, user, assistant (2 of 8 samples):",
        "`line-5`, messages of system, user, assistant (1 of 8 samples):",
        "`line-6`, messages of user, assistant, user, assistant (not learned) (1 of 8 samples):",
        "`line-7`, messages of user, user, assistant (1 of 8 samples):",
        "`line-1`, alpaca of user, assistant (1 of 8 samples):",
    ]
    assert text.count("⟦") == 7  # a run of each learned answer


def test_scores_go_to_standard_output_and_progress_to_standard_error(pairs, tmp_path):
    result = execute("score", "--model", MODEL, "--pairs", pairs, "--out", tmp_path / "o", "--json")
    assert result.returncode == 0
    assert json.loads(result.stdout) == json.loads((tmp_path / "o" / "summary.json").read_text())
    lines = result.stderr.splitlines()
    assert lines[0] == "scoring 2 items under 1 model"
    assert lines[1].startswith("base       2 items, ")
    assert len(lines) == 2


@pytest.mark.parametrize(
    ("args", "part"),
    [
        (["prescreen", "--model", MODEL, "--pairs", "{pairs}", "--out", "{out}"], "internalised"),
        (["coverage", "{samples}"], "samples, by their own tags"),
        (["coverage", "--by", "words", "{samples}"], "precision  recall"),
        (["score", "--no-summary", "--model", MODEL, "--pairs", "{pairs}", "--out", "{out}"], ""),
    ],
    ids=["prescreen", "coverage", "coverage-words", "score-no-summary"],
)
def test_studies_print_text_or_one_json_object(pairs, samples, tmp_path, args, part):
    tagged = [{**record, "tags": ["intent"]} for record in read_lines(samples)]
    write_lines(samples, tagged)
    paths = {"pairs": pairs, "samples": samples, "out": tmp_path / "out"}
    text, data = (invoke(*[a.format(**paths) for a in args], *more) for more in ([], ["--json"]))
    assert (text.exit_code, data.exit_code) == (0, 0)
    assert part in text.stdout
    assert bool(text.stdout) is bool(part)
    assert isinstance(json.loads(data.stdout), dict)


def test_training_prints_its_result_on_standard_output_and_its_losses_beside_it(samples):
    out = samples.parent / "run"
    settings = [
        "--epochs", 1, "--rank", 2, "--targets", "q", "--validation", 0, "--grad-accum", 6,
        "--warmup-ratio", 0,  # of the one step the rate would be zero
    ]  # fmt: skip
    result = invoke(
        "train", "--model", MODEL, "--data", samples, "--out", out, *settings, "--json"
    )  # fmt: skip
    assert json.loads(result.stdout) == {"run": str(out), "total_steps": 1, "epochs": ["epoch-01"]}
    assert result.stderr.startswith("training ")
    assert "LoRA parameters on 6 samples (0 held out), 1 step," in result.stderr
    assert "epoch  1 loss " in result.stderr
    again = invoke("train", "--model", MODEL, "--data", samples, "--out", out, *settings)
    assert_one_error(again, 2, "already holds a run")


def test_signal_ends_the_real_command_with_its_code_and_it_can_be_resumed(tmp_path):
    out = tmp_path / "out"
    args = ["score", "--model", MODEL, "--pairs", DEMO / "literary.jsonl", "--out", out]
    process = subprocess.Popen(
        command(*args, "--batch-tokens", 1), env=ENVIRONMENT, stderr=subprocess.PIPE,
        stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    with process:
        assert process.stderr.readline() == "scoring 40 items under 1 model\n"
        process.send_signal(signal.SIGINT)
        stdout, stderr = process.communicate()
    assert process.returncode == 130
    assert stdout == ""
    stopped, hint = stderr.splitlines()
    assert stopped == "error: stopped between two passes"
    assert hint.startswith("hint: continue with: cqa-fast score --model ")
    assert 0 < len(read_lines(out / "scores.jsonl")) < 40


def test_report_prints_the_page_or_all_files_and_needs_no_model(pairs, tmp_path):
    scores, out = tmp_path / "scores", tmp_path / "report"
    assert invoke("score", "--model", MODEL, "--pairs", pairs, "--out", scores).exit_code == 0
    result = invoke("report", scores, "--out", out)
    assert result.exit_code == 0, result.stderr
    assert result.stdout == f"{out / 'report.html'}\n"
    printed = json.loads(invoke("report", scores, "--out", out, "--json").stdout)
    files, verdict = printed["files"], printed["verdict"]
    assert verdict == json.loads((scores / "summary.json").read_text())["verdict"]
    assert verdict["headline"].startswith("Only the base model was scored")
    assert files[:2] == [str(out / "report.html"), str(out / "report.md")]
    assert all(Path(file).is_file() for file in files)


def test_cutoff_is_printed_with_what_lies_on_either_side(pairs, tmp_path):
    args = ["--model", MODEL, "--pairs", pairs, "--out", tmp_path / "out", "--cutoff", "2024-06"]
    result = invoke("score", *args)
    assert "published by 2024-06: 0, after it: 0, unknown: 2;" in result.stdout


@pytest.mark.slow
def test_demo_prints_a_table_of_both_groups_that_agrees_with_its_summary(tmp_path):
    result = invoke("demo", "--epochs", 1, "--out", tmp_path)
    assert result.exit_code == 0, result.stderr
    summary = json.loads((tmp_path / "scores" / "summary.json").read_text())
    tables = dict(zip(["literary", "factual"], result.stdout.split("\n\n"), strict=False))
    for group, table in tables.items():
        title, head, base, adapter = table.splitlines()
        assert title == f"{group}: 40 items"
        columns = "model dI nats sign acc. ddI nats 95 % CI d_cond d_prior W+ p d_z"
        assert " ".join(head.split()) == columns
        entry = summary["groups"][group]["epoch-01"]
        assert base.split()[:2] == ["base", f"{summary['base'][group]['mean_delta_i_nats']:+.2f}"]
        low, high = summary["families"][group]["changes"]["epoch-01"]["ci95_nats"]
        assert adapter.split() == [
            "epoch-01", f"{entry['mean_delta_i_nats']:+.2f}",
            f"{100 * entry['sign_accuracy']:.0f}", "%", f"{entry['mean_ddi_nats']:+.2f}",
            f"[{low:+.2f},", f"{high:+.2f}]", f"{entry['mean_d_cond_nats']:+.2f}",
            f"{entry['mean_d_prior_nats']:+.2f}", f"{entry['wilcoxon']['w_plus']:g}",
            f"{entry['wilcoxon']['p']:.3f}", f"{entry['d_z']:+.2f}",
        ]  # fmt: skip
    assert "scoring 120 items under 2 models" in result.stderr
    page = tmp_path / "report" / "report.html"
    assert result.stderr.endswith(f"report: {page}\n")
    assert "data-tokens" in page.read_text(encoding="utf-8")
