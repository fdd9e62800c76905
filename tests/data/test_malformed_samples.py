"""Lines that are no samples are refused with their number; what is harmless is read."""

import json

import pytest
from data.training_samples import ALPACA, END, FORMATS, PROMPT, alternating, encode, runs_of
from helpers import write_lines

from cqa.data.samples import read_samples
from cqa.errors import DataError


def line(record: object) -> bytes:
    return json.dumps(record).encode()


def without(record: dict, key: str) -> dict:
    return {k: v for k, v in record.items() if k != key}


def turns(key: str, *records: object) -> bytes:
    return line({key: list(records)})


MALFORMED = {  # the line, and what its message must say
    "no-response": (line(without(PROMPT, "response")), "no `response`"),
    "number": (line({**PROMPT, "prompt": 5}), "`prompt` is a number"),
    "null": (line({**PROMPT, "response": None}), "`response` is null"),
    "array": (line({**PROMPT, "response": ["a"]}), "`response` is an array"),
    "empty-text": (line({**PROMPT, "response": ""}), "`response`, got: an empty text"),
    "id-truth": (line({**PROMPT, "id": True}), "`id` is a truth value"),
    "tags-text": (line({**PROMPT, "tags": "x"}), "`tags`"),
    "tags-numbers": (line({**PROMPT, "tags": [1]}), "`tags`"),
    "no-output": (line(without(ALPACA, "output")), "no `output`"),
    "system-number": (line({**ALPACA, "system": 5}), "`system` is a number"),
    "history-text": (line({**ALPACA, "history": "x"}), r"`history` .* \[question, answer\]"),
    "history-flat": (line({**ALPACA, "history": ["a", "b"]}), r"\[question, answer\]"),
    "history-triple": (line({**ALPACA, "history": [["a", "b", "c"]]}), r"\[question, answer\]"),
    "history-number": (line({**ALPACA, "history": [["a", 2]]}), "`history` is a number"),
    "no-turns": (turns("messages"), "`messages`"),
    "turns-text": (line({"conversations": "x"}), "`conversations`"),
    "turn-text": (turns("messages", "x"), r"`messages\[0\]`"),
    "no-role": (turns("dialogue", {"text": "x"}), r"`dialogue\[0\].role` .* B \| C, got: None"),
    "other-role": (turns("messages", {"role": "tool", "content": "x"}), "got: 'tool'"),
    "array-role": (turns("messages", {"role": ["user"], "content": "x"}), r"got: \['user'\]"),
    "object-role": (turns("conversations", {"from": {}, "value": "x"}), "got: {}"),
    "no-content": (turns("messages", {"role": "user"}), r"messages\[0\].*no `content`"),
    "parts-of-content": (turns("messages", {"role": "user", "content": [{}]}), "is an array"),
    "nothing-to-learn": (turns("dialogue", {"role": "B", "text": "x"}), "turn to learn"),
    "unknown-format": (line({"question": "a", "answer": "b"}), "`prompt`, .*, got: `question`"),
    "no-keys": (b"{}", "got: none"),
    "not-json": (b'{"prompt": "a"', "column 15"),
    "two-objects": (line(PROMPT) + line(PROMPT), "Extra data"),
    "literal": (b'"text"', "JSON object, got: text"),
    "array-file": (b"[{}]", r"JSON object, got: an array\nhint: .* jq -c '.\[\]'"),
    "opened-array-file": (b"[", r"JSON object, got .*\nhint: .* jq -c '.\[\]'"),
    "duplicate-key": (b'{"prompt": "a", "prompt": "b"}', "`prompt` twice"),
    "nested-duplicate-key": (b'{"x": {"y": 1, "y": 2}}', "`y` twice"),
    "nan": (b'{"prompt": "a", "response": "b", "x": NaN}', "got: NaN"),
    "infinity": (b'{"prompt": "a", "response": "b", "x": -Infinity}', "got: -Infinity"),
    "huge-number": (b'{"x": ' + b"1" * 5000 + b"}", "expected a plain JSON object"),
    "deep": (b'{"x": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", "expected a plain JSON object"),
    "surrogate": (b'{"prompt": "\\ud800", "response": "b"}', "`prompt`, got: a lone surrogate"),
    "nul": (b'{"prompt": "a", "response": "b\\u0000"}', "`response`, got: a NUL"),
    "latin-1": ('{"prompt": "é"}'.encode("latin-1"), "UTF-8, got byte 0xe9"),
    "utf-16": ("\ufeff{}".encode("utf-16-le"), "UTF-8, got byte 0xff"),
    "raw-newline": (b'{"prompt": "a\nb", "response": "c"}', "JSON object, got "),
}  # fmt: skip


@pytest.mark.parametrize(("bad", "message"), MALFORMED.values(), ids=MALFORMED)
def test_malformed_line_is_refused_with_its_number(file, bad, message):
    file.write_bytes(b"\n\n" + bad + b"\n")
    with pytest.raises(DataError, match=message) as caught:
        read_samples(file)
    assert str(caught.value).startswith(f"{file}:3")
    assert caught.value.exit_code == 3


@pytest.mark.parametrize("kind", [name for name in FORMATS if name != "prompt"])
def test_line_of_another_format_than_the_first_is_refused(file, kind):
    write_lines(file, [PROMPT, FORMATS[kind]])
    with pytest.raises(DataError, match=f"^{file}:2: expected text in `prompt`, got: no `prompt`"):
        read_samples(file)


def test_second_use_of_an_id_is_refused_and_the_first_named(file):
    write_lines(file, [{**PROMPT, "id": "a"}, {**PROMPT, "id": "b"}, {**PROMPT, "id": "a"}])
    message = f"^{file}:3: expected each id once, got `a` again\nhint: first seen at {file}:1$"
    with pytest.raises(DataError, match=message):
        read_samples(file)


@pytest.mark.parametrize("content", [b"", b"\n \n", b"\xef\xbb\xbf"], ids=["empty", "blank", "BOM"])
def test_file_without_samples_is_refused(file, content):
    file.write_bytes(content)
    with pytest.raises(DataError, match=f"^{file}: expected at least one sample"):
        read_samples(file)


def test_missing_file_is_refused(file):
    with pytest.raises(DataError, match=f"^{file}: expected a readable .* No such file"):
        read_samples(file)


def test_byte_order_mark_is_skipped(file):
    file.write_bytes(b"\xef\xbb\xbf" + line(PROMPT) + b"\n")
    assert read_samples(file)[0].turns[0].text == "Q: why?"


def test_carriage_returns_at_line_ends_are_skipped(file):
    file.write_bytes(b"\r\n".join([line(PROMPT), b"", line({**PROMPT, "id": "b"}), b""]))
    assert [sample.turns[1].text for sample in read_samples(file)] == [" Because."] * 2


@pytest.mark.parametrize("separator", ["\u2028", "\u2029", "\u0085", "\u000b", "\u001e"], ids=ascii)
def test_unicode_separators_do_not_split_a_line(file, tokenizer, separator):
    record = {"prompt": f"a{separator}b", "response": f" c{separator}d"}
    encoded = encode(file, record, tokenizer)
    assert runs_of(encoded, tokenizer) == alternating([record["prompt"], record["response"] + END])


def test_last_line_needs_no_newline(file):
    file.write_bytes(line(PROMPT))
    assert len(read_samples(file)) == 1
