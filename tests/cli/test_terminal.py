"""What the terminal gets: whole helps, escaped text, one message an error, streams that close."""

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from cqa_fast.main import main
from cqa_fast.progress import ScoreProgress
from cqa_fast.terminal import message, say_json, show
from helpers import DEMO, ROOT, write_lines

from cqa.config import GROUPS
from cqa.errors import DataError
from cqa.escape import for_terminal
from cqa.schema.events import ModelScored, ModelStart, RowsWritten, ScoreStart
from cqa.text import LONGEST_MESSAGE

MODEL = str(DEMO / "model")
ENVIRONMENT = {**os.environ, "PYTHONPATH": f"{ROOT / 'cli'}{os.pathsep}{ROOT}"}
PAIR = {"id": "a", "context": "It rained.", "good": " She ran.", "bad": " She sat."}
HOSTILE = "\x1b]0;owned\x07 \x9b31m :rocket: [red]"


def invoke(*args: object) -> Result:
    return CliRunner().invoke(main, [str(arg) for arg in args])


def shell(line: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """Run a line of sh, in which $cqa is the command."""
    environment = {**ENVIRONMENT, "cqa": f"{sys.executable} -m cqa_fast"}
    return subprocess.run(
        ["sh", "-c", line], cwd=folder, env=environment, capture_output=True, text=True, check=False
    )


@pytest.mark.parametrize("width", [80, 100])
@pytest.mark.parametrize("name", main.commands)
def test_help_fits_the_terminal_and_says_what_every_setting_defaults_to(name, width):
    done = CliRunner().invoke(main, [name, "--help"], terminal_width=width)
    assert done.exit_code == 0
    lines = done.output.splitlines()
    assert max(map(len, lines)) <= width
    headings = [line.removesuffix(":") for line in lines if re.fullmatch(r"[A-Z][\w ]+:", line)]
    known = [g for g in headings if g in GROUPS]
    assert known == sorted(known, key=GROUPS.index)
    for parameter in main.commands[name].params:
        if getattr(parameter, "group", "Command") != "Command":
            assert "[default: " in parameter.help or "[required" in parameter.help, parameter.name


def test_list_of_commands_holds_their_whole_summaries():
    text = " ".join(invoke("--help").output.split())
    assert "…" not in text
    assert "..." not in text.replace("COMMAND [ARGS]...", "")
    for name, command in main.commands.items():
        assert f"{name} {command.get_short_help_str()}" in text


@pytest.mark.parametrize(("name", "flag"), [("prescreen", "--pairs"), ("scale", "--pairs")])
def test_list_that_may_not_be_empty_is_marked_as_required_and_refused_without(name, flag):
    (option,) = (p for p in main.commands[name].params if flag in p.opts)
    assert option.help.endswith("[required; may be given several times]")
    data = ["--data", "x"] if name == "scale" else []
    done = invoke(name, "--model", "x", *data, "--out", "y")
    assert done.exit_code == 2
    assert done.stderr.startswith(f"error: expected a value for {flag}, got none\nhint: {flag}: ")


@pytest.mark.parametrize(
    ("args", "shown"),
    [
        (["train", "--out", "a", "--out=b"], "expected --out once, got: --out a and --out b"),
        (["score", "--model", "a", "--model", "a"], "got: --model a and --model a"),
        (["report", "s", "--run", "r1", "--run", "r2"], "got: --run r1 and --run r2"),
        (["train", "--rslora", "--no-rslora"], "expected --rslora once, got: --rslora and --no-rs"),
        (["demo", "--epochs", "1", "--epochs", "2"], "got: --epochs 1 and --epochs 2"),
        (["coverage", "f", "--by", "tags", "--by", "words"], "got: --by tags and --by words"),
        (["doctor", "--json", "--json"], "expected --json once, got: --json and --json"),
    ],
    ids=lambda v: v[0] if isinstance(v, list) else "",
)
def test_option_of_one_value_given_twice_is_refused_with_both(args, shown):
    done = invoke(*args)
    assert (done.exit_code, done.stdout) == (2, "")
    assert shown in done.stderr


def test_epochs_may_be_given_as_ranges(tmp_path):
    done = invoke(
        "score", "--model", MODEL, "--run", tmp_path / "no", "--epochs", "1-3,3", "--pairs", "p",
        "--out", tmp_path / "out",
    )  # fmt: skip
    assert "expected each epoch once, got: (1, 2, 3, 3)" in done.stderr


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain, “quoted”, 漢字, café", "plain, “quoted”, 漢字, café"),
        ("\x1b[31mred\x1b[0m", r"\x1b[31mred\x1b[0m"),
        ("a\r\nb\tc\x07", r"a\r\nb\tc\x07"),
        ("\x9b31m", r"\x9b31m"),
        ("right \u202e left", r"right \u202e left"),
        ("\u2028", r"\u2028"),
        ("\ud800", r"\ud800"),
        ("\U000e0041", r"\U000e0041"),
        ("a\u200db", "a\u200db"),
    ],
    ids=ascii,
)
def test_what_steers_a_terminal_is_written_as_an_escape(text, shown):
    assert for_terminal(text) == shown
    assert for_terminal(text, keep=text) == text


def test_messages_keep_both_ends_of_what_is_too_long():
    text = message("expected x, got: " + "y" * 5_000_000 + ", in all")
    assert len(text) <= LONGEST_MESSAGE
    assert text.startswith("expected x, got: yyy")
    assert text.endswith("yyy, in all")
    assert message("\x1b" * 400) == message("\x1b" * 400)[:LONGEST_MESSAGE]
    assert message("short") == "short"


def test_error_is_at_most_two_lines_whatever_stands_in_it(capsys):
    show(DataError(f"got: {HOSTILE}\n", where=f"{HOSTILE}:1", hint=f"see\n{HOSTILE}"))
    error, hint = capsys.readouterr().err.splitlines()
    assert "\x1b" not in error + hint
    assert "\x07" not in error + hint
    assert r"\x1b]0;owned\x07 \x9b31m :rocket: [red]" in error
    assert hint.startswith(r"hint: see\n\x1b]0;")


def test_hostile_ids_and_groups_reach_the_terminal_escaped_and_json_whole(tmp_path, capsys):
    file = write_lines(tmp_path / "p.jsonl", [{**PAIR, "id": HOSTILE, "group": HOSTILE}] * 2)
    text = invoke("validate", file)
    assert text.exit_code == 3
    assert r"1 good item (1 \x1b]0;owned\x07 \x9b31m :rocket: [red]): 1 refused" in text.stdout
    assert not {"\x1b", "\x07", "\x9b"} & set(text.stdout)
    data = invoke("validate", "--json", file)
    assert not {"\x1b", "\x07", "\x9b"} & set(data.stdout)
    (report,) = json.loads(data.stdout)
    assert report["groups"] == {HOSTILE: 1}
    assert (report["kind"], report["n_records"], len(report["errors"])) == ("pairs", 1, 1)


def test_json_is_ascii_where_the_terminal_is_not_utf8(monkeypatch):
    done = subprocess.run(
        [sys.executable, "-c", f"import sys; sys.path.insert(0, {str(ROOT / 'cli')!r});"
         "from cqa_fast.terminal import say_json; say_json({'é漢': 1})"],
        env={**ENVIRONMENT, "PYTHONIOENCODING": "latin-1"}, capture_output=True, check=True,
    )  # fmt: skip
    assert json.loads(done.stdout.decode("ascii")) == {"é漢": 1}


def test_json_may_hold_any_text(capsys):
    value = {"\u2028\x9b\U000e0041\n\t": ["“", "\x00"]}
    say_json(value)
    out = capsys.readouterr().out
    assert json.loads(out) == value
    assert out.replace("\n", "").isprintable()


def test_counts_agree_with_their_nouns(tmp_path):
    file = write_lines(tmp_path / "p.jsonl", [PAIR])
    empty = write_lines(tmp_path / "none.jsonl", [{"prompt": "x"}])
    one, wrong = invoke("validate", file), invoke("validate", empty)
    assert one.stdout.startswith(f"{file}: 1 item (1 ungrouped): ok\n")
    assert wrong.stdout.startswith(f"{empty}: 0 good prompt samples: 1 refused\n")


def test_rerun_says_that_nothing_is_new(tmp_path):
    file = write_lines(tmp_path / "p.jsonl", [PAIR])
    args = ["score", "--model", MODEL, "--pairs", file, "--out", tmp_path / "out"]
    first, second = invoke(*args), invoke(*args)
    assert re.search(r"^base       1 item, \d+ tokens, ", first.stderr, flags=re.MULTILINE)
    assert second.stderr.splitlines()[-1] == "base       nothing to add"


def test_progress_that_cannot_be_written_stops_nothing(tmp_path, monkeypatch):
    class Closed:
        encoding = "utf-8"

        def isatty(self) -> bool:
            return True

        def fileno(self) -> int:
            raise OSError

        def write(self, text: str) -> int:
            raise BrokenPipeError

        flush = close = lambda self: None

    monkeypatch.setattr("sys.stderr", Closed())
    progress = ScoreProgress()
    for event in (
        ScoreStart(n_items=1, n_models=1),
        ModelStart(adapter=None),
        RowsWritten(n=1, n_tokens=3),
        ModelScored(adapter=None),
    ):
        progress(event)
    progress.close()


def test_closed_standard_error_puts_nothing_into_the_result(tmp_path):
    write_lines(tmp_path / "p.jsonl", [PAIR])
    done = shell(f"exec $cqa score --model {MODEL} --pairs p.jsonl --out o --json 2>&-", tmp_path)
    assert done.returncode == 0
    assert json.loads(done.stdout) == json.loads((tmp_path / "o" / "summary.json").read_text())


def test_reader_that_has_gone_ends_nothing_in_a_traceback(tmp_path):
    write_lines(tmp_path / "p.jsonl", [PAIR])
    lines = f"($cqa score --model {MODEL} --pairs p.jsonl --out o 2>&1; echo $? >code) | head -c 1"
    done = shell(lines, tmp_path)
    assert (done.stdout, done.stderr) == ("s", "")
    assert (tmp_path / "code").read_text() == "0\n"
    assert (tmp_path / "o" / "summary.json").is_file()


def test_deleted_current_folder_is_said(tmp_path):
    done = shell("mkdir x && cd x && rmdir ../x && exec $cqa doctor", tmp_path)
    assert done.returncode == 6
    assert done.stderr.startswith(
        "error: expected a current folder, got: No such file or directory"
    )


@pytest.mark.parametrize(
    ("prefix", "signum", "code"),
    [("", signal.SIGHUP, 129), ("", signal.SIGTERM, 143), ("nohup", signal.SIGHUP, 0)],
    ids=["hangup", "terminated", "nohup"],
)
def test_hangup_ends_a_command_as_termination_does(tmp_path, prefix, signum, code):
    command = [*prefix.split(), sys.executable, "-m", "cqa_fast", "score", "--model", MODEL]
    process = subprocess.Popen(
        [*command, "--pairs", DEMO / "literary.jsonl", "--out", "o", "--batch-tokens", "1"],
        cwd=tmp_path, env=ENVIRONMENT, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    with process:
        while not process.stderr.readline().startswith("scoring"):
            assert process.poll() is None
        process.send_signal(signum)
        stderr = process.communicate()[1]
    assert process.returncode == code
    assert ("hint: continue with: cqa-fast score " in stderr) is (code != 0)
