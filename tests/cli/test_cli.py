"""The command: what it prints where, and how it ends."""

import json
import os
import signal
import subprocess
from pathlib import Path

import pytest
from cli.common import ENVIRONMENT, MODEL, assert_one_error, command, execute, invoke
from helpers import DEMO, read_lines, write_lines


@pytest.mark.parametrize(
    ("given", "expected"),
    [({}, "6000"), ({"GOMP_SPINCOUNT": "7"}, "7"), ({"OMP_WAIT_POLICY": "active"}, None)],
    ids=["unset", "set", "by-policy"],
)
def test_threads_wait_briefly_unless_the_user_has_said_how(samples, monkeypatch, given, expected):
    monkeypatch.setattr("os.environ", {**given})
    assert invoke("validate", samples).exit_code == 0
    assert os.environ.get("GOMP_SPINCOUNT") == expected


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
