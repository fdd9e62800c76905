"""A disk that is really full: exit code 6, what was complete is intact, and it goes on."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from cli.common import assert_one_error, invoke
from faults import files_of_at_most
from helpers import ROOT, tiny_run
from synthetic import make_folder, make_items

PATHS = f"import sys; sys.path[:0] = [{str(ROOT)!r}, {str(ROOT / 'tests')!r}]\n"


def run_on_small_disk(script: str, disk: Path, *arguments: Path, kilobytes: int) -> None:
    """Run Python code that sees a small disk of its own in a folder; skip where none can be had."""
    mount = f"mount -t tmpfs -o size={kilobytes}k none {disk} && exec"
    for new in (["unshare", "-m"], ["unshare", "-Urm"]):
        if shutil.which("unshare") and not subprocess.call(
            [*new, "sh", "-c", f"{mount} true"], stderr=subprocess.DEVNULL
        ):
            command = [*new, "sh", "-c", f'{mount} "$@"', "sh", sys.executable, "-c"]
            done = subprocess.run(
                [*command, PATHS + script, str(disk), *map(str, arguments)],
                capture_output=True, text=True, check=False,
            )  # fmt: skip
            assert done.returncode == 0, done.stderr + done.stdout
            return
    pytest.skip("this machine lets nobody mount a small disk")


FILES = """
from pathlib import Path
from cqa.errors import ResourceError
from cqa.files import AppendedFile, new_folder, write_json
folder = Path(sys.argv[1])
write_json(folder / "x.json", {"old": 1})
with new_folder(folder / "x") as new:
    (new / "a.bin").write_bytes(b"old")
log = AppendedFile(folder / "log")
log.append(b"one\\n")
def json(): write_json(folder / "x.json", {"new": "x" * 2**21})
def append(): log.append(b"x" * 2**21)
def replace():
    with new_folder(folder / "x") as new:
        (new / "a.bin").write_bytes(bytes(2**21))
for act in (json, append, replace):
    try:
        act()
    except ResourceError as error:
        assert "No space left" in error.message and "free some space" in error.hint, error
    else:
        raise SystemExit(f"{act} wrote two megabytes on a disk of one")
names = sorted(path.name for path in folder.iterdir())
assert names == ["log", "x", "x.json"], names
assert (folder / "x.json").read_text() == '{\\n  "old": 1\\n}\\n'
assert (folder / "log").read_bytes() == b"one\\n"
assert (folder / "x" / "a.bin").read_bytes() == b"old"
"""


def test_files_that_were_complete_are_as_they_were(tmp_path):
    run_on_small_disk(FILES, tmp_path, kilobytes=1024)


WORK = """
from pathlib import Path
from faults import leftovers, run_contents, scores_contents
from safetensors.torch import load_file
from soak import Jobs
import cqa.train.loop, cqa.score.run
from cqa.errors import ResourceError

disk, folder = map(Path, sys.argv[1:])
jobs = Jobs(folder)
jobs.make()

def fill(spare_bytes=0):
    with open(disk / "ballast", "wb", buffering=0) as ballast:
        for size in (4096, 1):
            try:
                while True:
                    ballast.write(bytes(size))
            except OSError:
                pass
        ballast.truncate(ballast.tell() - spare_bytes)

def fails_and_goes_on(job, module, name, after, out, whole, contents):
    job(whole)
    real, calls = getattr(module, name), []
    def filling(*args, **options):
        calls.append(1)
        if len(calls) == after:
            fill()
        return real(*args, **options)
    setattr(module, name, filling)
    try:
        job(out)
    except ResourceError as error:
        assert error.exit_code == 6, error
        assert "No space left" in error.message and "free some space" in error.hint, error
    else:
        raise SystemExit(f"{name}: all was written on a full disk")
    setattr(module, name, real)
    for path in out.glob("[!.]*/*.safetensors"):
        load_file(path)
    assert not leftovers(out), leftovers(out)
    (disk / "ballast").unlink()
    job(out)
    assert contents(out) == contents(whole)

fill(spare_bytes=5 * 4096)
try:
    jobs.train(disk / "run")
except ResourceError as error:
    assert "GB of free disk for this run, got 0.00 GB" in error.message, error
else:
    raise SystemExit("training began on a full disk")
assert not (disk / "run" / "run.json").exists()
(disk / "ballast").unlink()
fails_and_goes_on(  # in the third epoch; a copy of the second is taken once the first is on disk
    jobs.train, cqa.train.loop, "take_step", 24, disk / "run", jobs.run, run_contents
)
assert (disk / "run" / "epoch-01").is_dir()
fails_and_goes_on(
    jobs.score, cqa.score.run, "score_rows", 2, disk / "scores", folder / "scores", scores_contents
)
"""


def test_training_and_scoring_end_with_6_and_go_on_to_the_same_bits(tmp_path):
    (tmp_path / "disk").mkdir()
    (tmp_path / "work").mkdir()
    run_on_small_disk(WORK, tmp_path / "disk", tmp_path / "work", kilobytes=2048)


COMMANDS = {
    "plain": ["export", "run/epoch-02", "--plain-alpha", "--out", "out"],
    "merged": ["export", "run/epoch-02", "--merge", "--out", "out"],
    "report": ["report", "scores", "--out", "out"],
    "compare": ["compare", "scores", "other", "--out", "out"],
}


@pytest.mark.parametrize("name", COMMANDS)
def test_a_file_that_may_not_grow_is_no_fault_of_what_is_read(tmp_path, monkeypatch, name):
    if COMMANDS[name][0] == "export":
        tiny_run(tmp_path)
    else:
        for folder, adapters in (("scores", [None, "epoch-02"]), ("other", [None])):
            make_folder(tmp_path / folder, items=make_items(4), adapters=adapters)
    monkeypatch.chdir(tmp_path)
    before = set(tmp_path.rglob("*"))
    with files_of_at_most(1500):
        result = invoke(*COMMANDS[name])
    assert_one_error(result, 6, "out", "expected to write, got: ", "too large", "ulimit -f")
    left = set(tmp_path.rglob("*")) - before
    assert left <= {tmp_path / "out", tmp_path / "out" / ".lock"}, left
    assert invoke(*COMMANDS[name]).exit_code == 0
    if name in ("report", "compare"):  # a later call leaves all of the earlier one, or nothing
        held = contents(tmp_path / "out")
        make_folder(tmp_path / "scores", items=make_items(5), adapters=[None, "epoch-02"])
        make_folder(tmp_path / "other", items=make_items(5), adapters=[None])
        with files_of_at_most(max(map(len, held.values())) // 2):
            assert_one_error(invoke(*COMMANDS[name]), 6, "too large")
        assert contents(tmp_path / "out") == held
        assert invoke(*COMMANDS[name]).exit_code == 0
        assert contents(tmp_path / "out") != held


def contents(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
