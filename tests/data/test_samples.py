"""Training files: five formats, and what is learned of them."""

import json

import pytest
from data.training_samples import ALPACA, END, FORMATS, PROMPT, alternating, encode, runs_of
from helpers import DEMO, shared, tiny_model, write_lines

from cqa.data.samples import Turn, plain_parts, read_samples
from cqa.data.tokenizer import Tokenizer
from cqa.errors import DataError

TURNS = {
    "prompt": ["user: Q: why?", "assistant:  Because."],
    "alpaca": [
        "system: Judge.", "user: Who?", "assistant: Ann.", "user: When?", "assistant: Now.",
        "user: Why?\nA text.", "assistant: Because.",
    ],
    "sharegpt": [
        "system: Judge.", "user: Who?", "assistant: Ann.", "user: Why?", "assistant: Because.",
    ],
    "messages": ["system: Judge.", "user: Who?", "assistant: Ann."],
    "dialogue": [
        "user: Who?", "assistant: Ann.", "user: Why?", "assistant: Because.", "user: Thanks.",
    ],
}  # fmt: skip
PLAIN = {  # text before a learned part, then that part, and so on
    "prompt": ["Q: why?", " Because."],
    "alpaca": ["Judge.\nWho?\n", "Ann.", "\nWhen?\n", "Now.", "\nWhy?\nA text.\n", "Because."],
    "sharegpt": ["Judge.\nWho?\n", "Ann.", "\nWhy?\n", "Because."],
    "messages": ["Judge.\nWho?\n", "Ann."],
    "dialogue": ["B: Who?\nC:", " Ann.", "\nB: Why?\nC:", " Because."],
}


@pytest.mark.parametrize("kind", FORMATS)
def test_turns_of(kind, file):
    (sample,) = read_samples(write_lines(file, [FORMATS[kind]]))
    assert sample.format == kind
    assert [f"{turn.role}: {turn.text}" for turn in sample.turns] == TURNS[kind]


@pytest.mark.parametrize("kind", FORMATS)
def test_plain_text_of(kind, file):
    (sample,) = read_samples(write_lines(file, [FORMATS[kind]]))
    assert plain_parts(sample) == alternating(PLAIN[kind])


@pytest.mark.parametrize("kind", FORMATS)
def test_answers_and_one_end_token_are_learned_of(kind, file, tokenizer):
    *parts, last = PLAIN[kind]
    encoded = encode(file, FORMATS[kind], tokenizer)
    assert runs_of(encoded, tokenizer) == alternating([*parts, last + END])
    assert encoded.ids[-1] == tokenizer.end_id
    assert encoded.ids.count(tokenizer.end_id) == 1


def test_ids_and_labels_of_a_sample_by_hand(file, tokenizer):
    encoded = encode(file, PROMPT, tokenizer)
    assert encoded.ids == (48, 25, 1447, 30, 410, 1474, 809, 13, 4093)
    assert encoded.loss_mask == (False,) * 4 + (True,) * 5
    assert encoded.n_labels == 5


def test_whole_text_is_learned_on_request_but_for_the_first_token(file, tokenizer):
    encoded = encode(file, PROMPT, tokenizer, whole_text=True)
    assert encoded.ids == encode(file, PROMPT, tokenizer).ids
    assert all(encoded.loss_mask)
    assert encoded.n_labels == len(encoded.ids) - 1


def test_one_bos_in_front_and_no_space_inside_where_the_tokenizer_would_add_them(file):
    tokenizer = Tokenizer(shared("models/stories260k"))
    encoded = encode(file, PROMPT, tokenizer)
    tokens = tokenizer.hf.convert_ids_to_tokens(encoded.ids)
    n_prompt = encoded.loss_mask.index(True)
    assert "".join(tokens[:n_prompt]) == "<s>▁Q:▁why?"
    assert "".join(tokens[n_prompt:]) == "▁Because.</s>"
    assert all(encoded.loss_mask[n_prompt:])


def test_answer_alone_is_learned_without_anything_before_it(file, tokenizer):
    record = {"messages": [{"role": "assistant", "content": "Ann said so."}]}
    encoded = encode(file, record, tokenizer)
    assert runs_of(encoded, tokenizer) == [(f"Ann said so.{END}", True)]
    assert encoded.n_labels == len(encoded.ids) - 1


@pytest.mark.parametrize("key", ["system", "input", "history"])
@pytest.mark.parametrize("value", [None, "", "absent"], ids=["null", "empty", "absent"])
def test_optional_alpaca_field_may_be_left_out(key, value, file):
    record = {k: v for k, v in {**ALPACA, key: value}.items() if v != "absent"}
    (sample,) = read_samples(write_lines(file, [record]))
    (full,) = read_samples(write_lines(file, [ALPACA]))
    assert len("".join(t.text for t in sample.turns)) < len("".join(t.text for t in full.turns))
    assert sample.turns[-1] == Turn("assistant", "Because.")


def test_ids_tags_and_unknown_keys(file):
    records = [{**PROMPT, "id": "a", "tags": ["x", "y"], "author": 7}, PROMPT]
    first, second = read_samples(write_lines(file, records))
    assert (first.id, first.tags) == ("a", ("x", "y"))
    assert (second.id, second.tags) == ("line-2", None)
    assert second.where == f"{file}:2"


def test_unnamed_sample_is_named_by_its_line(file):
    file.write_text("\n\n" + json.dumps(PROMPT) + "\n")
    (sample,) = read_samples(file)
    assert (sample.id, sample.where) == ("line-3", f"{file}:3")


def test_several_files_follow_each_other_each_in_its_format(tmp_path):
    first = write_lines(tmp_path / "first.jsonl", [{**PROMPT, "id": "a"}, PROMPT])
    second = write_lines(tmp_path / "second.jsonl", [ALPACA])
    samples = read_samples(first, second)
    assert [(s.id, s.format, s.where) for s in samples] == [
        ("a", "prompt", f"{first}:1"),
        ("first-2", "prompt", f"{first}:2"),
        ("second-1", "alpaca", f"{second}:1"),
    ]
    assert [s.turns for s in samples[2:]] == [s.turns for s in read_samples(second)]


def test_an_id_counts_once_over_all_files(tmp_path):
    first, second = (
        write_lines(tmp_path / f"{name}.jsonl", [{**PROMPT, "id": "a"}]) for name in "xy"
    )
    with pytest.raises(DataError, match=rf"{second}:1: .*`a` again\nhint: first seen at {first}:1"):
        read_samples(first, second)
    with pytest.raises(DataError, match=rf"{first}:1: .*`a`"):
        read_samples(first, first)


def test_control_token_in_any_turn_is_refused_unless_it_is_asked_for(file, tokenizer):
    for key in PROMPT:
        record = {**PROMPT, key: f"{PROMPT[key]} old{END} park"}
        message = f"^{file}:1: expected a text without control tokens, got `<.endoftext.>` in it"
        with pytest.raises(DataError, match=message):
            encode(file, record, tokenizer)
    encoded = encode(file, record, Tokenizer(DEMO / "model", allow_special=True))
    assert encoded.ids.count(tokenizer.end_id) == 2


@pytest.fixture(scope="module")
def composing(tmp_path_factory) -> Tokenizer:
    """A tokenizer whose file says NFC."""
    return Tokenizer(tiny_model(tmp_path_factory.mktemp("nfc")))


def test_accents_that_compose_across_the_boundary_are_refused(file, composing):
    tokenizer, record = composing, {"prompt": "cafe\u0301", "response": "\u0323 noir"}
    with pytest.raises(DataError, match=f"^{file}:1: expected token ids that decode to the text"):
        encode(file, record, tokenizer)


def test_accents_are_composed_within_a_part_where_the_tokenizer_says_so(file, tokenizer, composing):
    record = {"prompt": "cafe\u0301", "response": " noir"}
    encoded = encode(file, record, composing)
    assert runs_of(encoded, composing) == alternating(["caf\u00e9", f" noir{END}"])
    encoded = encode(file, record, tokenizer)  # its file has no normalizer
    assert runs_of(encoded, tokenizer) == alternating(["cafe\u0301", f" noir{END}"])
