"""Shards of a job: dealt by id, scored apart, merged to the bytes of one run, or refused."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from cqa_fast.main import main
from faults import assert_every_failure_is_continued, no_space, untimed
from helpers import read_lines, tiny_run, write_lines
from observers import crash, on

from cqa.errors import ConfigError, CqaError, DataError, ModelError
from cqa.family import read_family
from cqa.schema.capabilities import Capabilities
from cqa.schema.events import RowsWritten
from cqa.score.config import PrescreenConfig, ScoreConfig
from cqa.score.engines import engine_of
from cqa.score.merge import merge
from cqa.score.prescreen import prescreen
from cqa.score.run import checked_items, score
from cqa.score.shard import Shard, read_shard

WORDS = ("lamp", "door", "she", "was lit", "waited by", "a", "the", "and")
PAIRS = [
    {
        "id": f"p{k}",
        "group": ("literary", "factual")[k % 2],
        "context": f"the {WORDS[k % 8]} {k}",
        "good": f" {WORDS[(k + 3) % 8]} é{k}",
        "bad": f" {WORDS[(k + 5) % 8]}",
        "extra": k,
    }
    for k in range(11)
]
LONG = {"id": "long", "group": "literary", "context": "lamp " * 300, "good": " a", "bad": " b"}
POINTS = [
    {"id": "o1", "context": "the door", "options": [" a", " b", " c"], "answer": 1},
    {"id": "o2", "context": "a door", "options": [" a", " b"], "answer": 0, "expert": [0.75, 0.25]},
]
TEXTS = [{"context": "the lamp was", "continuation": f" lit {k}"} for k in range(3)]  # without ids


@pytest.fixture(scope="module")
def inputs(tmp_path_factory) -> Path:
    """A folder with a model, a training run of two epochs, and items."""
    folder = tiny_run(tmp_path_factory.mktemp("inputs"))
    write_lines(folder / "pairs.jsonl", [*PAIRS[:6], LONG, *PAIRS[6:]])
    write_lines(folder / "points.jsonl", [*POINTS, LONG, *PAIRS])
    write_lines(folder / "texts.jsonl", TEXTS)
    return folder


def config_of(inputs: Path, out: Path, **changes: Any) -> ScoreConfig:
    settings = {
        "pairs": (inputs / "pairs.jsonl",),
        "continuations": (inputs / "texts.jsonl",),
        "run": (inputs / "run",),
        "batch_tokens": 30,
        "tokens": True,
        "too_long": "drop",
        "primary": "literary",
        **changes,
    }
    return ScoreConfig(model=str(inputs / "model"), out=out, device="cpu", **settings)


def points_of(inputs: Path, out: Path, **changes: Any) -> PrescreenConfig:
    settings = {"pairs": (inputs / "points.jsonl",), "too_long": "drop", "budget": 3, **changes}
    return PrescreenConfig(model=str(inputs / "model"), out=out, device="cpu", **settings)


def contents(folder: Path) -> dict[str, object]:
    """Every file of a folder as bytes; of meta.json all but the times of this run."""
    found: dict[str, object] = {
        path.name: path.read_bytes() for path in folder.iterdir() if path.name != ".lock"
    }
    meta = json.loads((folder / "meta.json").read_text())
    meta["models"] = [untimed(model) for model in meta["models"]]
    return {**found, "meta.json": json.dumps(meta)}


@pytest.fixture(scope="module")
def whole(inputs, tmp_path_factory) -> dict[str, object]:
    """What one run over all items leaves in the folder `out`."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("whole"))
        score(config_of(inputs, Path("out")))
        return contents(Path("out"))


@pytest.fixture(scope="module")
def three(inputs, tmp_path_factory) -> Path:
    """A folder with three complete shards, `s1` to `s3`."""
    folder = tmp_path_factory.mktemp("three")
    for k in (1, 2, 3):
        score(config_of(inputs, folder / f"s{k}", shard=f"{k}/3"))
    return folder


def shards_of(folder: Path, *numbers: int) -> list[Path]:
    return [folder / f"s{k}" for k in numbers or (1, 2, 3)]


def copied(three: Path, tmp_path: Path) -> list[Path]:
    """Three shards that may be changed."""
    shutil.copytree(three, tmp_path / "three")
    return shards_of(tmp_path / "three")


@pytest.mark.parametrize("count", [1, 3, 7])
def test_merged_folder_is_byte_equal_to_one_runs(inputs, whole, tmp_path, monkeypatch, count):
    monkeypatch.chdir(tmp_path)
    folders = [Path(f"shard-{k}") for k in range(1, count + 1)]
    for k, folder in enumerate(folders, start=1):
        score(config_of(inputs, folder, shard=f"{k}/{count}"))
    merged = merge(Path("out"), folders[::-1])
    assert contents(Path("out")) == whole
    assert merged.scores.to_json() == json.loads(whole["summary.json"])
    assert merged.scores.n_items == 14
    assert sum(len(read_lines(folder / "items.jsonl")) for folder in folders) == 14
    merge(Path("out"), folders)  # again
    assert contents(Path("out")) == whole
    again = score(config_of(inputs, Path("out")))
    assert {**contents(Path("out")), "meta.json": 0} == {**whole, "meta.json": 0}
    assert again.to_json() == merged.scores.to_json()


def test_there_may_be_more_shards_than_items(inputs, tmp_path, monkeypatch):
    pairs = write_lines(tmp_path / "two.jsonl", PAIRS[:2])
    few = {"pairs": (pairs,), "continuations": (), "epochs": (2,), "primary": None}
    (tmp_path / "one").mkdir()
    monkeypatch.chdir(tmp_path / "one")
    score(config_of(inputs, Path("out"), **few))
    expected = contents(Path("out"))
    monkeypatch.chdir(tmp_path)
    folders = [Path(f"s{k}") for k in range(1, 6)]
    for k, folder in enumerate(folders, start=1):
        score(config_of(inputs, folder, shard=f"{k}/5", **few))
    assert [(folder / "scores.jsonl").stat().st_size for folder in folders].count(0) >= 3
    merge(Path("out"), folders)
    assert contents(Path("out")) == expected


@pytest.mark.parametrize("killed", [1, 2, 3])
def test_shard_that_was_killed_and_resumed_changes_no_byte(
    inputs, whole, tmp_path, monkeypatch, killed
):
    monkeypatch.chdir(tmp_path)
    folders = shards_of(tmp_path)
    for k, folder in enumerate(folders, start=1):
        config = config_of(inputs, folder, shard=f"{k}/3")
        if k == killed:
            with pytest.raises(KeyboardInterrupt):
                score(config, on_event=on(RowsWritten, 2, crash))
            with pytest.raises(DataError, match=f"^{folder}: expected shard {k}/3 to be complete"):
                merge(Path("out"), [folder])
        score(config)
    merge(Path("out"), folders)
    assert contents(Path("out")) == whole


def test_order_of_the_files_does_not_move_an_item_to_another_shard(inputs, tmp_path):
    mixed = write_lines(tmp_path / "mixed.jsonl", PAIRS[::-1])
    plain = write_lines(tmp_path / "plain.jsonl", PAIRS)
    for k in (1, 2):
        held = []
        for pairs in (plain, mixed):
            out = tmp_path / f"{pairs.stem}-{k}"
            score(config_of(inputs, out, pairs=(pairs,), continuations=(), shard=f"{k}/2"))
            held.append({item["id"] for item in read_lines(out / "items.jsonl")})
        assert held[0] == held[1]
        assert held[0] == {p["id"] for p in PAIRS if Shard(k, 2).holds(p["id"])}
        assert 0 < len(held[0]) < len(PAIRS)


def test_later_passes_of_a_shard_parse_its_own_lines_alone(inputs, tmp_path):
    pairs = write_lines(tmp_path / "pairs.jsonl", PAIRS)
    more = {"pairs": (pairs,), "continuations": (), "run": (), "shard": "1/2"}
    config = config_of(inputs, tmp_path / "out", **more)
    folder = inputs / "model"
    items = checked_items(config, folder, engine_of(config, folder, []))
    ours = [item.id for item in items]
    assert ours == [p["id"] for p in PAIRS if Shard(1, 2).holds(p["id"])]
    assert 0 < items.part.n_items == len(ours) < len(PAIRS)
    lines = pairs.read_text().splitlines(keepends=True)
    theirs = next(k for k, p in enumerate(PAIRS) if p["id"] not in ours)
    pairs.write_text("".join([*lines[:theirs], "no item\n", *lines[theirs + 1 :]]))
    assert [item.id for item in items] == ours
    mine = next(k for k, p in enumerate(PAIRS) if p["id"] in ours)
    pairs.write_text(
        "".join([*lines[:mine], lines[mine].replace("the ", "a "), *lines[mine + 1 :]])
    )
    with pytest.raises(DataError, match="the items as they were at the start, got others"):
        list(items)
    pairs.write_text("".join(lines[:-4]))
    with pytest.raises(DataError, match="the items as they were at the start, got others"):
        list(items)


@pytest.mark.parametrize("count", [1, 3])
def test_merged_prescreening_is_byte_equal_to_one_runs(inputs, tmp_path, monkeypatch, count):
    (tmp_path / "one").mkdir()
    monkeypatch.chdir(tmp_path / "one")
    summary = prescreen(points_of(inputs, Path("out")))
    expected = contents(Path("out"))
    monkeypatch.chdir(tmp_path)
    folders = [Path(f"shard-{k}") for k in range(1, count + 1)]
    for k, folder in enumerate(folders, start=1):
        assert prescreen(points_of(inputs, folder, shard=f"{k}/{count}")) is None
        assert not (folder / "prescreen.jsonl").exists()
    merged = merge(Path("out"), folders)
    assert contents(Path("out")) == expected
    assert merged.points == summary
    assert "long" in merged.points.too_long


def test_points_whose_file_has_changed_are_not_ranked(inputs, tmp_path):
    pairs = write_lines(tmp_path / "points.jsonl", POINTS)
    for k in (1, 2):
        prescreen(points_of(inputs, tmp_path / f"s{k}", pairs=(pairs,), shard=f"{k}/2"))
    write_lines(pairs, POINTS[:1])
    with pytest.raises(DataError, match=f"^{pairs}: expected the points of the shards, got others"):
        merge(tmp_path / "out", shards_of(tmp_path, 1, 2))
    assert not (tmp_path / "out").exists()


def refused(folders: list[Path], error: type[CqaError], message: str) -> CqaError:
    """Assert that shards are refused before anything is written."""
    out = folders[0].parent / "out"
    with pytest.raises(error, match=message) as caught:
        merge(out, folders)
    assert not out.exists()
    return caught.value


def test_missing_and_overlapping_shards_are_refused_by_name(three, tmp_path):
    shards = copied(three, tmp_path)
    refused(shards[:2], ConfigError, r"^expected all 3 shards, got 2, without 3/3\nhint: score")
    refused(shards[1:2], ConfigError, "got 1, without 1/3, 3/3")
    twin = tmp_path / "three" / "twin"
    shutil.copytree(shards[1], twin)
    refused(
        [*shards, twin], ConfigError, f"^{twin}: expected each shard once, got 2/3 in {shards[1]}"
    )
    refused([*shards, shards[0]], ConfigError, "expected each shard once, got 1/3")


def test_shards_of_another_number_of_shards_are_refused(inputs, three, tmp_path):
    other = tmp_path / "other"
    score(config_of(inputs, other, shard="3/4"))
    message = f"^{other}: expected shards of 3, as {three / 's1'} is, got 3/4"
    with pytest.raises(ConfigError, match=message):
        merge(tmp_path / "out", [*shards_of(three, 1, 2), other])


FOREIGN: dict[str, tuple[dict[str, Any], str]] = {
    "items": {"pairs": "fewer"}, "models": {"epochs": (1,)},
    "boundary": {"boundary": "joint"}, "null": {"null_token": "<|endoftext|>", "nulls": 1},
    "settings": {"margin": 0.5}, "batch": {"batch_tokens": 31},
}  # fmt: skip
EXPECTED = {
    "items": "expected the items of the job as in {first}, got another",
    "models": "expected the models as in {first}, got another",
    "boundary": r"expected the base \(boundary\) as in {first}",
    "null": r"expected the base \(null2_ids\) as in {first}",
    "settings": "expected --margin as in {first}, got another",
    "batch": "expected --batch-tokens as in {first}, got another",
}


@pytest.mark.parametrize("kind", FOREIGN)
def test_foreign_shards_are_refused_by_name_and_reason(inputs, three, tmp_path, kind):
    changes = dict(FOREIGN[kind])
    if changes.get("pairs") == "fewer":
        changes["pairs"] = (write_lines(tmp_path / "fewer.jsonl", PAIRS[:9]),)
    other = tmp_path / "other"
    score(config_of(inputs, other, shard="2/3", **changes))
    first = three / "s1"
    with pytest.raises(ModelError, match=f"^{other}: {EXPECTED[kind].format(first=first)}"):
        merge(tmp_path / "out", [first, other, three / "s3"])
    assert not (tmp_path / "out").exists()


def edit(path: Path, change: Callable[[dict], object]) -> None:
    value = json.loads(path.read_text())
    change(value)
    path.write_text(json.dumps(value))


def test_shard_of_a_base_that_was_spread_is_one_of_the_job(three, whole, tmp_path, monkeypatch):
    shards = copied(three, tmp_path)
    edit(shards[1] / "meta.json", lambda meta: meta["settings"].update({"shard-base": True}))
    monkeypatch.chdir(tmp_path)
    merge(Path("out"), shards)
    assert contents(Path("out")) == whole


@pytest.mark.parametrize("key", ["device", "versions"])
def test_shard_of_another_machine_is_refused(three, tmp_path, key):
    shards = copied(three, tmp_path)
    other = {"device": "riscv64", "versions": {"torch": "1.0"}}[key]
    edit(shards[1] / "meta.json", lambda meta: meta.update({key: other}))
    refused(shards, ModelError, f"^{shards[1]}: expected {key} as in {shards[0]}, got another")


def test_half_done_shard_is_refused_with_the_command_that_continues_it(inputs, three, tmp_path):
    shards = copied(three, tmp_path)
    rows = shards[1] / "scores.jsonl"
    lines = rows.read_bytes().splitlines(keepends=True)
    n = len(lines) // 3
    rows.write_bytes(b"".join(lines[: n + 1]))
    error = refused(
        shards,
        DataError,
        f"^{shards[1]}: expected shard 2/3 to be complete, got 1 of {n} rows under epoch-01\n"
        "hint: continue with: cqa-fast score --primary literary --model ",
    )
    assert f"--out {shards[1]} --shard 2/3" in str(error.command)
    assert CliRunner().invoke(main, str(error.command).split()[1:]).exit_code == 0
    assert rows.read_bytes() == b"".join(lines)
    rows.write_bytes(b"".join(lines)[:-9])
    refused(shards, DataError, "expected a whole last line, got a torn one")


def test_half_done_shard_of_prescreen_is_refused(inputs, tmp_path):
    prescreen(points_of(inputs, tmp_path / "s1", shard="1/1"))
    (tmp_path / "s1" / "prescreen.json").unlink()
    error = refused([tmp_path / "s1"], DataError, "expected shard 1/1 to be complete, got one that")
    assert error.hint is not None


def test_shard_of_which_nothing_is_scored_yet_is_refused(three, tmp_path):
    shards = copied(three, tmp_path)
    (shards[2] / "meta.json").unlink()
    refused(shards, DataError, f"^{shards[2]}: expected shard 3/3 to be complete, got one of which")


def test_folders_that_are_no_shards_are_refused(inputs, three, tmp_path):
    shards = copied(three, tmp_path)
    (shards[0] / "shard.json").unlink()
    refused(shards, DataError, f"^{shards[0]}: expected a folder that --shard filled, got one with")
    gone = tmp_path / "three" / "gone"
    refused([gone], DataError, f"^{gone}: expected a folder that --shard filled, got no such fol")


@pytest.mark.parametrize("name", ["scores.jsonl", "items.jsonl"])
def test_damaged_lines_are_refused(three, tmp_path, name):
    shards = copied(three, tmp_path)
    path = shards[1] / name
    old, new = {"items.jsonl": (b"the ", b"thy "), "scores.jsonl": (b"-1", b"-2")}[name]
    assert old in path.read_bytes()
    path.write_bytes(path.read_bytes().replace(old, new))
    refused(shards, DataError, f"^{path}:.*expected the .* as it was written")


def drop_last(manifest: dict) -> None:
    manifest["places"].pop()


def swap(manifest: dict) -> None:
    manifest["places"][-1] += 1


def far(manifest: dict) -> None:
    manifest["places"][-1] = 10**15


def other_digest(manifest: dict) -> None:
    manifest["left_out"][0]["item_key"] = "0" * 16


@pytest.mark.parametrize("change", [drop_last, swap, far, other_digest])
def test_damaged_places_are_refused(three, tmp_path, change):
    shards = copied(three, tmp_path)
    for folder in shards:
        if (
            change is other_digest
            and not json.loads((folder / "shard.json").read_text())["left_out"]
        ):
            continue
        edit(folder / "shard.json", change)
    refused(shards, DataError, "expected .*the items of (shard ./3 of )?the job, got others")


def test_items_of_another_shard_in_this_one_are_refused(three, tmp_path):
    shards = copied(three, tmp_path)
    for name in ("scores.jsonl", "items.jsonl", "meta.json"):
        shutil.copy(shards[0] / name, shards[1] / name)
    refused(shards, DataError, f"^{shards[1]}: expected ")


def test_rows_of_an_earlier_command_are_not_lost_in_silence(inputs, tmp_path):
    out = tmp_path / "s1"
    score(config_of(inputs, out, shard="1/1", epochs=(1,)))
    score(config_of(inputs, out, shard="1/1", epochs=(2,)))
    error = refused([out], DataError, f"^{out}: expected the rows of one command, got those of mod")
    assert "all adapters in one command" in str(error.hint)
    score(config_of(inputs, out, shard="1/1"))
    merge(tmp_path / "out", [out])


def test_adapters_that_come_later_merge_to_the_bytes_of_one_command(
    inputs, whole, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    for k in (1, 2):
        for changes in ({"epochs": (2,), "tokens": False}, {}):
            score(config_of(inputs, Path(f"s{k}"), shard=f"{k}/2", **changes))
    merge(Path("out"), shards_of(Path(), 1, 2))
    assert contents(Path("out")) == whole


def test_folder_of_a_shard_is_kept_for_it(inputs, three, tmp_path):
    shards = copied(three, tmp_path)
    before = contents(shards[0])
    for changes, message in (
        ({"shard": "2/3"}, "expected a new folder or one of shard 2/3 of scores, got shard 1/3 of"),
        ({"shard": "1/4"}, "got shard 1/3 of scores"),
        ({"shard": "1/3", "continuations": ()}, "got that shard of other items"),
        ({}, "expected a new folder or one of scores, got one of a shard"),
    ):
        with pytest.raises(ConfigError, match=f"^{shards[0]}: .*{message}"):
            score(config_of(inputs, shards[0], **changes))
    with pytest.raises(
        ConfigError, match=r"one of shard 1/3 of prescreen, got shard 1/3 of scores"
    ):
        prescreen(points_of(inputs, shards[0], shard="1/3"))
    assert contents(shards[0]) == before


def test_statistics_of_a_part_are_not_made(inputs, three):
    assert not (three / "s1" / "summary.json").exists()
    with pytest.raises(
        DataError, match=r"expected the scores of all items, got those of shard 1/3"
    ):
        read_family(three / "s1")


def test_folder_with_other_scores_is_not_replaced(inputs, three, tmp_path):
    out = tmp_path / "out"
    score(config_of(inputs, out, epochs=(1,)))
    before = contents(out)
    with pytest.raises(ConfigError, match=f"^{out}: expected a new folder, or one that these shar"):
        merge(out, shards_of(three))
    assert contents(out) == before


def test_out_is_none_of_the_shards(three, tmp_path):
    shards = copied(three, tmp_path)
    with pytest.raises(ConfigError):
        merge(shards[0], shards)
    with pytest.raises(ConfigError, match="SHARD"):
        merge(tmp_path / "three", shards)


@pytest.mark.parametrize("error", [no_space, KeyboardInterrupt], ids=["full-disk", "second-ctrl-c"])
def test_merge_whose_write_fails_anywhere_ends_cleanly_and_is_continued(three, tmp_path, error):
    def work(out: Path) -> None:
        merge(out, shards_of(three))

    def held(out: Path) -> dict[str, object]:
        found = contents(out)
        for name in ("meta.json", "summary.json"):
            found[name] = str(found[name]).replace(str(out), "out")
        return found

    assert_every_failure_is_continued(tmp_path, error, begin=work, go_on=work, contents=held)


def test_what_a_server_was_found_to_give_is_kept(three, tmp_path):
    shards = copied(three, tmp_path)
    found = Capabilities(
        server="http://localhost:8000", served_model="m", root=None, max_model_tokens=None,
        route="echo", probes={"repeat": "passed"}, probe_ids=(1, 2), probe_logp_nats=(-1.5,),
        drift_repeat_nats=0.0, drift_prefix_nats=0.0, drift_temperature_nats=0.0, change_nats=2.0,
    )  # fmt: skip
    for shard in shards:
        (shard / "capabilities.json").write_text(json.dumps(found.to_json()))
    merge(tmp_path / "out", shards)
    held = json.loads((tmp_path / "out" / "capabilities.json").read_text())
    assert held == found.to_json()


def test_job_none_of_whose_items_fits_is_refused(inputs, tmp_path):
    pairs = write_lines(tmp_path / "long.jsonl", [LONG])
    for k in (1, 2):
        config = config_of(inputs, tmp_path / f"s{k}", pairs=(pairs,), continuations=())
        score(ScoreConfig(**{**vars(config), "shard": f"{k}/2", "run": (), "primary": None}))
    refused(shards_of(tmp_path, 1, 2), DataError, "expected an item of at most 256 tokens, got on")


def test_overlong_item_is_refused_by_its_own_shard(inputs, tmp_path):
    for k in (1, 2):
        config = config_of(inputs, tmp_path / f"s{k}", shard=f"{k}/2", too_long="refuse")
        if Shard(k, 2).holds("long"):
            with pytest.raises(DataError, match="in item `long`"):
                score(config)
            assert not config.out.exists()
        else:
            score(config)


@pytest.mark.parametrize(
    "text", ["0/3", "4/3", "1", "1/0", "a/b", "1/3/5", "-1/3", "1/1000000", ""]
)
def test_shard_that_is_none_is_refused(inputs, tmp_path, text):
    with pytest.raises(ConfigError, match="expected shard as i/K with i from 1 to K"):
        config_of(inputs, tmp_path / "out", shard=text)


def test_dealing_is_by_sha256_of_the_id():
    assert [k for k in range(1, 8) if Shard(k, 7).holds("p1")] == [5]
    assert read_shard("03/08") == Shard(3, 8)
    counts = [sum(Shard(k, 4).holds(f"item-{n}") for n in range(4000)) for k in range(1, 5)]
    assert sum(counts) == 4000
    assert all(900 < count < 1100 for count in counts)


def test_command_merges_and_prints_the_table(inputs, three, tmp_path):
    shards = list(map(str, shards_of(three)))
    done = CliRunner().invoke(main, ["merge", str(tmp_path / "out"), *shards])
    assert done.exit_code == 0, done.stderr
    assert done.stdout.startswith("literary: 6 items")
    done = CliRunner().invoke(main, ["merge", str(tmp_path / "out"), *shards, "--json"])
    assert json.loads(done.stdout)["groups"].keys() == {"literary", "factual"}
    done = CliRunner().invoke(main, ["merge", str(tmp_path / "other"), shards[0]])
    assert done.exit_code == 2
    assert done.stderr.startswith("error: expected all 3 shards, got 1, without 2/3, 3/3")
