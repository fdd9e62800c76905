"""The export command: one form at a time, into a new folder, with a message where it cannot."""

import json
from pathlib import Path

import pytest
from click.testing import CliRunner
from cqa_fast.main import main
from helpers import tiny_run


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_run(tmp_path_factory.mktemp("export"))


def test_both_forms_are_written(run, tmp_path):
    epoch = str(run / "run" / "epoch-02")
    plain = CliRunner().invoke(main, ["export", epoch, "--out", f"{tmp_path}/a", "--plain-alpha"])
    assert (plain.exit_code, plain.stdout) == (0, f"{tmp_path}/a\n")
    merged = CliRunner().invoke(
        main, ["export", epoch, "--out", f"{tmp_path}/b", "--merge", "--json"]
    )
    assert json.loads(merged.stdout) == {
        "out": f"{tmp_path}/b", "n_modules": 7, "base": str(run / "model"),
    }  # fmt: skip
    assert {"tokenizer.json", "model.safetensors"} <= {p.name for p in (tmp_path / "b").iterdir()}


@pytest.mark.parametrize(
    ("args", "code", "said"),
    [
        ([], 2, "expected --plain-alpha or --merge, got neither"),
        (["--plain-alpha", "--merge"], 2, "expected --plain-alpha or --merge, got both"),
        (["--plain-alpha", "--model", "x"], 2, "expected --model with --merge alone"),
        (["--merge", "--model", "./none"], 4, "got no such folder"),
    ],
    ids=["neither", "both", "idle-model", "no-model"],
)
def test_what_cannot_be_exported_gets_a_message(run, tmp_path, args, code, said):
    epoch = str(run / "run" / "epoch-02")
    result = CliRunner().invoke(main, ["export", epoch, "--out", f"{tmp_path}/out", *args])
    assert result.exit_code == code
    assert said in result.stderr
    assert not (tmp_path / "out").exists()
