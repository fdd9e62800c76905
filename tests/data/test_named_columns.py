"""A column that --columns names stands in a record, or is refused once, by every command."""

import pyarrow
import pytest
from cli.common import MODEL, assert_one_error, invoke
from helpers import write_lines
from pyarrow import parquet

from cqa.data import jsonl
from cqa.data.items import parse_pair, read_items
from cqa.data.jsonl import check_columns, held_columns, stop_at
from cqa.data.samples import read_samples
from cqa.errors import DataError
from cqa.score.config import ScoreConfig
from cqa.score.items import read_all
from cqa.study.config import CallbackTrainConfig, ScaleConfig
from cqa.study.scale_scores import scoring_of
from cqa.train.plan import make_plan

ROWS = [
    {"id": "a", "q": "It rained.", "right": " She ran.", "bad": " She sat."},
    {"id": "b", "q": "It rained on.", "right": " He ran.", "bad": " He sat.", "book": "x"},
]
COLUMNS = ("context=q", "good=right")


def test_a_column_may_be_in_one_record_or_one_file_alone(tmp_path):
    first, second = (write_lines(tmp_path / f"{k}.jsonl", [row]) for k, row in enumerate(ROWS))
    columns = (*COLUMNS, "source_id=book", "lang=idiom")
    assert held_columns([first], columns) == COLUMNS
    assert held_columns([first, second], columns) == columns[:3]
    check_columns([first, second], columns[:3])
    with pytest.raises(DataError, match="column `idiom`, which --columns names for `lang`") as got:
        check_columns([first, second], columns)
    assert got.value.where == f"{first}, {second}"
    assert got.value.hint == "the first one has `id`, `q`, `right`, `bad`"


def test_no_more_is_read_than_shows_the_columns(tmp_path, monkeypatch):
    path = write_lines(tmp_path / "p.jsonl", [ROWS[1]])
    with path.open("ab") as file:
        file.write(b"no JSON\n")
    read = []
    parse = jsonl.parse_object
    monkeypatch.setattr(
        jsonl, "parse_object", lambda line, where: read.append(where) or parse(line, where)
    )
    check_columns([path], COLUMNS)
    assert read == [f"{path}:1"]
    assert held_columns([path], ("lang=idiom",)) == ()  # a bad line is for whoever reads it
    assert held_columns([path], ()) == ()


@pytest.mark.parametrize("kind", ["csv", "tsv", "parquet"])
def test_tables_have_columns_too(tmp_path, kind):
    path = tmp_path / f"t.{kind}"
    if kind == "parquet":
        parquet.write_table(pyarrow.Table.from_pylist(ROWS), path)
    else:
        sign = {"csv": ",", "tsv": "\t"}[kind]
        path.write_text(f"id{sign}q{sign}right\na{sign}b{sign}c\n", encoding="utf-8")
    check_columns([path], COLUMNS)
    with pytest.raises(DataError, match="the column `Q`"):
        check_columns([path], ("context=Q", "good=right"))


PAIRS = ["--pairs", "{pairs}", "--columns", "context=q,good=right,lang=idiom"]
SAMPLES = ["--data", "{samples}", "--columns", "prompt=q,response=idiom"]
OUT = ["--out", "{out}"]
COMMANDS = {
    "score": ["score", "--model", MODEL, *PAIRS, *OUT],
    "plan": ["plan", *PAIRS, "--adapters", "a", "--primary", "ungrouped", *OUT],
    "prescreen": ["prescreen", "--model", MODEL, *PAIRS, *OUT],
    "letters": ["letters", "--server", "http://127.0.0.1:1", "--served-model", "m", *PAIRS, *OUT],
    "generate": ["generate", "--model", MODEL, "--prompts", "{pairs}", "--max-tokens", "1",
                 "--columns", "prompt=q,id=idiom"],
    "validate": ["validate", "{pairs}", *PAIRS[2:]],
    "train": ["train", "--model", MODEL, *SAMPLES, *OUT],
    "dry run": ["train", "--model", MODEL, *SAMPLES, *OUT, "--dry-run"],
    "scale": ["scale", "--model", MODEL, *SAMPLES, "--pairs", "{pairs}", *OUT],
    "attention": ["study", "attention", "--model", MODEL, *PAIRS, *OUT],
    "fit": ["study", "fit", "--model", MODEL, "--works", "{pairs}", "--audiences", "{samples}",
            "--columns", "text=q,wordings=idiom", *OUT],
}  # fmt: skip


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_refuses_one_that_is_nowhere(tmp_path, name):
    places = {
        "pairs": write_lines(tmp_path / "pairs.jsonl", ROWS),
        "samples": write_lines(tmp_path / "samples.jsonl", [{"id": "s", "q": "a", "r": "b"}]),
        "out": tmp_path / "out",
    }
    result = invoke(*(arg.format(**places) for arg in COMMANDS[name]))
    assert_one_error(result, 3, "a record with the column `idiom`", "got none", "hint: the first")
    assert not places["out"].exists()


def test_files_of_a_command_share_its_columns(tmp_path):
    pairs = write_lines(tmp_path / "pairs.jsonl", ROWS)
    texts = [{"id": "t", "context": "It rained.", "passage": " She ran."}]
    continuations = write_lines(tmp_path / "texts.jsonl", texts)
    columns = (*COLUMNS, "continuation=passage")
    config = ScoreConfig(
        model=MODEL, pairs=(pairs,), continuations=(continuations,), columns=columns,
        out=tmp_path / "out",
    )  # fmt: skip
    assert [item.id for item in read_all(config)] == ["a", "b", "t"]


def test_held_out_samples_and_pairs_of_an_epoch_share_those_of_training(tmp_path):
    samples = [{"id": f"s{k}", "question": f"a {k}", "response": " b"} for k in range(3)]
    data = write_lines(tmp_path / "samples.jsonl", samples)
    held = write_lines(tmp_path / "held.jsonl", [{"id": "h", "prompt": "a", "answer": " b"}])
    dev = write_lines(tmp_path / "dev.jsonl", ROWS)
    columns = ("prompt=question", "response=answer", *COLUMNS)
    config = CallbackTrainConfig(
        model=MODEL, data=(data,), validation=str(held), dev=dev, columns=columns,
        out=tmp_path / "out", device="cpu",
    )  # fmt: skip
    assert (config.with_columns, len(make_plan(config).validation)) == ((data, held, dev), 1)


def test_only_what_can_name_columns_says_that_one_may_be_named(tmp_path):
    record = {"context": "a", "right": "b", "bad": "c"}
    with pytest.raises(DataError, match=r"no `good`\nhint: it has `context`, `right`, `bad`$"):
        parse_pair(record, "p.jsonl:3")  # a caller's own record
    path = write_lines(tmp_path / "p.jsonl", [record])
    write_lines(tmp_path / "s.jsonl", [{"question": "a", "answer": "b"}])
    nested = write_lines(tmp_path / "n.jsonl", [{"messages": [{"role": "user"}]}])
    for columns, told in (((), True), (None, False)):
        for refuse in (stop_at, lambda error: stop_at(error)):
            with pytest.raises(DataError, match="no `good`") as caught:
                list(read_items([path], columns=columns, refuse=refuse))
            assert ("--columns good=NAME" in str(caught.value)) is told
        with pytest.raises(DataError, match="expected one of the keys") as caught:
            read_samples(path.with_name("s.jsonl"), columns=columns)
        assert ("--columns prompt=NAME,response=NAME" in str(caught.value)) is told
        with pytest.raises(DataError, match="no `content`") as caught:
            read_samples(nested, columns=columns)
        assert "--columns" not in str(caught.value)  # a column is a key of the line


def test_a_command_without_the_setting_does_not_name_it(tmp_path):
    path = write_lines(tmp_path / "s.jsonl", [{"question": "a", "response": "b"}])
    lacking = write_lines(tmp_path / "l.jsonl", [{"prompt": "a", "answer": "b"}])
    for file, key in ((path, "prompt"), (lacking, "response")):
        result = invoke("coverage", str(file))
        assert_one_error(result, 3, f"{file}:1: expected ", f"`{key}`", "hint: ")
        assert "--columns" not in result.stderr
        result = invoke("train", "--model", MODEL, "--data", file, "--out", tmp_path / "out")
        assert_one_error(result, 3, f"--columns {key}=NAME")


def test_pairs_of_scale_share_its_columns(tmp_path):
    samples = [{"id": f"s{k}", "question": f"a {k}", "response": " b"} for k in range(3)]
    data = write_lines(tmp_path / "samples.jsonl", samples)
    pairs = write_lines(tmp_path / "pairs.jsonl", ROWS)
    columns = ("prompt=question", *COLUMNS)
    config = ScaleConfig(
        model=MODEL, data=(data,), pairs=(pairs,), columns=columns, sizes=(2,), seeds=1,
        out=tmp_path / "out", device="cpu",
    )  # fmt: skip
    make_plan(config)
    assert [item.context for item in read_all(scoring_of(config, ()))] == [r["q"] for r in ROWS]
