"""Every example of the README works as it stands there."""

import json
import re
import shlex
import subprocess
import sys

import pytest
import yaml
from helpers import DEMO, ROOT, read_lines, write_lines

TEXT = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```$", TEXT, flags=re.MULTILINE | re.DOTALL)


SHORTER = {  # what takes long on the full data: the last of a repeated flag counts
    "cqa-fast scale": ["--sizes", "2,4", "--seeds", "1", "--epochs", "2"],
    "--out run-dev": ["--epochs", "1"],
}


def commands():
    """Return the cqa-fast commands of all bash blocks, in order."""
    lines = "\n".join(body for kind, body in BLOCKS if kind == "bash").replace("\\\n", " ")
    return [line for line in lines.splitlines() if line.startswith("cqa-fast ")]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with the files that the examples name: the demo's, shortened."""
    path = tmp_path_factory.mktemp("readme")
    (path / "Qwen2.5-7B").symlink_to(DEMO / "model")
    for name, n in (("train", 12), ("literary", 4), ("factual", 4), ("continuations", 3)):
        write_lines(path / f"{name}.jsonl", read_lines(DEMO / f"{name}.jsonl")[:n])
    write_lines(path / "dev.jsonl", read_lines(DEMO / "literary.jsonl")[:2])
    for kind, body in BLOCKS:
        if kind == "yaml":
            (path / body.splitlines()[0].removeprefix("# ")).write_text(body, encoding="utf-8")
    return path


@pytest.mark.slow
def test_the_commands_run_in_order(folder):
    assert len(commands()) == 12
    for command in commands():
        shorter = next((more for part, more in SHORTER.items() if part in command), [])
        done = subprocess.run(
            [sys.executable, "-m", "cqa_fast", *shlex.split(command)[1:], *shorter],
            cwd=folder,
            env={"PYTHONPATH": f"{ROOT / 'cli'}:{ROOT}", "PATH": "/usr/bin", "HF_HUB_OFFLINE": "1"},
            capture_output=True,
            text=True,
            timeout=300,
        )
        assert done.returncode == 0, (command, done.stderr)
    assert (folder / "run" / "epoch-12" / "adapter_model.safetensors").is_file()
    assert len(read_lines(folder / "points" / "selected.jsonl")) == 4
    assert (folder / "scale" / "curve.csv").is_file()
    assert any(event["event"] == "dev" for event in read_lines(folder / "run-dev" / "log.jsonl"))
    assert (folder / "report" / "report.html").is_file()
    assert (folder / "report-2024" / "tables" / "strata.csv").is_file()
    run = json.loads((folder / "run-16" / "run.json").read_text())
    recipe = yaml.safe_load((folder / "recipe.yaml").read_text())
    assert {key: run["settings"][key] for key in recipe} == {"rank": 16, "lr": 1e-4, "epochs": 5}


def test_the_json_examples_are_valid_records():
    from cqa.data.items import parse_continuation, parse_pair

    records = [json.loads(body) for kind, body in BLOCKS if kind == "json"]
    training, pair, options, continuation = records
    assert set(training) == {"id", "prompt", "response"}
    assert parse_pair(pair, "README").kind == "pair"
    assert parse_pair(options, "README").kind == "options"
    assert parse_continuation(continuation, "README").kind == "continuation"


def test_make_targets_exist():
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for target in re.findall(r"^make (\w+)", TEXT, flags=re.MULTILINE):
        assert re.search(rf"^{target}:", makefile, flags=re.MULTILINE), target


def test_the_shown_table_has_the_headings_that_the_command_prints():
    from cqa.score.table import ITEM_HEADINGS

    shown = next(body for kind, body in BLOCKS if kind == "text")
    assert re.split(r"\s{2,}", shown.splitlines()[1].strip()) == ITEM_HEADINGS
