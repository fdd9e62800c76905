"""Files that are read whole: regular and bounded, or refused before a byte of them is read."""

import os
from pathlib import Path

import pytest

from cqa.errors import DataError, ModelError
from cqa.reading import read_bounded, read_card_head, read_object


def test_a_link_to_a_file_is_followed(tmp_path):
    (tmp_path / "file").write_bytes(b"abc")
    (tmp_path / "link").symlink_to("file")
    assert read_bounded(tmp_path / "link", ModelError) == b"abc"


def special(kind: str, path: Path) -> str:
    """Put something that is no regular file at a path; return what it is called."""
    match kind:
        case "pipe":
            os.mkfifo(path)
        case "folder":
            path.mkdir()
        case "device":
            path.symlink_to("/dev/zero")
    return kind


@pytest.mark.parametrize("kind", ["pipe", "folder", "device"])
@pytest.mark.parametrize("error", [DataError, ModelError])
def test_what_is_no_regular_file_is_refused(tmp_path, kind, error):
    path = tmp_path / "config.json"
    special(kind, path)
    with pytest.raises(error, match=f"expected a regular file, got a {kind}") as caught:
        read_object(path, error)
    assert caught.value.where == str(path)


def test_a_file_beyond_the_bound_is_refused(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"x" * 11)
    assert len(read_bounded(path, DataError, 11)) == 11
    with pytest.raises(DataError, match="expected at most 10 bytes, got more"):
        read_bounded(path, DataError, 10)


@pytest.mark.parametrize("data", [b"", b"{", b"[]", b"\xff{}", b"[" * 100_000, b"1" * 5000])
def test_what_is_no_json_object_is_refused(tmp_path, data):
    (tmp_path / "file").write_bytes(data)
    with pytest.raises(ModelError, match="expected a JSON object, got"):
        read_object(tmp_path / "file", ModelError)


def test_a_missing_file_is_none_and_a_loop_of_links_is_refused(tmp_path):
    assert read_object(tmp_path / "none", ModelError) is None
    (tmp_path / "loop").symlink_to("loop")
    with pytest.raises(ModelError, match="symbolic links"):
        read_object(tmp_path / "loop", ModelError)


@pytest.mark.parametrize(
    ("card", "head"),
    [
        (b"---\nlicense: mit\n---\n# x", {"license": "mit"}),
        (b"\n---\r\nlicense: mit\r\n---\r\n", {"license": "mit"}),
        (b"---\na: 1\n---\n\xff", {"a": 1}),
        (b"license: mit", {}),
        (b"---\nlicense: mit\n", {}),
        (b"", {}),
        (None, {}),
    ],
)
def test_only_the_head_of_a_card_is_read(tmp_path, card, head):
    if card is not None:
        (tmp_path / "README.md").write_bytes(card)
    assert read_card_head(tmp_path, DataError) == head


@pytest.mark.parametrize(
    "head", [b"{[", b"- a", b"a", b"a: \xff", b"a: &a [1]\nb: {<<: *a}", b"[" * 5000]
)
def test_a_head_that_is_no_mapping_is_refused(tmp_path, head):
    (tmp_path / "README.md").write_bytes(b"---\n" + head + b"\n---\n")
    with pytest.raises(ModelError, match="expected a card whose head is a YAML mapping") as caught:
        read_card_head(tmp_path, ModelError)
    assert caught.value.where == str(tmp_path / "README.md")


@pytest.mark.parametrize("kind", ["pipe", "folder", "device"])
def test_a_card_that_is_no_file_is_refused(tmp_path, kind):
    special(kind, tmp_path / "README.md")
    with pytest.raises(ModelError, match="expected a regular file"):
        read_card_head(tmp_path, ModelError)
