"""Which folders a command fills, and that no file of the user's in another is touched."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from helpers import DEMO

from cqa.config import input_paths
from cqa.errors import ConfigError, ResourceError
from cqa.output_folder import MARKER, NOUNS, check_output, check_output_file, filled
from cqa.score.config import PrescreenConfig, ScoreConfig
from cqa.score.prescreen import prescreen
from cqa.score.run import score

PAIR = {
    "id": "p", "group": "literary", "context": "It rained.", "good": " We stayed.", "bad": " We."
}  # fmt: skip


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


@pytest.fixture
def pairs(tmp_path) -> Path:
    path = tmp_path / "pairs.jsonl"
    path.write_text(json.dumps(PAIR), encoding="utf-8")  # its last line has no newline
    return path


def scoring(pairs: Path, out: Path) -> ScoreConfig:
    return ScoreConfig(model=str(DEMO / "model"), pairs=(pairs,), out=out, summary=False)


@pytest.mark.parametrize("kind", NOUNS)
def test_folder_that_was_filled_is_filled_again_and_by_no_other_kind(tmp_path, kind):
    out = tmp_path / "a" / "b"
    with filled(out, kind):
        (out / "result").write_text("1")
    check_output(out, kind)
    with filled(out, kind):
        pass
    for other in set(NOUNS) - {kind}:
        with pytest.raises(ConfigError, match=f"got one of {NOUNS[kind]}\n"):
            check_output(out, other)
        with pytest.raises(ConfigError), filled(out, other):
            pass


def fail_after_writing(path: Path) -> None:
    path.write_text("{}")
    raise MemoryError


def test_work_that_fails_before_it_wrote_anything_leaves_no_mark(tmp_path):
    out = tmp_path / "out"
    with pytest.raises(MemoryError), filled(out, "run"):
        raise MemoryError
    for _ in range(2):  # then the folder holds something, so it stays marked
        with pytest.raises(MemoryError), filled(out, "scores"):
            fail_after_writing(out / "items.jsonl")
    with pytest.raises(ConfigError, match="got one of scores"):
        check_output(out, "run")


@pytest.mark.parametrize("name", ["notes.txt", "items.jsonl", "meta.json", "epoch-01", "data"])
@pytest.mark.parametrize("kind", NOUNS)
def test_folder_with_a_file_of_the_users_is_refused_untouched(tmp_path, kind, name):
    (tmp_path / name).write_text("{}")
    before = contents(tmp_path)
    with pytest.raises(ConfigError, match=f"got one with `{name}`"):
        check_output(tmp_path, kind)
    with pytest.raises(ConfigError), filled(tmp_path, kind):
        pass
    assert contents(tmp_path) == before


def test_hidden_files_and_those_of_a_file_system_do_not_count(tmp_path):
    (tmp_path / ".git").mkdir()
    (tmp_path / "lost+found").mkdir()
    check_output(tmp_path, "scores")


@pytest.mark.parametrize(
    ("kind", "name", "keys"),
    [
        ("run", "run.json", ["settings", "model_digest"]),
        ("scores", "meta.json", ["settings", "models"]),
        ("prescreen", "prescreen.json", ["settings", "classes"]),
        ("scale", "scale.json", ["settings", "curve"]),
    ],
)
def test_folder_of_an_earlier_version_is_known_by_its_own_file(tmp_path, kind, name, keys):
    (tmp_path / name).write_text(json.dumps(dict.fromkeys(keys)))
    check_output(tmp_path, kind)
    with filled(tmp_path, kind):
        pass
    assert json.loads((tmp_path / MARKER).read_text()) == {"kind": kind}


@pytest.mark.parametrize("marker", ["", "[]", '{"kind": "novel"}', '{"kind": ["run"]}'])
def test_marker_that_says_nothing_known_is_refused(tmp_path, marker):
    (tmp_path / MARKER).write_text(marker)
    with pytest.raises(ConfigError, match=MARKER):
        check_output(tmp_path, "run")


def test_file_and_dangling_link_are_refused(tmp_path):
    (tmp_path / "file").write_text("x")
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    for name in ("file", "link"):
        with pytest.raises(ConfigError, match="expected --out to be a folder, got a file"):
            check_output(tmp_path / name, "scores")


@pytest.mark.parametrize("way", ["itself", "within", "link to it", "link to the folder", "dots"])
def test_input_inside_the_output_is_refused_by_whatever_name(tmp_path, way):
    out = tmp_path / "out"
    with filled(out, "scores"):
        (out / "items.jsonl").write_text("mine")
    (tmp_path / "link").symlink_to(out / "items.jsonl" if way == "link to it" else out)
    given = {
        "itself": out,
        "within": out / "items.jsonl",
        "link to it": tmp_path / "link",
        "link to the folder": tmp_path / "link" / "items.jsonl",
        "dots": out / ".." / "out" / "items.jsonl",
    }[way]
    with pytest.raises(ConfigError, match="expected --out to hold no input, got --pairs"):
        check_output(out, "scores", [("--pairs", given)])
    check_output(out, "scores", [("--pairs", tmp_path / "beside.jsonl")])


def test_every_path_of_the_settings_is_an_input_but_the_output(tmp_path, pairs):
    config = replace(scoring(pairs, tmp_path / "out"), plan=tmp_path / "no-such-file")
    assert dict(input_paths(config)) == {"--pairs": pairs, "--model": DEMO / "model"}


def test_scoring_leaves_the_users_items_as_they_are(tmp_path, pairs):
    own = tmp_path / "mine"
    own.mkdir()
    given = own / "items.jsonl"
    pairs.rename(given)
    before = contents(own)
    with pytest.raises(ConfigError, match="expected --out to hold no input"):
        score(scoring(given, own))
    assert contents(own) == before


def test_scoring_replaces_no_meta_or_summary_that_is_not_its_own(tmp_path, pairs):
    own = tmp_path / "mine"
    own.mkdir()
    for name in ("meta.json", "summary.json"):
        (own / name).write_text('{"mine": 1}')
    before = contents(own)
    with pytest.raises(ConfigError, match=r"got one with `meta\.json` and 1 more"):
        score(scoring(pairs, own))
    assert contents(own) == before


def test_prescreening_deletes_neither_its_input_nor_a_foreign_selection(tmp_path, pairs):
    def config(pairs: Path, out: Path, budget: int | None) -> PrescreenConfig:
        return PrescreenConfig(model=str(DEMO / "model"), pairs=(pairs,), out=out, budget=budget)

    out = tmp_path / "points"
    prescreen(config(pairs, out, 1))
    before = contents(out)
    with pytest.raises(ConfigError, match="expected --out to hold no input"):
        prescreen(config(out / "selected.jsonl", out, None))
    assert contents(out) == before
    own = tmp_path / "mine"
    own.mkdir()
    (own / "selected.jsonl").write_text("mine")
    with pytest.raises(ConfigError, match=r"got one with `selected\.jsonl`"):
        prescreen(config(pairs, own, None))
    assert contents(own) == {"selected.jsonl": b"mine"}


def test_file_is_replaced_only_if_the_command_wrote_it(tmp_path):
    path = tmp_path / "out.json"
    check_output_file(path, ["results"], [])
    for text in ("mine", "{}", '{"result": 1}'):
        path.write_text(text)
        with pytest.raises(ConfigError, match="got another file"):
            check_output_file(path, ["results"], [])
    path.write_text('{"results": 1}')
    check_output_file(path, ["results"], [])
    with pytest.raises(ConfigError, match="expected --out to be no input, got --model"):
        check_output_file(path, ["results"], [("--model", path)])
    with pytest.raises(ConfigError, match="got a folder"):
        check_output_file(tmp_path, ["results"], [])


def test_file_without_a_place_is_refused_before_any_work(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(ResourceError, match="expected a folder to write to, got a file"):
        check_output_file(tmp_path / "file" / "new" / "out.json", ["results"], [])
    monkeypatch.setattr("os.access", lambda *_: False)  # root may write everywhere
    with pytest.raises(ResourceError, match="one that cannot be written to"):
        check_output_file(tmp_path / "out.json", ["results"], [])


def test_file_of_lines_is_known_by_its_first(tmp_path):
    path = tmp_path / "texts.jsonl"
    for mine in ('{"prompt": "a", "text": "b"}\n{"prompt": "c"}\n', '{"text": "", "prompt": ""}'):
        path.write_text(mine)
        check_output_file(path, ["prompt", "text"], [], lines=True)
    for other in ("", "{}\n", '["prompt", "text"]\n', '{"prompt": "a"}\n{"text": "b"}\n', "\n{}"):
        path.write_text(other)
        with pytest.raises(ConfigError, match="got another file"):
            check_output_file(path, ["prompt", "text"], [], lines=True)
        assert path.read_text() == other


@pytest.mark.parametrize(
    "command",
    [
        ["train", "--model", "M", "--data", "D", "--out", ""],
        ["score", "--model", "M", "--pairs", "D", "--out", ""],
        ["report", "S", "--out", ""],
        ["report", "", "--out", "R"],
        ["demo", "--out", ""],
        ["export", "A", "--plain-alpha", "--out", ""],
        ["convert", "F", ""],
        ["validate", ""],
        ["coverage", "D", "--gold", ""],
    ],
    ids=" ".join,
)
def test_an_empty_path_is_not_the_current_folder(tmp_path, command):
    done = subprocess.run(
        [sys.executable, "-m", "cqa_fast", *command], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 2, done.stderr
    assert "to be a path, got an empty one" in done.stderr
    assert not os.listdir(tmp_path)


def test_output_inside_an_input_is_filled_as_any_other(tmp_path):
    run = tmp_path / "run"
    with filled(run, "run"):
        (run / "run.json").write_text("{}")
    check_output(run / "scores", "scores", [("--run", run)])
    with filled(run / "scores", "scores"):
        pass
    assert json.loads((run / MARKER).read_text()) == {"kind": "run"}


def test_link_in_the_output_is_an_input_in_it_wherever_it_leads(tmp_path, pairs):
    out = tmp_path / "out"
    with filled(out, "prescreen"):
        (out / "selected.jsonl").symlink_to(pairs)
    with pytest.raises(ConfigError, match="expected --out to hold no input, got --pairs"):
        check_output(out, "prescreen", [("--pairs", out / "selected.jsonl")])


def test_words_of_settings_are_no_paths_though_folders_are_called_so(tmp_path, pairs, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("chat", "cpu", "fp32", "literary"):
        (tmp_path / name).mkdir()
    words = {"template": "chat", "device": "cpu", "dtype": "fp32", "primary": "literary"}
    config = replace(scoring(pairs, Path("cpu/out")), **words)
    assert dict(input_paths(config)) == {"--pairs": pairs, "--model": DEMO / "model"}


def test_unfinished_scale_study_and_report_of_an_earlier_version_are_known(tmp_path):
    run = tmp_path / "scale" / "runs" / "n010-seed0-epochs1"
    run.mkdir(parents=True)
    (run / "run.json").write_text('{"settings": {}, "model_digest": ""}')
    check_output(tmp_path / "scale", "scale")
    report = tmp_path / "report"
    (report / "tables").mkdir(parents=True)
    for name in ("report.html", "report.md"):
        (report / name).write_text("")
    with pytest.raises(ConfigError, match="expected a new folder or one of a report"):
        check_output(report, "report")
    (report / "tables" / "scores_long.csv").write_text("")
    check_output(report, "report")
