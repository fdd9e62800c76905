"""JSON Lines: what is one line, what is one object, and that a file's size does not matter."""

import json
import os
import tracemalloc
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, reject, settings
from hypothesis import strategies as st

from cqa.data.jsonl import read_jsonl, read_records
from cqa.errors import DataError

MIB = 1 << 20
KEYS = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=4)
SCALARS = (
    st.none()
    | st.booleans()
    | st.integers(-(10**40), 10**40)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=9)  # lone surrogates and NUL too: they are refused where text is taken
)
VALUES = st.recursive(
    SCALARS, lambda v: st.lists(v, max_size=3) | st.dictionaries(KEYS, v, max_size=3), max_leaves=6
)
LINES = st.lists(st.dictionaries(KEYS, VALUES, max_size=4) | st.none(), max_size=8)


def read(file: Path) -> list[dict[str, Any]]:
    return [record for _, record in read_jsonl(file)]


@pytest.fixture
def file(tmp_path) -> Path:
    return tmp_path / "x.jsonl"


@settings(deadline=None)
@given(LINES, st.sampled_from(["\n", "\r\n", " \n"]), st.booleans(), st.booleans(), st.booleans())
def test_objects_are_read_as_they_were_written_and_know_their_lines(
    tmp_path_factory, records, end, bom, plain, last_end
):
    file = tmp_path_factory.getbasetemp() / "any.jsonl"
    lines = ["" if r is None else json.dumps(r, ensure_ascii=not plain) for r in records]
    text = end.join(lines) + (end if last_end else "")
    try:
        file.write_bytes(b"\xef\xbb\xbf" * bom + text.encode())
    except UnicodeEncodeError:  # a lone surrogate, which only its escape can stand for
        reject()
    expected = [(f"{file}:{n}", r) for n, r in enumerate(records, start=1) if r is not None]
    assert list(read_jsonl(file)) == expected


@settings(deadline=None)
@given(st.binary(max_size=200) | st.text('{}[]",:\\u0dn1e+-. \n\r\t').map(str.encode))
def test_any_bytes_are_objects_or_an_error_with_its_place(tmp_path_factory, data):
    file = tmp_path_factory.getbasetemp() / "bytes.jsonl"
    file.write_bytes(data)
    try:
        records, refused = read(file), None
    except DataError as error:
        records, refused = [], error
    assert all(isinstance(record, dict) for record in records)
    if refused is not None:
        n_lines = data.count(b"\n") + 1
        assert refused.where in {f"{file}:{n}" for n in range(1, n_lines + 1)}
        assert refused.message.startswith("expected ")


BAD = {  # a second line, and what its message must say
    "second-bom": (b'\xef\xbb\xbf{"a": 1}', "other text: Unexpected UTF-8 BOM"),
    "utf-16": ('{"a": 1}'.encode("utf-16-le"), "one JSON object"),
    "latin-1": ('{"a": "é"}'.encode("latin-1"), "UTF-8, got byte 0xe9"),
    "overlong": b'{"a": "\xc0\xaf"}',
    "encoded-surrogate": b'{"a": "\xed\xa0\x80"}',
    "nul-byte": (b'{"a": "b\0c"}', "Invalid control character"),
    "nul-line": (b"\0" * 40, "Expecting value"),
    "tab-in-text": (b'{"a": "b\tc"}', "Invalid control character"),
    "carriage-return-inside": (b'{"a": 1}\r{"a": 2}', "Extra data"),
    "twice": (b'{"a": 1, "b": 2, "a": 3}', "each key once, got `a` twice"),
    "twice-inside": (b'{"a": {"b": 1, "b": 1}}', "each key once, got `b` twice"),
    "twice-escaped": (b'{"a": 1, "\\u0061": 2}', "each key once, got `a` twice"),
    "nul-key": (b'{"a\\u0000": 1}', "`a key`, got: a NUL"),
    "surrogate-key": (b'{"\\ud800": 1}', "`a key`, got: a lone surrogate"),
    "nan": (b'{"a": NaN}', "JSON numbers, got: NaN"),
    "infinity": (b'{"a": [-Infinity]}', "JSON numbers, got: -Infinity"),
    "beyond-a-double": (b'{"a": 1e999}', "a double holds, got: 1e999"),
    "five-thousand-digits": (b'{"a": ' + b"9" * 5000 + b"}", "a plain JSON object"),
    "deep-array": (b'{"a": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", "a plain JSON object"),
    "deep-object": (b'{"a": ' * 100_000 + b"1" + b"}" * 100_000, "a plain JSON object"),
    "array": (b'[{"a": 1}]', "got: an array\nhint: a JSON array becomes JSON Lines with"),
    "opened-array": (b"[", "other text: .*\nhint: a JSON array"),
    "text": (b'"a"', "got: text"),
    "null": (b"null", "got: null"),
    "number": (b"1", "got: a number"),
    "truth-value": (b"true", "got: a truth value"),
    "single-quotes": (b"{'a': 1}", "column 2"),
    "trailing-comma": (b'{"a": 1,}', "other text"),
    "comment": (b'{"a": 1} // b', "Extra data"),
    "torn": (b'{"a": "b', "Unterminated string starting at column 7"),
    "byte-order-zero": (b"\xff\xfe", "UTF-8, got byte 0xff"),
}  # fmt: skip


@pytest.mark.parametrize("bad", BAD.values(), ids=BAD)
def test_line_that_is_not_one_object_is_refused_with_its_number(file, bad):
    line, message = bad if isinstance(bad, tuple) else (bad, "UTF-8, got byte")
    file.write_bytes(b'{"a": 0}\n' + line + b'\n{"a": 9}\n')
    lines = read_jsonl(file)
    assert next(lines) == (f"{file}:1", {"a": 0})
    with pytest.raises(DataError, match=message) as caught:
        next(lines)
    assert caught.value.exit_code == 3
    assert str(caught.value).startswith(f"{file}:2: expected ")
    assert len(str(caught.value)) < 400 + len(str(file))


@pytest.mark.parametrize("sign", "\u2028\u2029\u0085\x0b\x0c\x1c\x1d\x1e", ids=ascii)
def test_signs_that_python_splits_lines_at_split_none_here(file, sign):
    record = {"context": f"在门口{sign}等着", "n": 1}
    text = json.dumps(record, ensure_ascii=sign < "\x20")  # JSON has control characters escaped
    file.write_text(f"{text}\n{text}\n", encoding="utf-8")
    assert read(file) == [record, record]


def test_numbers_as_text_stay_text(file):
    file.write_text('{"answer": "1", "x": 1, "y": 1.0}\n')
    (record,) = read(file)
    assert [type(record[key]) for key in ("answer", "x", "y")] == [str, int, float]


def test_line_of_ten_megabytes_is_read(file):
    text = "在" * (10 * MIB // 3)
    file.write_text(json.dumps({"text": text}, ensure_ascii=False) + '\n{"text": "b"}\n')
    assert [len(record["text"]) for record in read(file)] == [len(text), 1]


def peak_bytes(act: Any) -> int:
    tracemalloc.start()
    try:
        act()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_gigabyte_without_a_line_end_is_refused_and_not_read_to_its_end(file):
    with file.open("wb") as out:
        out.write(b'{"a": 0}\n')
        out.truncate(1 << 30)  # takes no room on the disk

    def refused() -> None:
        with pytest.raises(DataError, match=rf"^{file}:2: expected a line of at most 64 MiB, got"):
            read(file)

    assert peak_bytes(refused) < 200 * MIB


def test_memory_is_that_of_one_line_however_many_there_are(file):
    line = json.dumps({"text": "x" * 100_000}).encode() + b"\n"
    with file.open("wb") as out:
        out.writelines([line] * 300)

    def count() -> None:
        assert sum(1 for _ in read_jsonl(file)) == 300

    assert peak_bytes(count) < 10 * len(line) < file.stat().st_size / 10


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda file: None, "a readable JSON Lines file, got: No such file"),
        (Path.mkdir, "a readable JSON Lines file, got: Is a directory"),
        (os.mkfifo, "a regular file, got a pipe or a device\nhint: .* save it first"),
        (lambda file: file.symlink_to(file), "a readable JSON Lines file, got: .*symbolic links"),
    ],
    ids=["absent", "folder", "pipe", "link-to-itself"],
)
def test_what_is_no_file_is_refused_by_name(file, make, message):
    make(file)
    with pytest.raises(DataError, match=f"^{file}: expected {message}"):
        read(file)


def test_name_that_no_file_can_have_is_refused():
    with pytest.raises(DataError, match=r"expected a readable JSON Lines file, got: .*null"):
        read(Path("a\0b"))


def a_of(record: dict[str, Any], where: str) -> tuple[str, int]:
    if not isinstance(record.get("a"), int):
        raise DataError("expected a number in `a`", where=where)
    return where, record["a"]


def test_records_stop_at_the_first_bad_line_or_leave_it_out_as_they_are_told(file):
    file.write_text('{"a": 1}\n{"a": "2"}\nno\n\n{"a": 5}\n')
    with pytest.raises(DataError, match=f"^{file}:2: expected a number in `a`"):
        list(read_records(file, a_of, noun="number"))
    errors: list[DataError] = []
    records = list(read_records(file, a_of, noun="number", refuse=errors.append))
    assert records == [(f"{file}:1", 1), (f"{file}:5", 5)]
    assert [error.where for error in errors] == [f"{file}:2", f"{file}:3"]


@pytest.mark.parametrize(
    "content", [b"", b"\n \r\n", b"\xef\xbb\xbf"], ids=["empty", "blank", "bom"]
)
def test_file_without_a_record_is_refused_whatever_is_left_out(file, content):
    file.write_bytes(content)
    with pytest.raises(DataError, match=f"^{file}: expected at least one number, got an empty"):
        list(read_records(file, a_of, noun="number", refuse=lambda _: None))
