"""The digest of files: its definition, however many threads, and what ends it."""

import hashlib
import os
import time

import pytest
from helpers import tiny_checkpoint

from cqa.errors import ModelError
from cqa.model import digest, load
from cqa.model.digest import digest_files, hashing


def defined(paths) -> str:
    """The definition: names and digests of files in the order of their paths."""
    parts = [p.name.encode() + b"\0" + hashlib.sha256(p.read_bytes()).digest() for p in paths]
    return hashlib.sha256(b"".join(parts)).hexdigest()


@pytest.fixture
def files(tmp_path):
    paths = []
    for k, size in enumerate([0, 1, digest._BLOCK_BYTES, digest._BLOCK_BYTES + 1, 3_000_000]):
        paths.append(tmp_path / f"part-{k}")
        paths[-1].write_bytes(bytes([k]) * size)
    return paths


@pytest.mark.parametrize("n_threads", [1, 2, 8])
def test_threads_do_not_change_it(files, monkeypatch, n_threads):
    monkeypatch.setattr(digest, "MOST_THREADS", n_threads)
    assert digest_files(files[::-1]) == digest_files(files) == defined(files)
    assert digest_files(files[:1]) == defined(files[:1]) != defined(files[1:2])


def test_a_file_that_cannot_be_read_is_named(files):
    files[1].unlink()
    with pytest.raises(ModelError, match=rf"{files[1]}: expected a file that can be read, got: No"):
        digest_files(files)


@pytest.mark.parametrize("replaced", [False, True], ids=["written to", "replaced"])
def test_a_file_that_changes_while_it_is_read_is_named(files, replaced):
    with hashing(files) as held:
        if replaced:  # by the same bytes with the same time: whoever wrote it was not done
            other = files[4].with_name("other")
            other.write_bytes(files[4].read_bytes())
            os.utime(other, ns=(0, files[4].stat().st_mtime_ns))
            os.replace(other, files[4])
        else:
            files[4].write_bytes(bytes(2_999_999))
        with pytest.raises(ModelError, match=rf"{files[4]}: expected a file that stays as it is"):
            held()


def test_a_model_that_is_written_to_while_it_is_loaded_is_refused(tmp_path, monkeypatch):
    folder = tiny_checkpoint(tmp_path, "qwen2")
    real = load.stream

    def written(files):
        yield from real(files)
        (weights,) = set(files.values())
        os.utime(weights)

    monkeypatch.setattr(load, "stream", written)
    with pytest.raises(ModelError, match=r"safetensors: expected a file that stays as it is"):
        load.open_model(folder, "cpu", "fp32", rank_columns={})


def test_work_that_fails_does_not_wait_for_it(tmp_path):
    endless = tmp_path / "endless"
    endless.touch()
    os.truncate(endless, 1 << 42)  # of holes: days of hashing
    began = time.perf_counter()
    with pytest.raises(RuntimeError, match="of the work"), hashing([endless]):
        raise RuntimeError("of the work")
    assert time.perf_counter() - began < 60
