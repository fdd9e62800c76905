"""The digest of the code follows the source that computes, and no other."""

import shutil

import pytest
import torch
from helpers import ROOT

from cqa import identity
from cqa.identity import code_digest, versions

PARTS = ("score/scorer.py", "data/items.py")


@pytest.fixture
def package(tmp_path, monkeypatch):
    """A copy of the package to change."""
    copy = tmp_path / "cqa"
    shutil.copytree(ROOT / "cqa", copy, ignore=shutil.ignore_patterns("assets", "__pycache__"))
    monkeypatch.setattr(identity, "PACKAGE", copy)
    code_digest.cache_clear()
    yield copy
    code_digest.cache_clear()


def digest() -> str:
    code_digest.cache_clear()
    return code_digest(*PARTS)


@pytest.mark.parametrize(
    "name",
    ["layout.py", "kernels/rope.py", "model/decoder.py", "data/tokenizer.py", "score/scorer.py"],
)
def test_one_sign_in_source_that_computes_is_another_digest(package, name):
    before = digest()
    path = package / name
    path.write_text(path.read_text() + "#")
    assert digest() != before


def test_file_that_is_added_renamed_or_compiled_anew_is_another_digest(package):
    seen = {digest()}
    (package / "kernels" / "new.py").write_text("")
    seen.add(digest())
    (package / "kernels" / "new.py").rename(package / "kernels" / "other.py")
    seen.add(digest())
    (package / "_C.so").write_bytes(b"other")
    seen.add(digest())
    assert len(seen) == 4


@pytest.mark.parametrize("name", ["report/page.py", "doctor.py", "train/loop.py"])
def test_source_that_has_no_part_in_it_is_not_counted(package, name):
    before = digest()
    (package / name).write_text("")
    assert digest() == before


def test_another_torch_is_another_digest(package, monkeypatch):
    before = digest()
    monkeypatch.setattr(identity, "version", lambda name: "0.0")
    assert digest() != before


def test_the_build_of_torch_is_part_of_its_version(monkeypatch):
    monkeypatch.setattr(torch, "__version__", "2.11.0+cu130")
    before = digest()
    assert versions()["torch"] == "2.11.0+cu130"
    monkeypatch.setattr(torch, "__version__", "2.11.0+cpu")
    assert digest() != before


def test_versions_are_those_of_all_that_computes():
    held = versions()
    assert {"cqa_fast", "python", "torch", "tokenizers", "safetensors", "numpy"} < held.keys()
    assert all(held.values())
