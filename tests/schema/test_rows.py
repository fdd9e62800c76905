"""Rows of scores.jsonl: the keys of the contract, and what other versions may leave out."""

from dataclasses import replace

import pytest

from cqa.errors import DataError
from cqa.schema.meta import ScoredModel
from cqa.schema.rows import ItemRow, ItemText, OptionScore

KEYS = (
    "role", "logp_given_context_nats", "logp_null_nats", "logp_null2_nats", "pmi_nats",
    "entropy_given_context_nats", "entropy_null_nats", "n_tokens", "n_bytes", "n_chars",
    "boundary_merge",
)  # fmt: skip
PER_TOKEN = (
    "token_ids", "token_char_ends", "token_logp_given_context_nats", "token_logp_null_nats",
)  # fmt: skip


def option(role="good", **changed):
    values = (role, -4.0, -6.0, -6.5, 2.0, 3.0, 3.5, 2, 9, 8, False)
    return dict(zip(KEYS, values, strict=True)) | changed


def row(**changed):
    return {
        "id": "a", "group": "literary", "domain": None, "lang": "en", "source_id": None,
        "published_at": None, "kind": "pair", "answer": 0, "adapter": None, "model_key": "m",
        "item_key": "k", "options": [option(), option("bad")], "delta_i_nats": 0.0,
        "delta_i_best_wrong_nats": 0.0, "rank_prob": 0.5,
    } | changed  # fmt: skip


def test_a_row_is_written_as_it_was_read():
    assert ItemRow.from_json(row(), "f:1").to_json() == row()
    assert list(ItemRow.from_json(row(), "f:1").to_json()) == list(row())


def test_values_per_token_are_there_only_when_asked_for():
    per_token = dict(zip(PER_TOKEN, ([5, 6], [3, 8], [-1.0, -3.0], [-2.0, -4.0]), strict=True))
    value = option(**per_token)
    assert list(OptionScore.from_json(value, "f:1").to_json()) == [*KEYS, *PER_TOKEN]
    assert list(OptionScore.from_json(option(), "f:1").to_json()) == list(KEYS)


@pytest.mark.parametrize("key", ["domain", "lang", "source_id", "published_at", "rank_prob"])
def test_a_row_without_an_optional_key_is_read(key):
    value = row()
    del value[key]
    assert getattr(ItemRow.from_json(value, "f:1"), key) is None


def test_a_row_whose_options_hold_some_values_per_token_is_read():
    value = option(token_ids=[5, 6])
    read = ItemRow.from_json(row(options=[value, option("bad")]), "f:1")
    assert read.options[0].token_ids == (5, 6)
    assert read.options[0].token_logp_null_nats is None


def _without(key):
    value = option("bad")
    del value[key]
    return [option(), value]


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"options": _without("role")}, "expected `options[1].role`, got none"),
        ({"options": _without("pmi_nats")}, "expected `options[1].pmi_nats`, got none"),
        ({"options": []}, "expected an option, got none"),
        ({"answer": None}, "got None of 2"),
        ({"answer": 2}, "got 2 of 2"),
        ({"answer": -1}, "got -1 of 2"),
        ({"options": [option()]}, "got 0 of 1"),
        ({"delta_i_nats": None}, "expected `delta_i_nats` of an item with an answer"),
        ({"kind": "pairs"}, "expected `kind` to be pair or options or continuation"),
        ({"options": [option(n_bytes=0), option("bad")]}, "byte and character, got (2, 0, 8)"),
        ({"options": [option(token_ids=[1]), option("bad")]}, "expected 2 values a token, got [1]"),
    ],
)
def test_a_row_that_cannot_be_counted_gets_one_message(changed, message):
    with pytest.raises(DataError) as caught:
        ItemRow.from_json(row(**changed), "scores.jsonl:3")
    assert str(caught.value).startswith("scores.jsonl:3: ")
    assert message in str(caught.value)


def test_a_text_has_the_labels_that_its_item_has():
    value = {
        "id": "a", "item_key": "k", "kind": "continuation", "context": "c", "options": ["x"],
        "answer": None, "lang": "en",
    }  # fmt: skip
    text = ItemText.from_json(value | {"note": "kept by the file"}, "f:1")
    assert text.to_json() == value


def test_only_the_base_has_no_origin_in_meta_json():
    value = {
        "model_key": "k", "adapter": None, "tokenizer": "t", "template": None, "boundary": "split",
        "null_ids": [0], "null2_ids": [0, 1], "score_eos": False, "code": "c", "model": "m",
        "device": "cpu", "dtype": "float32", "backend": "native", "engine": "cqa",
        "batch_invariant": True, "adapter_digest": None,
    }  # fmt: skip
    base = ScoredModel.from_json(value, "meta.json")
    assert base.to_json() == value
    adapter = replace(base, adapter="epoch-01", adapter_digest="d", n_tokens=3, seconds=0.5)
    assert list(adapter.to_json())[-4:] == [
        "adapter_digest",
        "adapter_origin",
        "n_tokens",
        "seconds",
    ]
    assert adapter.to_json()["adapter_origin"] is None
