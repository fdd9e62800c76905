"""What `--help` says: every flag, its default, an example, and at once."""

import os
import subprocess
import sys

import pytest
from cli.common import ENVIRONMENT, execute, invoke, option_of

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
        "--json", "--shard", "--on-error", "--ray", "--ray-actors",
    ],
    "generate": [
        "--model", "--adapter", "--prompt", "--prompts", "--template", "--samples", "--max-tokens",
        "--temperature", "--top-p", "--seed", "--out", "--device", "--dtype", "--json",
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
