"""README and docs: every example works as it stands there, every number and name is the tool's."""

import json
import math
import os
import re
import shlex
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import click
import pytest
import yaml
from browser import find_browser
from click.testing import CliRunner
from cqa_fast.main import main
from helpers import DEMO, ROOT, read_lines, shared, write_lines
from PIL import Image
from scipy import stats

from cqa.data.items import parse_continuation, parse_pair
from cqa.data.samples import FORMATS, detect_format, parse_sample
from cqa.errors import CqaError
from cqa.schema.rows import ItemRow, OptionScore
from cqa.schema.written import key_of

PAGES = {
    path.name: path.read_text(encoding="utf-8")
    for path in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))
}
BLOCKS = [
    (page, kind, body)
    for page, text in PAGES.items()
    for kind, body in re.findall(r"^```(\w+)\n(.*?)^```$", text, flags=re.MULTILINE | re.DOTALL)
]
SHORTER = {  # what takes long even on little data
    "cqa-fast scale": ["--sizes", "1,2", "--seeds", "1", "--epochs", "2"],
    "--out run-dev": ["--epochs", "2"],
    "--out real-run": ["--epochs", "2"],
    "--run real-run": ["--epochs", "2"],
    "cqa-fast bench": [
        "--window", "9+9", "--job", "2x9+2x9", "--seconds", "0.01", "--device", "cpu",
    ],
}  # fmt: skip
OF_OTHERS = {  # of pip, setup.py, hf, vllm, torchrun and bench/aot.py
    "--no-build-isolation", "--inplace", "--repo-type", "--port", "--nproc-per-node",
    "--check", "--measured",
}  # fmt: skip
OF_OTHERS |= {  # of sbatch
    "--job-name", "--array", "--gpus", "--cpus-per-task", "--mem", "--time", "--signal",
    "--requeue", "--dependency", "--nodes", "--ntasks-per-node", "--gpus-per-node",
}  # fmt: skip
OF_OTHERS |= {  # of torchrun
    "--nproc-per-node", "--nnodes", "--rdzv-backend", "--rdzv-id", "--rdzv-endpoint",
}  # fmt: skip


def commands(*, real: bool) -> list[str]:
    """Return the cqa-fast commands of all bash blocks in order: of the real run, or the others."""
    blocks = (body for page, kind, body in BLOCKS if kind == "bash")
    lines = "\n".join(blocks).replace("\\\n", " ")
    found = [line for line in lines.splitlines() if line.startswith("cqa-fast ")]
    return [line for line in found if ("real-" in line) is real]


def run(command: str) -> None:
    """Run a command as the terminal would."""
    scored = command.startswith("cqa-fast report")
    shorter = next((more for part, more in SHORTER.items() if part in command and not scored), [])
    args = shlex.split(command.replace(" --peers", ""))[1:]
    done = CliRunner().invoke(main, [*args, *shorter])
    assert done.exit_code == 0, (command, done.stderr, done.exception)


@pytest.mark.slow
def test_the_commands_run_in_order(tmp_path, monkeypatch):
    """With little data: three samples are one step an epoch."""
    monkeypatch.chdir(tmp_path)
    Path("Qwen2.5-7B").symlink_to(DEMO / "model")
    for name, n in (("train", 3), ("literary", 4), ("factual", 4), ("continuations", 3)):
        write_lines(Path(f"{name}.jsonl"), read_lines(DEMO / f"{name}.jsonl")[:n])
    write_lines(Path("dev.jsonl"), read_lines(DEMO / "literary.jsonl")[:2])
    Path("pairs.csv").write_text("id,question,right,wrong\n1,Water boils, hot, cold\n")
    for _, kind, body in BLOCKS:
        if kind == "yaml":
            Path(body.splitlines()[0].removeprefix("# ")).write_text(body, encoding="utf-8")
    for example in (ROOT / "cqa" / "assets" / "studies").iterdir():
        Path(example.name).symlink_to(example)
    assert len(commands(real=False)) >= 29
    for command in commands(real=False):
        run(command)
    assert Path("run/epoch-12/adapter_model.safetensors").is_file()
    assert Path("adapter-plain/adapter_model.safetensors").is_file()
    assert Path("merged/tokenizer.json").is_file()
    assert len(read_lines(Path("points/selected.jsonl"))) == 4
    assert Path("scale/curve.csv").is_file()
    assert any(event["event"] == "dev" for event in read_lines(Path("run-dev/log.jsonl")))
    assert Path("report/report.html").is_file()
    assert Path("report-2024/tables/strata.csv").is_file()
    assert json.loads(Path("bench.json").read_text())["step"]["windows"][0]["n_tokens"] == 18
    settings = json.loads(Path("run-16/run.json").read_text())["settings"]
    recipe = yaml.safe_load(Path("recipe.yaml").read_text())
    expected = {"rank": 16, "lr": 1e-4, "epochs": 5, "targets": ["q", "v"]}
    assert {key: settings[key] for key in recipe} == expected
    printed: list[tuple[object, ...]] = []
    for page, kind, body in BLOCKS:
        if kind == "python":
            exec(compile(body, page, "exec"), {"print": lambda *words: printed.append(words)})
    names = {words[0] for words in printed if len(words) == 3 and isinstance(words[0], str)}
    assert names == {"base", "epoch-05"}


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
    blocks = [body for page, kind, body in BLOCKS if page == "real-run.md" and kind == "text"]
    block = next(body for body in blocks if "literary: 770 items" in body)
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


def test_the_json_examples_are_valid_records_of_every_kind():
    kinds = set()
    for page, kind, body in BLOCKS:
        if kind != "json" or page == "studies.md":
            continue
        record = json.loads(body)
        if "continuation" in record:
            kinds.add(parse_continuation(record, page).kind)
        elif "context" in record:
            kinds.add(parse_pair(record, page).kind)
        else:
            kinds.add(parse_sample(record, detect_format(record, page), page).format)
    assert kinds == {*FORMATS.values(), "pair", "options", "continuation"}


def test_make_targets_exist():
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    named = {t for text in PAGES.values() for t in re.findall(r"(?:^|`)make ([\w-]+)", text, re.M)}
    assert {"demo", "test", "check"} <= named
    for target in named:
        assert re.search(rf"^{target}:", makefile, flags=re.MULTILINE), target


def test_the_shown_tables_have_the_headings_that_the_command_prints():
    from cqa.report.terminal import ITEM_HEADINGS

    shown = [body for _, kind, body in BLOCKS if kind == "text" and " items\n" in body]
    assert len(shown) == 4
    for body in shown:
        assert re.split(r"\s{2,}", body.splitlines()[1].strip()) == ITEM_HEADINGS


def test_readme_shows_what_the_demo_printed():
    path = ROOT / "demo-out" / "scores" / "summary.json"
    if not path.exists():
        pytest.skip("make demo writes it")
    found = json.loads(path.read_text(encoding="utf-8"))
    (block,) = [body for page, _, body in BLOCKS if page == "README.md" and "40 items" in body]
    title, head, base, *lines = block.splitlines()
    keys = re.split(r"\s{2,}", head.strip())
    assert title == f"literary: {found['base']['literary']['n']} items"
    assert base.split()[1] == f"{found['base']['literary']['mean_delta_i_nats']:+.2f}"
    assert len(lines) == len(found["groups"]["literary"])
    for line in lines:
        shown = dict(zip(keys, re.split(r"\s{2,}", line.strip()), strict=True))
        entry = found["groups"]["literary"][shown["model"]]
        family = found["families"]["literary"]["changes"][shown["model"]]
        assert shown["dI nats"] == f"{entry['mean_delta_i_nats']:+.2f}"
        assert shown["sign acc."] == f"{100 * entry['sign_accuracy']:.0f} %"
        assert shown["ddI nats"] == f"{entry['mean_ddi_nats']:+.2f}"
        assert shown["95 % CI"] == "[{:+.2f}, {:+.2f}]".format(*family["ci95_nats"])
        assert shown["d_cond"] == f"{entry['mean_d_cond_nats']:+.2f}"
        assert shown["d_prior"] == f"{entry['mean_d_prior_nats']:+.2f}"
        assert shown["W+"] == f"{entry['wilcoxon']['w_plus']:.0f}"
        assert shown["p"] == f"{entry['wilcoxon']['p']:.3f}"
        assert shown["d_z"] == f"{entry['d_z']:+.2f}"


def test_readme_is_read_in_one_sitting():
    assert len(PAGES["README.md"].splitlines()) <= 200


def test_every_link_leads_somewhere():
    for page, text in PAGES.items():
        folder = ROOT if page == "README.md" else ROOT / "docs"
        prose = re.sub(r"^```.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL)
        links = re.findall(r"\]\(([^)\s]+)\)|^\[\w+\]: (\S+)$", prose, flags=re.MULTILINE)
        for link in (inline or below for inline, below in links):
            if link.startswith("https://"):
                continue
            path, _, anchor = link.partition("#")
            target = folder / path if path else folder / page
            assert target.is_file(), (page, link)
            if anchor:
                titles = re.findall(r"^#+ (.+)$", target.read_text("utf-8"), flags=re.MULTILINE)
                assert anchor in {
                    re.sub(r"[^\w\- ]", "", t.lower()).replace(" ", "-") for t in titles
                }


def test_every_page_is_reached_from_the_readme():
    for page in PAGES:
        assert page == "README.md" or f"(docs/{page})" in PAGES["README.md"]


def test_every_file_that_is_named_exists():
    for page, text in PAGES.items():
        paths = re.findall(r"`((?:cqa|csrc|tests|bench|docs)/[\w./-]+)`", text)
        missing = [path for path in paths if not (ROOT / path).exists()]
        assert not missing, page


def test_every_flag_that_is_named_exists():
    groups = [c for c in main.commands.values() if isinstance(c, click.Group)]
    commands = [*main.commands.values(), *(c for g in groups for c in g.commands.values())]
    known = {
        name
        for command in commands
        for parameter in command.params
        for name in [*parameter.opts, *parameter.secondary_opts]
    }
    for page, text in PAGES.items():
        named = set(re.findall(r"(?<![\w-])--[a-z][a-z0-9-]*", text)) - {"--help", "--no-"}
        assert named <= known | OF_OTHERS, page


def test_every_command_and_exit_code_has_its_row():
    text = PAGES["command-line.md"]
    rows = re.findall(r"^\| (`.*?) \|", text, flags=re.MULTILINE)
    assert set(re.findall(r"`([\w-]+)`", " ".join(rows))) == set(main.commands)
    codes = {int(code) for code in re.findall(r"^\| (\d) \|", text, flags=re.MULTILINE)}
    assert codes == {0, *(kind.exit_code for kind in CqaError.__subclasses__())} - {1}


def test_every_field_of_a_row_is_described():
    text = PAGES["data-formats.md"]
    for field in (*fields(ItemRow), *fields(OptionScore)):
        assert f"`{key_of(field)}`" in text, field.name


def test_the_examples_of_the_studies_are_lines_of_their_files():
    folder = ROOT / "cqa" / "assets" / "studies"
    held = [record for path in folder.iterdir() for record in read_lines(path)]
    shown = [body for page, kind, body in BLOCKS if (page, kind) == ("studies.md", "json")]
    assert shown
    for body in shown:
        assert all(json.loads(line) in held for line in body.splitlines())


def test_every_study_is_described():
    for name in main.commands["study"].commands:
        assert f"## cqa-fast study {name}\n" in PAGES["studies.md"]


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_comes_as_the_page_says(shell):
    source, completed = f"_CQA_FAST_COMPLETE={shell}_source cqa-fast", f"{shell}_complete"
    assert source in PAGES["command-line.md"]
    words = {"COMP_WORDS": "cqa-fast score --pa", "COMP_CWORD": "2" if shell != "fish" else "--pa"}
    code = "from cqa_fast.main import main; main(prog_name='cqa-fast')"
    for instruction, expected in (
        (f"{shell}_source", "_CQA_FAST_COMPLETE"),
        (completed, "--pairs"),
    ):
        done = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=False,
            env={**os.environ, **words, "_CQA_FAST_COMPLETE": instruction,
                 "PYTHONPATH": f"{ROOT / 'cli'}{os.pathsep}{ROOT}"},
        )  # fmt: skip
        assert expected in done.stdout, done.stderr


def test_the_citation_is_of_this_version():
    from cqa import __version__

    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert citation["version"] == __version__
    assert citation["license"] == "Apache-2.0"
    assert {"cff-version", "message", "title", "authors"} <= citation.keys()


def test_the_picture_is_small_and_can_be_taken_again(tmp_path):
    picture = ROOT / "docs" / "report.png"
    assert picture.stat().st_size < 150_000
    find_browser()
    page = tmp_path / "page.html"
    page.write_text(f"<title>x</title><p>{ROOT}/cqa</p>", encoding="utf-8")
    script = [
        sys.executable,
        str(ROOT / "tests" / "picture.py"),
        str(page),
        str(tmp_path / "p.png"),
    ]
    subprocess.run(script, check=True)
    with Image.open(tmp_path / "p.png") as again, Image.open(picture) as shown:
        assert again.size == shown.size
