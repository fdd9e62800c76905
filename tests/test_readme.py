"""Every example of the README works as it stands there, and its numbers are those of the tool."""

import json
import math
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
    "cqa-fast bench": [
        "--no-peers",
        "--window",
        "9+9",
        "--job",
        "2x9+2x9",
        "--seconds",
        "0.01",
        "--device",
        "cpu",
    ],
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
    assert len(commands(real=False)) == 13
    for command in commands(real=False):
        run(command)
    assert Path("run/epoch-12/adapter_model.safetensors").is_file()
    assert len(read_lines(Path("points/selected.jsonl"))) == 4
    assert Path("scale/curve.csv").is_file()
    assert any(event["event"] == "dev" for event in read_lines(Path("run-dev/log.jsonl")))
    assert Path("report/report.html").is_file()
    assert Path("report-2024/tables/strata.csv").is_file()
    assert json.loads(Path("bench.json").read_text())["step"]["windows"][0]["n_tokens"] == 18
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


@pytest.fixture(scope="module")
def real_tables() -> dict[str, tuple[str, list[dict[str, str]]]]:
    """The tables of the real run by group: what they hold, and their rows by heading."""
    block = next(body for kind, body in BLOCKS if kind == "text" and "epoch-12" in body)
    tables = {}
    for part in re.split(r"\n\n+", block.strip()):
        title, head, *lines = part.splitlines()
        found = re.fullmatch(r"(\w+): (\d+ items|continuations)", title)
        if found is None:
            continue
        keys, *rows = [re.split(r"\s{2,}", line.strip()) for line in (head, *lines)]
        kind = "continuations" if found[2] == "continuations" else "items"
        if kind == "continuations":
            rows[0][4:4] = ["", ""]  # the base has no change
        tables[found[1], kind] = (found[2], [dict(zip(keys, r, strict=False)) for r in rows])
    return tables


def numbers(row: dict[str, str]) -> dict[str, float]:
    return {k: float(v) for k, v in row.items() if re.fullmatch(r"[+-]?\d+(\.\d+)?", v)}


@pytest.mark.parametrize("group", ["literary", "factual"])
def test_numbers_of_the_real_run_agree_with_each_other(real_tables, group):
    title, (base, *rows) = real_tables[group, "items"]
    n = int(title.split()[0])
    mean, sd = n * (n + 1) / 4, math.sqrt(n * (n + 1) * (2 * n + 1) / 24)
    assert [row["model"] for row in rows][-1] == "epoch-12"
    for row in rows:
        values = numbers(row)
        ddi = values["dI nats"] - float(base["dI nats"])
        assert values["ddI nats"] == pytest.approx(ddi, abs=0.011)
        assert values["ddI nats"] == pytest.approx(values["d_cond"] - values["d_prior"], abs=0.016)
        low, high = map(float, row["95 % CI"].strip("[]").split(", "))
        assert low <= values["ddI nats"] <= high
        d_z = values["ddI nats"] / ((high - low) / 2 / stats.t.ppf(0.975, n - 1) * math.sqrt(n))
        assert values["d_z"] == pytest.approx(d_z, abs=0.02)
        p = stats.norm.sf((values["W+"] - mean) / sd)
        assert row["p"] == "<0.001" or values["p"] == pytest.approx(p, abs=2e-3)
        assert row["p"] != "<0.001" or p < 1.1e-3


def test_base_of_the_real_run_is_what_scoring_gives(real_tables, tmp_path):
    """The base alone, and one file alone: all of it takes minutes."""
    (score,) = [c for c in commands(real=True) if c.startswith("cqa-fast score")]
    (file,) = [f for f in data_files(score) if "continuations/literary" in f]
    args = ["score", "--model", str(DEMO / "model"), "--continuations", str(shared(file))]
    done = CliRunner().invoke(main, [*args, "--out", str(tmp_path / "out")])
    assert done.exit_code == 0, done.stderr
    _, (base, *_) = real_tables["literary", "continuations"]
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    found = summary["continuations"]["literary"]["base"]
    assert base["n"] == str(found["n"]) == "50"
    assert numbers(base)["log P nats/token"] == round(found["mean_logp_per_token_nats"], 3)
    assert numbers(base)["bits/byte"] == round(-found["mean_logp_per_byte_bits"], 3)


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


def test_the_shown_tables_have_the_headings_that_the_command_prints():
    from cqa.report.terminal import ITEM_HEADINGS

    shown = [body for kind, body in BLOCKS if kind == "text" and " items\n" in body]
    assert len(shown) == 2
    for body in shown:
        assert re.split(r"\s{2,}", body.splitlines()[1].strip()) == ITEM_HEADINGS
