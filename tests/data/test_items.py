"""Evaluation items: what a line becomes, and what is refused with its place."""

import json
from pathlib import Path

import pytest
from helpers import write_lines
from hypothesis import given, settings
from hypothesis import strategies as st

from cqa.data.items import Item, parse_continuation, parse_pair, read_items
from cqa.data.unique import each_once, file_line_id
from cqa.errors import DataError

PAIR = {"id": "p", "context": "It rained.", "good": " She ran.", "bad": " She sat."}
OPTIONS = {"id": "o", "context": "It rained, so", "options": [" a", " b", " c"], "answer": 2}
TEXT = {"id": "t", "context": "It rained.", "continuation": " She ran."}
KINDS = {"pair": PAIR, "options": OPTIONS, "continuation": TEXT}
LABELS = {
    "group": "literary",
    "domain": "novel",
    "lang": "en",
    "source_id": "book-1",
    "published_at": "1923-05-01",
    "licence": "CC0",
}


@pytest.fixture
def file(tmp_path) -> Path:
    return tmp_path / "items.jsonl"


def read(file: Path, *, continuations: bool = False) -> list[Item]:
    return list(read_items([file], continuations=continuations))


def read_one(file: Path, record: dict) -> Item:
    (item,) = read(write_lines(file, [record]), continuations="continuation" in record)
    return item


def line(record: object) -> bytes:
    return json.dumps(record).encode()


def without(record: dict, key: str) -> dict:
    return {k: v for k, v in record.items() if k != key}


def test_a_pair_has_the_good_option_first(file):
    item = read_one(file, PAIR)
    assert (item.id, item.kind, item.context) == ("p", "pair", "It rained.")
    assert (item.options, item.answer) == ((" She ran.", " She sat."), 0)
    assert [item.role(k) for k in range(2)] == ["good", "bad"]


@pytest.mark.parametrize("answer", [0, 1, 2])
def test_several_options_keep_their_order_and_one_is_right(file, answer):
    item = read_one(file, {**OPTIONS, "answer": answer})
    assert (item.kind, item.options, item.answer) == ("options", (" a", " b", " c"), answer)
    assert [item.role(k) for k in range(3)].index("right") == answer
    assert [item.role(k) for k in range(3)].count("wrong") == 2


def test_a_continuation_is_one_option_without_an_answer(file):
    item = read_one(file, TEXT)
    assert (item.kind, item.options, item.answer) == ("continuation", (" She ran.",), None)
    assert item.role(0) == "continuation"


@pytest.mark.parametrize("kind", KINDS)
def test_labels_are_kept(file, kind):
    item = read_one(file, {**KINDS[kind], **LABELS})
    assert item.labels == LABELS
    assert item.group == "literary"
    assert item.extra == {}


@pytest.mark.parametrize("kind", KINDS)
def test_unknown_keys_are_kept_as_they_are(file, kind):
    extra = {"source": "x", "score": 0.5, "tags": ["a", {"b": None}], "flag": False}
    item = read_one(file, {**KINDS[kind], **extra})
    assert item.extra == extra
    assert item.labels == {}


@pytest.mark.parametrize("group", [{}, {"group": None}], ids=["absent", "null"])
def test_an_item_without_a_group_is_ungrouped(file, group):
    item = read_one(file, {**PAIR, **group})
    assert item.group == "ungrouped"
    assert item.labels == {}


def test_pairs_and_options_share_a_file_and_know_their_lines(file):
    items = read(write_lines(file, [PAIR, OPTIONS]))
    assert [item.kind for item in items] == ["pair", "options"]
    assert [item.where for item in items] == [f"{file}:1", f"{file}:2"]


def test_files_are_read_in_the_order_given(tmp_path):
    first = write_lines(tmp_path / "z.jsonl", [PAIR])
    second = write_lines(tmp_path / "a.jsonl", [OPTIONS])
    assert [item.id for item in read_items([first, second])] == ["p", "o"]


@given(st.tuples(*[st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1)] * 3))
@settings(deadline=None)
def test_any_text_is_read_back_to_the_last_character(tmp_path_factory, texts):
    context, good, bad = texts[0], texts[1], texts[2] + texts[1] + "."
    file = tmp_path_factory.getbasetemp() / "any.jsonl"
    item = read_one(file, {**PAIR, "context": context, "good": good, "bad": bad})
    assert (item.context, *item.options) == (context, good, bad)


WORDS = ["id", "context", "good", "bad", "options", "answer", "continuation", "group", "x"]
ANY = st.recursive(
    st.none() | st.booleans() | st.integers(-2, 3) | st.floats() | st.text(max_size=3),
    lambda v: st.lists(v, max_size=3) | st.dictionaries(st.text(max_size=2), v, max_size=2),
    max_leaves=5,
)
TEXTLIKE = st.sampled_from(["a", " b", "", "\0", "\ud800", "1", "在"])


CHANGES = st.dictionaries(
    st.sampled_from(WORDS), ANY | TEXTLIKE | st.lists(TEXTLIKE, max_size=3), max_size=2
)


@given(st.sampled_from([PAIR, OPTIONS, TEXT]), CHANGES, st.sets(st.sampled_from(WORDS), max_size=1))
@settings(deadline=None, max_examples=400)
def test_any_object_is_an_item_that_can_be_scored_or_an_error_with_its_place(base, changes, gone):
    record = {key: value for key, value in {**base, **changes}.items() if key not in gone}
    parse = parse_continuation if "continuation" in base else parse_pair
    try:
        item, refused = parse(record, "x.jsonl:7"), None
    except DataError as error:
        item, refused = None, error
    if refused is not None:
        assert str(refused).startswith("x.jsonl:7: expected ")
        return
    texts = (item.id, item.context, *item.options)
    assert all(text.encode() for text in texts)
    assert len(set(item.options)) == len(item.options)
    if parse is parse_continuation:
        assert (len(item.options), item.answer) == (1, None)
    else:
        assert item.answer in range(len(item.options))
        roles = [item.role(k) for k in range(len(item.options))]
        assert sum(role in ("good", "right") for role in roles) == 1 < len(roles)


@pytest.mark.parametrize("separator", ["\u2028", "\u2029", "\u0085", "\u000b"], ids=ascii)
def test_unicode_separators_do_not_split_a_line(file, separator):
    text = f" She ran.{separator}She fell."
    file.write_bytes(json.dumps({**PAIR, "good": text}, ensure_ascii=False).encode() + b"\n")
    (item,) = read(file)
    assert item.options[0] == text


def test_byte_order_mark_is_skipped(file):
    file.write_bytes(b"\xef\xbb\xbf" + line(PAIR) + b"\n")
    assert read(file)[0].context == PAIR["context"]


def test_carriage_returns_at_line_ends_and_blank_lines_are_skipped(file):
    file.write_bytes(b"\r\n".join([line(PAIR), b"", line({**PAIR, "id": "q"}), b""]))
    items = read(file)
    assert [item.options for item in items] == [(" She ran.", " She sat.")] * 2
    assert items[1].where == f"{file}:3"


def test_last_line_needs_no_newline(file):
    file.write_bytes(line(PAIR))
    assert len(read(file)) == 1


MALFORMED_PAIRS = {  # the line, and what its message must say
    "no-context": (without(PAIR, "context"), "`context`, got: no `context`"),
    "no-good": (without(PAIR, "good"), "`good`, got: no `good`"),
    "no-bad": (without(PAIR, "bad"), "`bad`, got: no `bad`"),
    "nothing": ({}, "got: no `good`"),
    "fraction-id": ({**PAIR, "id": 7.5}, "`id`, got: `id` is a number"),
    "long-id": ({**PAIR, "id": "x" * 1025}, "id of at most 1024 characters, got 1,025"),
    "long-group": ({**PAIR, "group": "x" * 1025}, "`group` of at most 1024 characters"),
    "array-context": ({**PAIR, "context": ["a"]}, "`context` is an array"),
    "object-context": ({**PAIR, "context": {}}, "`context` is an object"),
    "null-good": ({**PAIR, "good": None}, "`good` is null"),
    "true-bad": ({**PAIR, "bad": True}, "`bad` is a truth value"),
    "empty-id": ({**PAIR, "id": ""}, "`id`, got: an empty text"),
    "empty-context": ({**PAIR, "context": ""}, "`context`, got: an empty text"),
    "empty-good": ({**PAIR, "good": ""}, "`good`, got: an empty text"),
    "empty-bad": ({**PAIR, "bad": ""}, "`bad`, got: an empty text"),
    "nul": ({**PAIR, "good": "a\0"}, "`good`, got: a NUL character"),
    "surrogate": ({**PAIR, "bad": "\ud800"}, "`bad`, got: a lone surrogate"),
    "good-is-bad": ({**PAIR, "bad": PAIR["good"]}, "`good` and `bad` to differ"),
    "number-group": ({**PAIR, "group": 3}, "`group`, got: 3"),
    "array-domain": ({**PAIR, "domain": ["a"]}, r"`domain`, got: \['a'\]"),
    "surrogate-licence": ({**PAIR, "licence": "\udfff"}, "`licence`, got: a lone surrogate"),
    "number-date": ({**PAIR, "published_at": 1923}, "`published_at`, got: 1923"),
    "continuation": (TEXT, "a pair .* a `continuation`\nhint: .*--continuations"),
    "options-text": ({**OPTIONS, "options": "ab"}, "`options` .* two or more"),
    "options-null": ({**OPTIONS, "options": None}, "`options` .* two or more"),
    "no-option": ({**OPTIONS, "options": []}, "`options` .* two or more"),
    "one-option": ({**OPTIONS, "options": [" a"]}, "`options` .* two or more"),
    "number-option": ({**OPTIONS, "options": [" a", 2]}, r"`options\[1\]` is a number"),
    "empty-option": ({**OPTIONS, "options": ["", " b"]}, r"`options\[0\]`, got: an empty"),
    "same-option": ({**OPTIONS, "options": [" a", " b", " a"]}, "the options to differ"),
    "no-answer": (without(OPTIONS, "answer"), "`answer` .* from 0 to 2, got: None"),
    "true-answer": ({**OPTIONS, "answer": True}, "`answer` .* from 0 to 2, got: True"),
    "text-answer": ({**OPTIONS, "answer": "2"}, "`answer` .* from 0 to 2, got: '2'"),
    "fraction-answer": ({**OPTIONS, "answer": 1.0}, r"`answer` .* from 0 to 2, got: 1\.0"),
    "answer-beyond": ({**OPTIONS, "answer": 3}, "`answer` .* from 0 to 2, got: 3"),
    "answer-below": ({**OPTIONS, "answer": -1}, "`answer` .* from 0 to 2, got: -1"),
    "array": ([PAIR], "JSON object, got: an array\nhint: .*jq"),
    "literal": ("text", "JSON object, got: text"),
}
MALFORMED_CONTINUATIONS = {
    "no-continuation": (without(TEXT, "continuation"), "got: no `continuation`"),
    "number-continuation": ({**TEXT, "continuation": 5}, "`continuation` is a number"),
    "empty-continuation": ({**TEXT, "continuation": ""}, "`continuation`, got: an empty text"),
    "no-context": (without(TEXT, "context"), "got: no `context`"),
    "number-lang": ({**TEXT, "lang": 1}, "`lang`, got: 1"),
    "pair": (PAIR, "a `continuation`, got a pair\nhint: .*--pairs"),
    "options": (OPTIONS, "a `continuation`, got a pair\nhint: .*--pairs"),
}


@pytest.mark.parametrize(
    ("continuations", "bad", "message"),
    [(False, *case) for case in MALFORMED_PAIRS.values()]
    + [(True, *case) for case in MALFORMED_CONTINUATIONS.values()],
    ids=[*MALFORMED_PAIRS, *(f"continuation-{name}" for name in MALFORMED_CONTINUATIONS)],
)
def test_malformed_line_is_refused_with_its_place(file, continuations, bad, message):
    fine = TEXT if continuations else PAIR
    file.write_bytes(line({**fine, "id": "fine"}) + b"\n\n" + line(bad) + b"\n")
    with pytest.raises(DataError, match=message) as caught:
        read(file, continuations=continuations)
    assert caught.value.exit_code == 3
    assert str(caught.value).startswith(f"{file}:3: expected ")
    assert ", got" in caught.value.message


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (b'{"id": "p"', "JSON object, got .* column 11"),
        (b'{"id": "p", "id": "q"}', "`id` twice"),
        (b'{"id": "p", "x": NaN}', "got: NaN"),
        ('{"id": "é"}'.encode("latin-1"), "UTF-8, got byte 0xe9"),
    ],
    ids=["torn", "duplicate-key", "nan", "latin-1"],
)
def test_line_that_is_no_json_is_refused_with_its_place(file, bad, message):
    file.write_bytes(line(PAIR) + b"\n" + bad + b"\n")
    with pytest.raises(DataError, match=message) as caught:
        read(file)
    assert str(caught.value).startswith(f"{file}:2: expected ")


@pytest.mark.parametrize("continuations", [False, True], ids=["pairs", "continuations"])
@pytest.mark.parametrize("content", [b"", b"\n \n", b"\xef\xbb\xbf"], ids=["empty", "blank", "BOM"])
def test_file_without_items_is_refused(file, content, continuations):
    file.write_bytes(content)
    with pytest.raises(DataError, match=f"^{file}: expected at least one item, got an empty file"):
        read(file, continuations=continuations)


def test_missing_file_is_refused(file):
    with pytest.raises(DataError, match=f"^{file}: expected a readable .*, got: No such file"):
        read(file)


def test_folder_in_the_place_of_a_file_is_refused(tmp_path):
    with pytest.raises(DataError, match=f"^{tmp_path}: expected a readable .*, got: Is a dir"):
        read(tmp_path)


def test_items_before_a_malformed_line_can_be_had(file):
    items = read_items([write_lines(file, [PAIR, {}])])
    assert next(items).id == "p"
    with pytest.raises(DataError):
        next(items)


def test_items_of_distinct_ids_are_all_there(file):
    items = read(write_lines(file, [PAIR, OPTIONS]))
    assert list(each_once(items, name=file_line_id)) == items


def test_second_use_of_an_id_in_another_file_is_refused_and_the_first_named(tmp_path):
    first = write_lines(tmp_path / "a.jsonl", [OPTIONS, PAIR])
    second = write_lines(tmp_path / "b.jsonl", [{**PAIR, "context": "It snowed."}])
    message = f"^{second}:1: expected each id once, got `p` again\nhint: first seen at {first}:2$"
    with pytest.raises(DataError, match=message) as caught:
        list(each_once(read_items([first, second]), name=file_line_id))
    assert caught.value.exit_code == 3
