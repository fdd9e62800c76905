"""Rows read by a pattern: what it takes is what the parser takes, to the last bit."""

import json

import numpy as np
import pytest
from large import write_large_folder
from synthetic import make_items, make_rows

from cqa.schema.row_forms import Block, read_written
from cqa.score_folder import parse_row, read_blocks, read_rows, with_checksum
from cqa.stats.items import item_facts, item_score
from cqa.stats.summary import Scores, summarise


def as_line(row: dict) -> bytes:
    held = {"delta_i_best_wrong_nats": row["delta_i_nats"], **row}
    order = [k for k in row if k != "rank_prob"] + ["delta_i_best_wrong_nats", "rank_prob"]
    return line_of(with_checksum({key: held[key] for key in order}))


def line_of(record: dict) -> bytes:
    return json.dumps(record, ensure_ascii=False).encode() + b"\n"


@pytest.fixture(scope="module")
def lines() -> list[bytes]:
    """Rows with tokens of pairs, continuations and items of four and five options."""
    items = make_items(6)
    items[0]["answer"], items[1]["source_id"] = 1, "Ænima «Ω» 🎈"
    return [as_line(row) for row in make_rows(items, [None, "epoch-01"])]


@pytest.mark.parametrize("tokens", [True, False])
def test_what_the_pattern_takes_is_what_the_parser_takes(lines, tokens):
    n_taken = 0
    for line in lines:
        record = json.loads(line)
        del record["row_digest"]
        if not tokens:
            for option in record["options"]:
                for key in [key for key in option if key.startswith("token_")]:
                    del option[key]
        line = line_of(with_checksum(record))
        found = read_written(line)
        assert (found is not None) == (len(record["options"]) <= 2)
        if found is not None:
            form, pieces = found
            assert form.record(pieces) == parse_row(line, "made up")
            assert form.digested(pieces) == json.dumps(record, sort_keys=True).encode()
            n_taken += 1
    assert n_taken > 40


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ('"logp_null_nats": -', '"logp_null_nats": −'),
        ('"n_tokens": 1', '"n_tokens": 01'),
        ('"n_tokens": 1', '"n_tokens": ١'),
        ('"n_tokens": 1', '"n_tokens": 0'),
        ('"n_tokens": 1', '"n_tokens": 1.0'),
        ('"n_tokens": 1', '"n_tokens": 1e400'),
        ('"logp_null_nats": -', '"logp_null_nats": -NaN'),
        ('"logp_null_nats": -', '"logp_null_nats": -1e9'),
        ('"answer": 0', '"answer": 2'),
        ('"answer": 0', '"answer": null'),
        ('"answer": 0', '"answer": true'),
        ('"kind": "pair"', '"kind": "continuation"'),
        ('"role": "good"', '"role": "best"'),
        ('"group": "literary"', '"group": null'),
        ('"group": "literary"', '"group": "a\\ud800"'),
        ('"group": "literary"', '"group": "a\tb"'),
        ('"token_ids": [0, ', '"token_ids": ['),
        ('"adapter": null', '"adapter": null, "adapter": null'),
        (', "rank_prob": null', ""),
        ("}\n", "} \n"),
        ("}\n", "}"),
    ],
)
def test_what_is_not_as_it_is_written_is_left_to_the_parser(lines, old, new):
    line = next(line for line in lines if b'"id": "literary-1"' in line).decode()
    assert old in line
    assert read_written(line.encode()) is not None
    assert read_written(line.replace(old, new, 1).encode("utf-8", "surrogatepass")) is None


def test_blocks_hold_the_rows_in_their_order(tmp_path, lines):
    path = tmp_path / "scores.jsonl"
    spaced = line_of(with_checksum(parse_row(lines[3], "").to_json())).replace(b": ", b":  ", 1)
    path.write_bytes(b"".join([*lines[:9], spaced, *lines[9:]]))
    rows, n_blocks = [], 0
    for found in read_blocks(path):
        n_blocks += isinstance(found, Block)
        rows += found.records() if isinstance(found, Block) else [found]
    assert rows == list(read_rows(path))
    assert n_blocks > 2


@pytest.mark.parametrize("tokens", [True, False])
def test_scores_of_blocks_are_those_of_rows(tmp_path, tokens):
    folder = write_large_folder(tmp_path / "scores", n_items=120, tokens=tokens)
    rows = list(read_rows(folder / "scores.jsonl"))
    copies = {"item-3": "item-1", "item-9": "item-19"}
    by_block = Scores(read_blocks(folder / "scores.jsonl"), copies)
    by_row = Scores(rows, copies)
    assert by_block.n_copies == by_row.n_copies
    assert by_block.texts == by_row.texts
    assert {**by_block.facts} == {**by_row.facts}
    for group, models in by_row.items.items():
        for name, scores in models.items():
            assert dict(by_block.items[group][name]) == dict(scores)
            assert np.array_equal(by_block.items[group][name].rows, scores.rows)
    for row in rows:
        if row.kind == "pair" and row.id not in copies:
            assert by_block.items[row.group][row.adapter][row.id] == item_score(row)
            assert by_block.facts[row.id] == item_facts(row)
    assert summarise(by_block) == summarise(by_row)
