"""Every example of the README works as it stands there, and its numbers are those of the tool."""

import json
import re
import shlex
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner
from cqa_fast.main import main
from helpers import DEMO, ROOT, read_lines, shared, write_lines
from scipy import stats

TEXT = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```$", TEXT, flags=re.MULTILINE | re.DOTALL)
SHORTER = {  # what takes long even on little data: the last of a repeated flag counts
    "cqa-fast scale": ["--sizes", "1,2", "--seeds", "1", "--epochs", "2"],
    "--out run-dev": ["--epochs", "2"],
    "--out real-run": ["--epochs", "2"],
    "--run real-run": ["--epochs", "2"],
}


def commands(*, real: bool) -> list[str]:
    """Return the cqa-fast commands of all bash blocks in order: of the real run, or the others."""
    lines = "\n".join(body for kind, body in BLOCKS if kind == "bash").replace("\\\n", " ")
    found = [line for line in lines.splitlines() if line.startswith("cqa-fast ")]
    return [line for line in found if ("real-" in line) is real]


def run(command: str) -> None:
    """Run a command as the terminal would."""
    scored = command.startswith("cqa-fast report")
    shorter = next((more for part, more in SHORTER.items() if part in command and not scored), [])
    done = CliRunner().invoke(main, [*shlex.split(command)[1:], *shorter])
    assert done.exit_code == 0, (command, done.stderr, done.exception)


@pytest.mark.slow
def test_the_commands_run_in_order(tmp_path, monkeypatch):
    """With little data: three samples are one step an epoch."""
    monkeypatch.chdir(tmp_path)
    Path("Qwen2.5-7B").symlink_to(DEMO / "model")
    for name, n in (("train", 3), ("literary", 4), ("factual", 4), ("continuations", 3)):
        write_lines(Path(f"{name}.jsonl"), read_lines(DEMO / f"{name}.jsonl")[:n])
    write_lines(Path("dev.jsonl"), read_lines(DEMO / "literary.jsonl")[:2])
    for kind, body in BLOCKS:
        if kind == "yaml":
            Path(body.splitlines()[0].removeprefix("# ")).write_text(body, encoding="utf-8")
    assert len(commands(real=False)) == 12
    for command in commands(real=False):
        run(command)
    assert Path("run/epoch-12/adapter_model.safetensors").is_file()
    assert len(read_lines(Path("points/selected.jsonl"))) == 4
    assert Path("scale/curve.csv").is_file()
    assert any(event["event"] == "dev" for event in read_lines(Path("run-dev/log.jsonl")))
    assert Path("report/report.html").is_file()
    assert Path("report-2024/tables/strata.csv").is_file()
    settings = json.loads(Path("run-16/run.json").read_text())["settings"]
    recipe = yaml.safe_load(Path("recipe.yaml").read_text())
    assert {key: settings[key] for key in recipe} == {"rank": 16, "lr": 1e-4, "epochs": 5}


@pytest.mark.slow
def test_the_real_run_runs_on_the_first_lines_of_its_files(tmp_path, monkeypatch):
    files = sorted({path for command in commands(real=True) for path in data_files(command)})
    sources = {path: shared(path) for path in files}
    monkeypatch.chdir(tmp_path)
    for path, source in sources.items():
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        write_lines(Path(path), read_lines(source)[:3])
    Path("cqa").symlink_to(ROOT / "cqa")
    for command in commands(real=True):
        run(command)
    summary = json.loads(Path("real-scores/summary.json").read_text())
    n_files = {g: sum(f"pairs/{g}" in path for path in files) for g in ("literary", "factual")}
    assert {group: base["n"] for group, base in summary["base"].items()} == {
        group: 3 * n for group, n in n_files.items()
    }
    assert {g: m["base"]["n"] for g, m in summary["continuations"].items()} == {
        "literary": 3, "factual": 3,
    }  # fmt: skip
    assert Path("real-report/report.html").is_file()


def data_files(command: str) -> list[str]:
    return [word for word in shlex.split(command) if word.startswith("data/")]


def real_tables() -> dict[str, tuple[int, list[dict[str, str]]]]:
    """Return the tables of the real run by their title: how many items, and the rows."""
    (block,) = [body for kind, body in BLOCKS if kind == "text" and "expert" not in body
                and "epoch-12" in body]  # fmt: skip
    tables = {}
    for part in block.strip().split("\n\n"):
        title, head, *lines = part.splitlines()
        if ": " not in title:
            continue
        keys = re.split(r"\s{2,}", head.strip())
        rows = []
        for line in lines:
            cells = re.split(r"\s{2,}", line.strip())
            rows.append(dict(zip(keys, cells, strict=False)))
        name, _, what = title.partition(": ")
        n = re.match(r"(\d+) items", what)
        tables[name if n else f"{name} {what}"] = (int(n[1]) if n else 0, rows)
    return tables


@pytest.mark.parametrize("group", ["literary", "factual"])
def test_rows_of_the_real_table_agree_with_each_other(group):
    n, (base, *rows) = real_tables()[group]
    assert rows
    for row in rows:
        number = {
            key: float(cell) for key, cell in row.items() if re.fullmatch(r"[+-]?[\d.]+", cell)
        }
        ddi = number["dI nats"] - float(base["dI nats"])
        assert number["ddI nats"] == pytest.approx(ddi, abs=0.011)
        assert number["ddI nats"] == pytest.approx(number["d_cond"] - number["d_prior"], abs=0.016)
        mean, sd = n * (n + 1) / 4, (n * (n + 1) * (2 * n + 1) / 24) ** 0.5
        p = stats.norm.sf((number["W+"] - mean) / sd)
        assert (row["p"] == "<0.001") if p < 5e-4 else (number["p"] == pytest.approx(p, abs=2e-3))
