"""The command, run in this process or in one of its own."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import click
from click.testing import CliRunner, Result
from cqa_fast.main import main
from helpers import DEMO, ROOT

MODEL = str(DEMO / "model")
ENVIRONMENT = {**os.environ, "PYTHONPATH": f"{ROOT / 'cli'}{os.pathsep}{ROOT}"}


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


def plan_of(samples: Path, *args: object, validation: float = 0) -> dict[str, Any]:
    """Return what a dry run prints."""
    out = samples.parent / "run"
    paths = ["--model", MODEL, "--data", samples, "--out", out, "--validation", validation]
    result = invoke("train", *paths, "--dry-run", "--json", *args)
    assert result.exit_code == 0, result.stderr
    return json.loads(result.stdout)
