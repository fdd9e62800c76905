"""Names of files, groups and models that steer a terminal: every command shows them as text."""

import shutil
import unicodedata
from pathlib import Path

import pytest
from cli.common import invoke
from helpers import DEMO, write_lines
from hostile import STRINGS

NAME = "\x1b]0;owned\x07\x9b31m :rocket: [red]x[|red] \u202e =1+1 <b>"
UNSEEN = {"Cc", "Cf", "Cs", "Zl", "Zp"}
# No file may hold NUL or half a pair, which are refused.
GROUPS = [NAME, *(s for s in STRINGS if s.strip() and not {"\0", "\ud800"} & set(s))][:9]


def steers(text: str) -> set[str]:
    """Characters that a terminal would obey, or that nobody would see."""
    kept = "\n\u200c\u200d"
    return {c for c in text if unicodedata.category(c) in UNSEEN and c not in kept}


@pytest.fixture
def folder(tmp_path) -> Path:
    """A model and items of hostile groups, under hostile names."""
    shutil.copytree(DEMO / "model", tmp_path / f"model{NAME}")
    items = [
        {
            "id": f"{group}{k}", "context": f"It rained {k}.", "good": " She ran.",
            "bad": " She sat.", "group": group, "domain": group, "source_id": group,
        }
        for k, group in enumerate(GROUPS)
    ]  # fmt: skip
    write_lines(tmp_path / f"items{NAME}.jsonl", items)
    return tmp_path


def test_results_and_progress_hold_nothing_that_steers(folder):
    model, items = folder / f"model{NAME}", folder / f"items{NAME}.jsonl"
    given = ["--model", model, "--pairs", items]
    shards = [folder / f"shard{k}{NAME}" for k in (1, 2)]
    one, merged = folder / f"one{NAME}", folder / f"merged{NAME}"
    asked = [
        ("plan", "--pairs", items, "--adapters", NAME, "--primary", NAME, "--out", f"{one}.json"),
        ("score", *given, "--out", one),
        *(("score", *given, "--shard", f"{k}/2", "--out", s) for k, s in enumerate(shards, 1)),
        ("merge", merged, *shards),
        ("compare", one, merged, "--out", folder / f"compared{NAME}"),
        ("validate", items),
    ]
    for args in asked:
        found = invoke(*args)
        assert (found.exit_code, steers(found.stdout + found.stderr)) == (0, set()), args[0]
        assert "🚀" not in found.output
        assert found.output


def test_messages_hold_nothing_that_steers(folder):
    model, items = folder / f"model{NAME}", folder / f"items{NAME}.jsonl"
    absent = folder / f"absent{NAME}"
    asked = [
        ("plan", "--pairs", items, "--adapters", "a", "--primary", f"{NAME}?", "--out", absent),
        ("score", "--model", absent, "--pairs", items, "--out", folder / "out"),
        ("score", "--model", model, "--pairs", items, "--adapter", absent, "--out", absent),
        ("merge", folder / "out", absent),
        ("compare", absent, absent, "--out", folder / "out"),
        ("report", absent, "--out", folder / "out"),
        ("letters", "--server", "http://127.0.0.1:9", "--served-model", NAME, "--pairs", absent,
         "--out", folder / "out"),
        ("bench", "--model", absent),
        ("convert", items, folder / "out"),
    ]  # fmt: skip
    for args in asked:
        found = invoke(*args)
        assert found.exit_code in (2, 3, 4), args[0]
        assert steers(found.output) == set(), args[0]
        assert "error: " in found.stderr
        assert "owned" in found.stderr
