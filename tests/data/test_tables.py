"""CSV, TSV and Parquet are read as the JSON Lines that they would be; columns get their keys."""

import json
from pathlib import Path

import pyarrow
import pytest
from helpers import write_lines
from pyarrow import parquet

from cqa.data.items import read_items
from cqa.data.samples import read_samples
from cqa.data.tables import parse_columns
from cqa.data.unique import each_once, file_line_id
from cqa.data.validate import validate_files
from cqa.errors import ConfigError, DataError

ROWS = [
    {"id": "7", "question": "She read the letter", "right": ' twice, "aloud".', "wrong": "\nonce."},
    {"id": "8", "question": "在雨里，", "right": "她走了。", "wrong": "她跑了。"},
]
COLUMNS = ("context=question", "good=right", "bad=wrong")


def csv_text(separator: str) -> str:
    def cell(text: str) -> str:
        return '"' + text.replace('"', '""') + '"'

    lines = [separator.join(ROWS[0]), *(separator.join(map(cell, r.values())) for r in ROWS)]
    return "\r\n".join(lines) + "\r\n"


def written(folder: Path, kind: str) -> Path:
    path = folder / {"semicolons": "t.csv", "magic": "t.bin"}.get(kind, f"t.{kind}")
    if kind in ("parquet", "magic"):
        parquet.write_table(pyarrow.Table.from_pylist(ROWS), path)
    elif kind == "jsonl":
        write_lines(path, ROWS)
    else:
        separators = {"csv": ",", "tsv": "\t", "semicolons": ";"}
        path.write_bytes(b"\xef\xbb\xbf" + csv_text(separators[kind]).encode())
    return path


@pytest.mark.parametrize("kind", ["csv", "tsv", "semicolons", "parquet", "magic", "jsonl"])
def test_the_same_rows_are_the_same_items_and_samples(tmp_path, kind):
    path = written(tmp_path, kind)
    items = list(read_items([path], columns=COLUMNS))
    assert [(i.id, i.context, i.options, i.extra) for i in items] == [
        (r["id"], r["question"], (r["right"], r["wrong"]), {}) for r in ROWS
    ]
    first_row = 2 if kind in ("csv", "tsv", "semicolons") else 1
    assert [item.where for item in items] == [f"{path}:{first_row + k}" for k in range(2)]
    samples = read_samples(path, columns=("prompt=question", "response=right"))
    assert [[turn.text for turn in s.turns] for s in samples] == [
        [r["question"], r["right"]] for r in ROWS
    ]
    (report,) = validate_files([path], columns=COLUMNS)
    assert (report.kind, report.n_records, report.errors) == ("pairs", 2, [])


def test_numbers_are_ids_and_rows_without_one_are_named_by_file_and_number(tmp_path):
    pair = {"context": "It rained.", "good": " She ran.", "bad": " She sat."}
    path = tmp_path / "p.parquet"
    parquet.write_table(pyarrow.Table.from_pylist([{**pair, "id": 41}, pair]), path)
    assert [item.id for item in read_items([path])] == ["41", "p-2"]
    lines = write_lines(tmp_path / "q.jsonl", [{**pair, "id": 41}, pair])
    assert [item.id for item in read_items([lines])] == ["41", "q-2"]
    with pytest.raises(DataError, match=f"^{lines}:1: .* once, got `41` again\nhint: .*{path}:1$"):
        list(each_once(read_items([path, lines]), name=file_line_id))


def test_conversations_in_parquet_are_samples(tmp_path):
    turns = [{"role": "user", "content": "Who?", "weight": None}]
    turns += [{"role": "assistant", "content": "Ann.", "weight": 1}]
    path = tmp_path / "m.parquet"
    parquet.write_table(pyarrow.Table.from_pylist([{"messages": turns, "score": 0.5}]), path)
    (sample,) = read_samples(path)
    assert [(turn.role, turn.text) for turn in sample.turns] == [
        ("user", "Who?"),
        ("assistant", "Ann."),
    ]


CHAT = [{"role": "user", "content": "Why?"}]
GOOD, BAD = ({"role": "assistant", "content": text} for text in ("Because.", "No."))
PREFERENCES = {
    "texts": {"prompt": "Why?", "chosen": "Because.", "rejected": "No."},
    "turns": {"chosen": [*CHAT, GOOD], "rejected": [*CHAT, BAD]},
    "both": {"prompt": "Why?", "chosen": [GOOD], "rejected": [*CHAT, BAD]},
    "one-in-a-list": {"prompt": "Why?", "chosen": "Because.", "rejected": ["No."]},
}


@pytest.mark.parametrize("record", PREFERENCES.values(), ids=PREFERENCES)
def test_preferences_are_pairs(tmp_path, record):
    (item,) = read_items([write_lines(tmp_path / "p.jsonl", [record])])
    assert (item.kind, item.context, item.options) == ("pair", "Why?", ("Because.", "No."))
    assert item.extra == {}


@pytest.mark.parametrize("key", ["rejected", "bad"])
def test_several_rejected_texts_are_options(tmp_path, key):
    record = {"prompt": "Why?", "chosen": "Because.", "rejected": ["No.", "So."]}
    if key == "bad":
        record = {"context": "Why?", "good": "Because.", "bad": ["No.", "So."]}
    (item,) = read_items([write_lines(tmp_path / "p.jsonl", [record])])
    assert (item.kind, item.options, item.answer) == ("options", ("Because.", "No.", "So."), 0)


def test_several_columns_are_several_wrong_options(tmp_path):
    path = tmp_path / "p.csv"
    path.write_text("q,yes,no1,no2\nA,b,c,d\nE,f,g,\n")
    columns = ("context=q", "good=yes", "bad=no1", "bad=no2")
    items = list(read_items([path], columns=columns))
    assert [item.options for item in items] == [("b", "c", "d"), ("f", "g")]


BAD_PREFERENCES = {
    "two-prompts": ({**PREFERENCES["both"], "prompt": "Who?"}, "got two prompts"),
    "two-contexts": ({**PREFERENCES["texts"], "context": "a"}, "`prompt` or a `context`, got both"),
    "three-turns": ({**PREFERENCES["turns"], "chosen": [*CHAT, GOOD, *CHAT]}, "one turn of the"),
    "no-rejected": ({"prompt": "a", "chosen": "b"}, "`rejected`, got: no `rejected`"),
    "none-rejected": ({"prompt": "a", "chosen": "b", "rejected": []}, "`bad`"),
    "same": ({"prompt": "a", "chosen": "b", "rejected": ["b", "c"]}, "to differ"),
    "twice": ({"prompt": "a", "chosen": "b", "rejected": ["c", "c"]}, "twice"),
    "no-prompt": ({"chosen": "b", "rejected": "c"}, "`context`, got: no `context`"),
}


@pytest.mark.parametrize(("record", "message"), BAD_PREFERENCES.values(), ids=BAD_PREFERENCES)
def test_preference_that_is_no_pair_is_refused(tmp_path, record, message):
    path = write_lines(tmp_path / "p.jsonl", [record])
    with pytest.raises(DataError, match=rf"^{path}:1\b.*: expected .*{message}"):
        list(read_items([path]))


BAD_TABLES = {
    "ragged": (b"context,good,bad\na,b,c\na,b\n", "t.csv:3: expected 3 cells, .* got 2"),
    "open-quote": (b'context,good,bad\na,b,"c\n', "t.csv:2: expected a table, got"),
    "twice": (b"good,good\na,b\n", "t.csv:1: expected each column once, got `good` twice"),
    "latin-1": ("context,good,bad\né,b,c\n".encode("latin-1"), "expected UTF-8, got byte 0xe9"),
    "utf-16": ("context,good\na,b\n".encode("utf-16"), "got UTF-16 or UTF-32\nhint: .*iconv -f"),
    "no-rows": (b"context,good,bad\n", "expected at least one item"),
    "no-column": (b"context,right\na,b\n", "no `good`\nhint: it has `context`, `right`$"),
    "empty-cell": (b"context,good,bad\na,,c\n", "no `good`"),
}


@pytest.mark.parametrize(("data", "message"), BAD_TABLES.values(), ids=BAD_TABLES)
def test_table_that_is_none_is_refused_once_with_its_row(tmp_path, data, message):
    path = tmp_path / "t.csv"
    path.write_bytes(data)
    with pytest.raises(DataError, match=message) as caught:
        list(read_items([path]))
    (report,) = validate_files([path])
    assert len(report.errors) == 1
    assert str(caught.value).startswith(str(path))


def test_torn_parquet_file_is_refused(tmp_path):
    path = written(tmp_path, "parquet")
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(DataError, match=f"^{path}:1: expected a Parquet file, got: "):
        list(read_items([path]))


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be", "utf-32"])
def test_lines_in_utf_16_are_named_as_such(tmp_path, encoding):
    path = tmp_path / "t.jsonl"
    path.write_bytes(json.dumps(ROWS[0]).encode(encoding))
    with pytest.raises(
        DataError, match=f"^{path}:1: expected UTF-8, got UTF-16 or .*\nhint: .*iconv"
    ):
        read_samples(path)


def test_file_that_is_something_else_altogether_is_one_error(tmp_path):
    path = tmp_path / "table.txt"
    path.write_text("context,good,bad\n" + "a,b,c\n" * 66)
    (report,) = validate_files([path])
    assert (report.n_refused, len(report.errors)) == (67, 2)
    assert report.errors[1] == f"{path}: 66 other lines of the same kind"


@pytest.mark.parametrize("setting", ["good", "=chosen", "good=", ""])
def test_setting_that_names_no_column_is_refused(setting):
    with pytest.raises(ConfigError, match="expected --columns of KEY=COLUMN, got: "):
        parse_columns([setting])


def test_a_file_for_the_other_command_is_told_so(tmp_path):
    pairs = write_lines(
        tmp_path / "p.jsonl", [{"id": "a", "context": "b", "good": "c", "bad": "d"}]
    )
    with pytest.raises(
        DataError, match=r"a sample to learn, got an item .*`good`.*\nhint: .*--pairs"
    ):
        read_samples(pairs)
    preferences = write_lines(tmp_path / "q.jsonl", [PREFERENCES["texts"]])
    with pytest.raises(DataError, match=r"a sample to learn, got an item to score .`chosen`"):
        read_samples(preferences)
    samples = write_lines(tmp_path / "t.jsonl", [{"prompt": "a", "response": "b"}])
    for continuations in (False, True):
        with pytest.raises(DataError, match=r"got a training sample .*\nhint: .* train --data"):
            list(read_items([samples], continuations=continuations))
