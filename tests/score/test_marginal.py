"""The contexts of other items as second null: drawn by texts and seed, equal to a naive loop."""

import json
import math
import random

import numpy as np
import pytest
from helpers import read_lines, tiny_run, write_lines
from score.common import load_reference

from cqa.data.items import parse_pair
from cqa.data.tokenizer import Tokenizer
from cqa.errors import ConfigError, DataError
from cqa.report.config import ReportConfig
from cqa.report.write import write_report
from cqa.score.config import ScoreConfig
from cqa.score.marginal import Marginal, read_null2
from cqa.score.merge import merge
from cqa.score.other_contexts import drawn_contexts
from cqa.score.run import score
from cqa.stats.information import log_mean_exp

WORDS = ("lamp", "door", "she", "was lit", "waited by", "a", "the", "and")
PAIRS = [
    {
        "id": f"p{k}",
        "group": ("literary", "factual")[k % 2],
        "source_id": f"s{k // 4}",
        "context": f"{WORDS[k % 8]} {WORDS[(3 * k + 1) % 8]} {WORDS[k % 5]}",
        "good": f" {WORDS[(k + 3) % 8]} {WORDS[k % 3]}",
        "bad": f" {WORDS[(k + 5) % 8]}",
    }
    for k in range(24)
]
TEXTS = [{"context": f"the {word} was", "continuation": " lit and a door"} for word in WORDS]


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    folder = tiny_run(tmp_path_factory.mktemp("inputs"))
    write_lines(folder / "pairs.jsonl", PAIRS)
    write_lines(folder / "texts.jsonl", TEXTS)
    return folder


def config_of(inputs, out, **changes):
    settings = {
        "pairs": (inputs / "pairs.jsonl",), "continuations": (inputs / "texts.jsonl",),
        "run": (inputs / "run",), "null2": "marginal:3", "batch_tokens": 70, "device": "cpu",
    } | changes  # fmt: skip
    return ScoreConfig(model=str(inputs / "model"), out=out, **settings)


@pytest.fixture(scope="module")
def scored(inputs, tmp_path_factory):
    out = tmp_path_factory.mktemp("scored") / "out"
    score(config_of(inputs, out))
    return out


def drawn(inputs, records, marginal=Marginal(3), fits=lambda ids: True):  # noqa: B008
    items = [parse_pair(record, record["id"]) for record in records]
    return drawn_contexts(items, Tokenizer(inputs / "model"), marginal, fits=fits), items


def test_values_are_those_of_a_naive_loop(inputs, scored):
    import torch

    model, tokenizer = load_reference(inputs / "model", torch.float64), Tokenizer(inputs / "model")
    others, items = drawn(inputs, PAIRS)
    rows = {row["id"]: row for row in read_lines(scored / "scores.jsonl") if not row["adapter"]}
    for item in items:
        for text, option in zip(item.options, rows[item.id]["options"], strict=True):
            ids = tokenizer.encode_following(text)
            sums = []
            for context in others.of(item):
                with torch.no_grad():
                    logits = model(torch.tensor([context + ids])).logits[0]
                logp = logits[len(context) - 1 : -1].log_softmax(-1)
                sums.append(sum(float(logp[k, token]) for k, token in enumerate(ids)))
            expected = math.log(np.mean(np.exp(sums)))
            assert option["logp_null2_nats"] == pytest.approx(expected, abs=1e-5)


def test_all_else_keeps_its_bits(inputs, scored, tmp_path):
    score(config_of(inputs, tmp_path / "plain", null2="newline"))
    for mine, theirs in zip(
        read_lines(scored / "scores.jsonl"), read_lines(tmp_path / "plain" / "scores.jsonl"),
        strict=True,
    ):  # fmt: skip
        assert mine["model_key"] != theirs["model_key"]
        for ours, other in zip(mine["options"], theirs["options"], strict=True):
            assert ours.pop("logp_null2_nats") != other.pop("logp_null2_nats")
            assert json.dumps(ours) == json.dumps(other)


def test_contexts_are_of_other_sources_of_the_group(inputs):
    others, items = drawn(inputs, PAIRS)
    tokenizer = Tokenizer(inputs / "model")
    for item in items:
        found = [tokenizer.decode(ids) for ids in others.of(item)]
        assert len(set(found)) == 3
        for text in found:
            own = [one for one in items if tokenizer.decode(tokenizer.encode_context(one.context))
                   == text and one.group == item.group]  # fmt: skip
            assert own
            assert item.context not in {one.context for one in own}
            assert any(one.labels["source_id"] != item.labels["source_id"] for one in own)


def test_the_draw_depends_on_seed_and_texts_alone(inputs):
    first, items = drawn(inputs, PAIRS)
    shuffled = random.Random(1).sample(PAIRS, len(PAIRS))
    again, _ = drawn(inputs, shuffled)
    assert again.digest == first.digest
    assert [again.of(item) for item in items] == [first.of(item) for item in items]
    assert drawn(inputs, PAIRS, Marginal(3, 1))[0].digest != first.digest
    assert drawn(inputs, PAIRS, Marginal(2))[0].digest != first.digest


def test_of_very_many_sources_the_same_are_drawn(inputs):
    many = [
        PAIRS[0] | {"id": f"m{k}", "source_id": f"book {k}", "context": f"the {k} lamp"}
        for k in range(600)
    ]
    others, items = drawn(inputs, many)
    few = {text for held in others.by_group.values() for text in (one.text for one in held)}
    kept = [record for record in many if record["context"] in few]
    assert len(kept) == 5
    again, _ = drawn(inputs, kept)
    assert [again.of(item) for item in items] == [others.of(item) for item in items]


@pytest.mark.parametrize("seed", [0, 1])
def test_contexts_without_room_and_repeated_ones_keep_no_other_from_the_draw(inputs, seed):
    """Of 900 sources a tenth fits and a third says the same: order and number change nothing."""
    many = [
        PAIRS[0] | {"id": f"m{k}", "source_id": f"book {k}",
                    "context": "the lamp" if k % 3 == 0 else f"the {k} lamp"}
        for k in range(900)
    ]  # fmt: skip
    room = {f"the {k} lamp" for k in range(1, 900, 9) if k % 3} | {"the lamp"}
    tokenizer = Tokenizer(inputs / "model")

    def fits(ids):
        return tokenizer.decode(ids) in room

    others, items = drawn(inputs, many, Marginal(8, seed), fits)
    assert {len(others.of(item)) for item in items} == {8}
    assert {tokenizer.decode(ids) for item in items for ids in others.of(item)} <= room
    again, _ = drawn(inputs, random.Random(seed).sample(many, len(many)), Marginal(8, seed), fits)
    assert again.digest == others.digest


def test_contexts_of_a_group_of_several_languages_are_of_the_item_s_own(inputs):
    mixed = [
        PAIRS[0] | {"id": f"m{k}", "source_id": f"book {k}", "context": f"the {k} lamp",
                    "lang": ("en", "zh")[k % 2]}
        for k in range(24)
    ]  # fmt: skip
    others, items = drawn(inputs, mixed)
    tokenizer = Tokenizer(inputs / "model")
    lang = {record["context"]: record["lang"] for record in mixed}
    for item in items:
        assert {lang[tokenizer.decode(i)] for i in others.of(item)} == {item.labels["lang"]}
    few = [record | {"lang": "zh" if k == 5 else "en"} for k, record in enumerate(mixed)]
    others, items = drawn(inputs, few)
    with pytest.raises(DataError, match="in group `literary` and language `zh` for item `m5`"):
        others.of(items[5])


def test_shards_merge_to_the_bytes_of_one_run(inputs, scored, tmp_path):
    folders = [tmp_path / f"s{k}" for k in (1, 2, 3)]
    for k, folder in enumerate(folders, start=1):
        score(config_of(inputs, folder, shard=f"{k}/3"))
    merge(tmp_path / "out", folders)
    merged = (tmp_path / "out" / "scores.jsonl").read_bytes()
    assert merged == (scored / "scores.jsonl").read_bytes()


def test_too_few_contexts_are_refused_before_any_work(inputs, tmp_path):
    expected = r"expected 9 contexts of other sources in group `literary` for item `p0`, got \d"
    with pytest.raises(DataError, match=expected) as caught:
        score(config_of(inputs, tmp_path / "out", null2="marginal:9"))
    assert caught.value.hint.startswith("--null2 marginal:")
    assert not (tmp_path / "out").exists()


def test_a_context_that_leaves_no_room_is_refused_or_left_out(inputs, tmp_path):
    long = PAIRS[0] | {"id": "long", "source_id": "long", "good": " a" * 250}
    path = write_lines(tmp_path / "long.jsonl", [*PAIRS, long])
    with pytest.raises(DataError, match=r"tokens of context and option, got .* in item `long`"):
        score(config_of(inputs, tmp_path / "out", pairs=(path,)))
    score(config_of(inputs, tmp_path / "out", pairs=(path,), too_long="drop"))
    assert "long" not in {row["id"] for row in read_lines(tmp_path / "out" / "scores.jsonl")}


def test_the_report_names_it(inputs, scored, tmp_path):
    write_report(scored, ReportConfig(out=tmp_path / "report", run=inputs / "run"))
    text = (tmp_path / "report" / "report.md").read_text()
    assert "contexts of other items (marginal:3)" in text
    assert "second ∅" in (tmp_path / "report" / "tables" / "readings.csv").read_text()


@pytest.mark.parametrize(
    "text",
    ["", "marginal", "marginal:0", "marginal:1001", "marginal:-1", "marginal:2:", "marginal:2:x",
     "marginal: 2", "Newline"],
)  # fmt: skip
def test_other_spellings_are_refused(text):
    with pytest.raises(ConfigError, match="null2"):
        read_null2(text)


def test_one_null_and_a_marginal_do_not_go_together(inputs, tmp_path):
    with pytest.raises(ConfigError, match="expected --null2 with --nulls 2"):
        config_of(inputs, tmp_path / "out", nulls=1)


def test_the_mean_of_one_keeps_its_bits():
    assert log_mean_exp([-123.4567890123]) == -123.4567890123
    assert log_mean_exp([-1000.0, -1000.0]) == -1000.0
    assert log_mean_exp([-1e4, -2.0]) == pytest.approx(-2.0 - math.log(2))
