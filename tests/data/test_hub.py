"""Data sets of the hub that are cached: which files a name stands for."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from helpers import DEMO, write_lines

from cqa.data.hub import data_files, path_text
from cqa.data.items import read_items
from cqa.data.samples import read_samples
from cqa.errors import DataError

SHA, OTHER = "a" * 40, "b" * 40
PAIR = {"context": "It rained.", "good": " She ran.", "bad": " She sat."}
CARD = """---
configs:
- config_name: plain
  data_files:
  - {split: train, path: plain/train-*}
  - {split: test, path: plain/**/held.csv}
- config_name: items
  data_dir: items
---
# Texts
"""


def cached(home: Path, files: dict[str, str], sha: str = SHA, branch: str | None = "main") -> Path:
    """Write a data set into a cache as huggingface_hub lays it out."""
    repo = home / "hub" / "datasets--ann--lamps"
    for name, text in files.items():
        path = repo / "snapshots" / sha / name
        path.parent.mkdir(parents=True, exist_ok=True)
        blob = repo / "blobs" / f"{abs(hash((sha, name, text))):x}"
        blob.parent.mkdir(exist_ok=True)
        blob.write_text(text, encoding="utf-8")
        path.symlink_to(blob)
    if branch:
        (repo / "refs").mkdir(exist_ok=True)
        (repo / "refs" / branch).write_text(sha)
    return repo / "snapshots" / sha


@pytest.fixture
def home(tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    return tmp_path


def lines(*records: dict) -> str:
    return "".join(json.dumps(record) + "\n" for record in records)


def names_of(home: Path, named: str) -> list[str]:
    folder = home / "hub" / "datasets--ann--lamps" / "snapshots"
    return [f.relative_to(folder).as_posix()[41:] for f in data_files(Path(named))]


FILES = {
    "README.md": CARD,
    "plain/train-00000-of-00002.jsonl": lines({"prompt": "a", "response": " b"}),
    "plain/train-00001-of-00002.jsonl": lines({"prompt": "c", "response": " d"}),
    "plain/deep/er/held.csv": "prompt,response\na, b\n",
    "items/dev.jsonl": lines(PAIR),
}
SHARDS = ["plain/train-00000-of-00002.jsonl", "plain/train-00001-of-00002.jsonl"]


@pytest.mark.parametrize(
    ("named", "expected"),
    [
        ("hf://ann/lamps/plain:train", SHARDS),
        ("hf://datasets/ann/lamps/plain:train", SHARDS),
        ("hf://ann/lamps@main/plain:train", SHARDS),
        (f"hf://ann/lamps@{SHA}/plain:test", ["plain/deep/er/held.csv"]),
        ("hf://ann/lamps/items", ["items/dev.jsonl"]),
        (f"hf://datasets/ann/lamps/{SHARDS[1]}", SHARDS[1:]),
    ],
)
def test_a_name_stands_for_the_files_that_the_card_says(home, named, expected):
    cached(home, FILES)
    assert names_of(home, named) == expected


@pytest.mark.parametrize(
    ("files", "named", "expected"),
    [
        (["train.jsonl", "x-test.csv"], ":train", ["train.jsonl"]),
        (["train.jsonl", "x-test.csv"], ":test", ["x-test.csv"]),
        (["de/valid/a.jsonl", "en/valid/b.jsonl"], "/de", ["de/valid/a.jsonl"]),
        (["pairs.parquet", "LICENSE", ".gitattributes"], "", ["pairs.parquet"]),
        (["training_set.jsonl", "contest.jsonl"], "", ["training_set.jsonl"]),
    ],
)
def test_without_a_card_the_names_of_files_tell_the_split(home, files, named, expected):
    cached(home, dict.fromkeys(files, "{}"))
    assert names_of(home, f"hf://ann/lamps{named}") == expected


REFUSED = {
    "no-owner": ("hf://lamps", "owner/name"),
    "unknown": (
        "hf://ann/stoves",
        r"the data set ann/stoves in the cache, got none\n.*hf download",
    ),
    "revision": (f"hf://ann/lamps@{OTHER}", f"(?s)in the cache.*--revision {OTHER}"),
    "config": ("hf://ann/lamps/nothing", "a config of the data set, got nothing; it has `/plain`"),
    "no-config": (
        "hf://ann/lamps",
        "a config of the data set, got none; it has `/plain`, `/items`",
    ),
    "split": ("hf://ann/lamps/plain:dev", "the split `dev`, got `:train`, `:test`"),
    "splits": ("hf://ann/lamps/plain", "one split, got `:train`, `:test`"),
    "file": ("hf://datasets/ann/lamps/x.csv", "(?s)the file x.csv .* download ann/lamps x.csv"),
}


@pytest.mark.parametrize(("named", "message"), REFUSED.values(), ids=REFUSED)
def test_what_is_not_there_is_refused_with_the_command_that_caches_it(home, named, message):
    cached(home, FILES)
    with pytest.raises(DataError, match=message) as caught:
        data_files(Path(named))
    assert caught.value.where == named


def test_a_split_of_which_a_shard_is_missing_is_refused(home):
    cached(home, {k: v for k, v in FILES.items() if k != SHARDS[0]})
    with pytest.raises(DataError, match=f"(?s)got none of {SHARDS[0]}.*hf download ann/lamps"):
        data_files(Path("hf://ann/lamps/plain:train"))


def test_without_a_branch_the_only_revision_is_read_and_of_two_none(home):
    cached(home, FILES, branch=None)
    assert names_of(home, "hf://ann/lamps/plain:train") == SHARDS
    cached(home, FILES, sha=OTHER, branch=None)
    with pytest.raises(DataError, match=r"in the cache, got 2 revisions: a+, b+"):
        data_files(Path("hf://ann/lamps/plain:train"))


def test_rows_are_counted_over_all_files_of_a_split(home):
    folder = cached(home, FILES)
    path = Path("hf://ann/lamps/plain:train")
    assert path_text(path) == "hf://ann/lamps/plain:train"
    samples = read_samples(path)
    assert [(s.id, s.where) for s in samples] == [
        (f"line-{k}", f"hf://ann/lamps/plain:train:{k}") for k in (1, 2)
    ]
    bad = folder / SHARDS[1]
    bad.unlink()
    bad.write_text(lines({"prompt": "c", "response": 7}))
    with pytest.raises(DataError, match=r"^hf://ann/lamps/plain:train:2: expected text"):
        read_samples(path)
    (item,) = read_items([Path("hf://ann/lamps/items")])
    assert item.id == "items-1"


def test_parquet_is_read_by_its_own_ending(home):
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    folder = cached(home, {"README.md": "# Texts\n"})
    (folder / "data").mkdir()
    file = folder / "data" / "train-00000-of-00001.parquet"
    parquet.write_table(pyarrow.table({k: [v] for k, v in PAIR.items()}), file)
    (item,) = read_items([Path("hf://ann/lamps")])
    assert item.options == (PAIR["good"], PAIR["bad"])


def test_the_commands_read_the_cache_of_hf_home(tmp_path):
    cached(tmp_path, {"train.jsonl": lines({"prompt": "It", "response": " rained."})})
    local = write_lines(tmp_path / "p.jsonl", [PAIR])

    def run(*arguments: str) -> subprocess.CompletedProcess:
        return subprocess.run(
            [sys.executable, "-m", "cqa_fast", *arguments], capture_output=True, text=True,
            env={**os.environ, "HF_HOME": str(tmp_path)}, check=False,
        )  # fmt: skip

    shown = run("validate", "hf://ann/lamps", str(local), "--model", str(DEMO / "model"))
    assert shown.returncode == 0, shown.stderr
    assert "hf://ann/lamps: 1 prompt sample: ok" in shown.stdout
    common = ("--model", str(DEMO / "model"), "--out", str(tmp_path / "out"))
    planned = run(
        "train", "--data", "hf://ann/lamps:train", "--validation", "0", "--dry-run", *common
    )
    assert planned.returncode == 0, planned.stderr
    refused = run("score", "--pairs", "hf://ann/stoves", *common)
    assert refused.returncode == 3
    assert "hf://ann/stoves: expected the data set ann/stoves in the cache" in refused.stderr
    assert "hf download ann/stoves --repo-type dataset" in refused.stderr
