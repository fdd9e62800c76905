"""Ids are told apart in memory that does not hold them."""

import tracemalloc

import pytest
from helpers import write_lines
from hypothesis import given, settings
from hypothesis import strategies as st

from cqa.data import unique
from cqa.data.items import parse_pair
from cqa.data.unique import Fingerprints, UniqueIds, each_once, line_id
from cqa.errors import DataError

PAIR = {"context": "It rained.", "good": " She ran.", "bad": " She sat."}


@settings(max_examples=60, deadline=None)
@given(st.lists(st.text(st.characters(exclude_categories=["Cs"]), max_size=3), max_size=60))
def test_it_is_a_set_of_texts(texts):
    ours, truth = Fingerprints(), set()
    for text in texts:
        assert (text in ours) == (text in truth)
        assert ours.add(text) == (text not in truth)
        truth.add(text)
        assert len(ours) == len(truth)
    assert all(text in ours for text in truth)
    asked = [*texts, "longer than any"]
    assert list(ours.have(asked)) == [text in truth for text in asked]


def test_nothing_is_lost_when_the_table_doubles():
    ours = Fingerprints()
    texts = [f"item-{i}" for i in range(20_000)]
    assert all(ours.add(text) for text in texts)
    assert len(ours) == 20_000
    assert all(text in ours for text in texts)
    assert not any(f"other-{i}" in ours for i in range(20_000))


def test_a_long_id_takes_no_more_than_a_short_one():
    tracemalloc.start()
    ours = Fingerprints()
    for i in range(50_000):
        ours.add(f"{i}" + "x" * 1000)
    held, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert held / len(ours) < 24
    assert peak / len(ours) < 36


def test_an_id_that_comes_again_is_refused_and_the_first_named(tmp_path):
    files = [
        write_lines(tmp_path / "a.jsonl", [{"id": "p"}, {"id": "q"}]),
        write_lines(tmp_path / "b.jsonl", [{"id": "r"}, {"id": "q"}]),
    ]
    ids = UniqueIds(line_id)
    for path, names in zip(files, ("pq", "r"), strict=True):
        for number, name in enumerate(names, start=1):
            ids.add(name, f"{path}:{number}")
    message = (
        f"^{files[1]}:2: expected each id once, got `q` again\nhint: first seen at {files[0]}:2$"
    )
    with pytest.raises(DataError, match=message):
        ids.add("q", f"{files[1]}:2")


def test_a_file_that_is_read_twice_is_refused(tmp_path):
    file = write_lines(tmp_path / "a.jsonl", [{"id": "p"}, {"id": "q"}])
    ids = UniqueIds(line_id)
    ids.add("p", f"{file}:1")
    ids.add("q", f"{file}:2")
    with pytest.raises(DataError, match=f"got `p` again\nhint: first seen at {file}:1$"):
        ids.add("p", f"{file}:1")


def test_the_line_that_names_an_unnamed_record_is_its_id_too(tmp_path):
    file = write_lines(tmp_path / "a.jsonl", [{}, {"id": "line-1"}])
    ids = UniqueIds(line_id)
    ids.add("line-1", f"{file}:1")
    with pytest.raises(DataError, match=f"hint: first seen at {file}:1$"):
        ids.add("line-1", f"{file}:2")


def test_two_ids_of_one_fingerprint_are_told_apart_by_reading_again(tmp_path, monkeypatch):
    monkeypatch.setattr(unique, "fingerprint", lambda text: 5)
    file = write_lines(tmp_path / "a.jsonl", [{"id": "a"}, {"id": "b"}, {"id": "a"}])
    ids = UniqueIds(line_id)
    ids.add("a", f"{file}:1")
    ids.add("b", f"{file}:2")
    with pytest.raises(DataError, match="got `a` again"):
        ids.add("a", f"{file}:3")


def test_records_whose_id_came_before_stop_the_reading_or_are_left_out(tmp_path):
    file = write_lines(tmp_path / "a.jsonl", [{"id": name} for name in "pqpr"])
    items = [parse_pair({**PAIR, "id": name}, f"{file}:{n}") for n, name in enumerate("pqpr", 1)]
    again = f"^{file}:3: expected each id once, got `p` again\nhint: first seen at {file}:1$"
    kept = each_once(items, name=line_id)
    assert [next(kept).id, next(kept).id] == ["p", "q"]
    with pytest.raises(DataError, match=again):
        next(kept)
    errors: list[DataError] = []
    assert [item.id for item in each_once(items, errors.append, name=line_id)] == ["p", "q", "r"]
    assert [error.where for error in errors] == [f"{file}:3"]
