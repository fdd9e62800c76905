"""Turns that say whether they are learned, and keys that cannot be obeyed."""

import pytest
from data.training_samples import END, FORMATS, TEMPLATE, TWO, chat_tokenizer, encode, runs_of
from helpers import write_lines

from cqa.data.samples import read_samples
from cqa.errors import DataError

UNLEARNED = {"weight": 0, "loss": False, "train": False, "training": False}
LEARNED = {"weight": 1, "loss": True, "train": True, "training": True}


def with_turn(k: int, **changes: object) -> list[dict]:
    return [{**turn, **(changes if i == k else {})} for i, turn in enumerate(TWO)]


@pytest.mark.parametrize("key", UNLEARNED)
def test_answer_that_says_so_is_not_learned(key, file, tokenizer):
    encoded = encode(file, {"messages": with_turn(1, **{key: UNLEARNED[key]})}, tokenizer)
    assert runs_of(encoded, tokenizer) == [
        ("Which?\nThe first.\nThink again.\n", False),
        (f"The second.{END}", True),
    ]
    assert encoded.prompt.stop == encoded.loss_mask.index(True)


@pytest.mark.parametrize("key", LEARNED)
def test_answer_that_asks_to_be_learned_is_learned_like_one_without_a_flag(key, file, tokenizer):
    plain = encode(file, {"messages": TWO}, tokenizer)
    said = {"messages": with_turn(1, **{key: LEARNED[key]}, name="Ann")}
    assert encode(file, said, tokenizer) == plain
    assert encode(file, {"messages": with_turn(0, **{key: UNLEARNED[key]})}, tokenizer) == plain


def test_end_is_not_learned_after_a_last_answer_that_is_not(file, tokenizer):
    encoded = encode(file, {"messages": with_turn(3, weight=0)}, tokenizer)
    assert [text for text, learned in runs_of(encoded, tokenizer) if learned] == ["The first."]


def test_flags_are_obeyed_in_conversations_of_sharegpt_and_dialogues(file, tokenizer):
    conversations = [
        {"from": "human", "value": "Which?", "train": False},
        {"from": "gpt", "value": "The first.", "train": False},
        {"from": "gpt", "value": "The second.", "train": True},
    ]
    dialogue = [
        {"role": "B", "text": "Which?"},
        {"role": "C", "text": "The first.", "loss": False},
        {"role": "C", "text": "The second."},
    ]
    for record in ({"conversations": conversations}, {"dialogue": dialogue}):
        encoded = encode(file, record, tokenizer)
        ((text, _),) = [run for run in runs_of(encoded, tokenizer) if run[1]]
        assert text.strip() == f"The second.{END}"


def test_masked_answer_stays_unlearned_under_a_chat_template(file, tmp_path):
    tokenizer = chat_tokenizer(tmp_path, TEMPLATE)
    encoded = encode(file, {"messages": with_turn(1, weight=0)}, tokenizer)
    assert [text for text, learned in runs_of(encoded, tokenizer) if learned] == [
        "The second.</>\n"
    ]


def test_flags_and_whole_text_contradict_each_other(file, tokenizer):
    with pytest.raises(DataError, match=f"^{file}:1: expected turns without a flag"):
        encode(file, {"messages": with_turn(0, train=False)}, tokenizer, whole_text=True)


BAD_TURNS = {
    "unknown-key": ({"train_detail": [1]}, "got: `train_detail`"),
    "tool-calls": ({"tool_calls": [{"id": "x"}]}, "got: `tool_calls`"),
    "reasoning": ({"reasoning_content": "Hm."}, "got: `reasoning_content`"),
    "half-weight": ({"weight": 0.5}, "`weight` to be 0 or 1, got: 0.5"),
    "number-loss": ({"loss": 0}, "`loss` to be true or false, got: 0"),
    "text-train": ({"train": "no"}, "`train` to be true or false, got: 'no'"),
    "contradiction": ({"weight": 0, "train": True}, "weight and train to agree"),
}


@pytest.mark.parametrize(("changes", "message"), BAD_TURNS.values(), ids=BAD_TURNS)
def test_key_of_a_turn_that_cannot_be_obeyed_is_refused(file, changes, message):
    write_lines(file, [{"messages": TWO}, {"messages": with_turn(1, **changes)}])
    with pytest.raises(DataError, match=rf"^{file}:2 \(messages\[1\]\): expected .*{message}"):
        read_samples(file)


def test_learned_turn_of_the_user_is_refused(file):
    with pytest.raises(DataError, match=r"only the assistant's turns .* weight in a turn of the u"):
        read_samples(write_lines(file, [{"messages": with_turn(0, weight=1)}]))


def test_keys_of_a_turn_that_hold_nothing_are_no_keys(file):
    record = {"messages": with_turn(1, tool_calls=[], refusal=None, weight=None, name="Ann")}
    (sample,) = read_samples(write_lines(file, [record]))
    assert sample.turns == read_samples(write_lines(file, [{"messages": TWO}]))[0].turns


def test_sample_of_which_no_answer_is_to_be_learned_is_refused(file):
    turns = [{**turn, "train": False} for turn in TWO]
    with pytest.raises(DataError, match=f"^{file}:1: expected a turn to learn, got none"):
        read_samples(write_lines(file, [{"messages": turns}]))


@pytest.mark.parametrize(
    ("kind", "key", "value"),
    [
        ("messages", "tools", [{"type": "function"}]),
        ("messages", "system", "Judge."),
        ("prompt", "history", [["a", "b"]]),
        ("prompt", "weight", 0),
        ("dialogue", "input", "A text."),
    ],
)
def test_key_that_another_format_would_learn_from_is_refused(file, kind, key, value):
    write_lines(file, [{**FORMATS[kind], key: value}])
    with pytest.raises(DataError, match=f"^{file}:1: expected a sample of format .* `{key}`, got"):
        read_samples(file)
    empty: object = [] if isinstance(value, list) else None
    read_samples(write_lines(file, [{**FORMATS[kind], key: empty}]))
