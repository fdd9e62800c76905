"""Settings: from default, preset, file and flag, and files that are wrong."""

import json

import pytest
import yaml
from cli.common import MODEL, assert_one_error, invoke, plan_of
from helpers import read_lines, write_lines

from cqa.train.config import PRESETS


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
