"""Decision points by class and value: against scipy, by hand, and from file to file."""

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers import read_lines, write_lines
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import softmax
from scipy.stats import entropy
from study.common import MODEL, write_pairs

from cqa.errors import ConfigError, DataError
from cqa.schema.prescreen import PrescreenSummary
from cqa.schema.rows import ItemRow, OptionScore
from cqa.score.config import PrescreenConfig
from cqa.score.prescreen import point_of, prescreen, prescreen_text

OPTIONS = {
    "id": "o", "context": "It rained,", "options": [" she ran home.", " he.", " no"], "answer": 0,
}  # fmt: skip


def config_of(**changes: Any) -> PrescreenConfig:
    settings = {"model": str(MODEL), "out": Path("out"), "pairs": (Path("p"),), "device": "cpu"}
    return PrescreenConfig(**{**settings, **changes})


def row_of(logp: list[float], answer: int, n_bytes: list[int] | None = None) -> ItemRow:
    """Return a row of scores; only what prescreening reads is of use."""
    lengths = n_bytes or [1] * len(logp)
    options = tuple(
        OptionScore(
            role="right" if k == answer else "wrong", logp_given_context_nats=s, logp_null_nats=0.0,
            logp_null2_nats=0.0, pmi_nats=s, entropy_given_context_nats=0.0, entropy_null_nats=0.0,
            n_tokens=n, n_bytes=n, n_chars=n, boundary_mismatch=False,
        )
        for k, (s, n) in enumerate(zip(logp, lengths, strict=True))
    )  # fmt: skip
    return ItemRow(
        id="x", group="literary", domain=None, lang=None, source_id=None, published_at=None,
        kind="options", answer=answer, adapter=None, model_key="m", item_key="k", options=options,
        delta_i_nats=0.0, delta_i_best_wrong_nats=0.0, rank_prob=0.5,
    )  # fmt: skip


LOGPS = st.lists(st.floats(-400, 0), min_size=2, max_size=5)


@given(LOGPS, st.data())
def test_value_of_a_sure_expert_is_the_surprise_at_the_right_option(logp, data):
    answer = data.draw(st.integers(0, len(logp) - 1))
    point = point_of(row_of(logp, answer), config_of())
    sure = [float(k == answer) for k in range(len(logp))]
    assert point.value_nats == pytest.approx(-math.log(softmax(logp)[answer]), abs=1e-9)
    given_expert = point_of(row_of(logp, answer), config_of(), sure)
    assert given_expert.value_nats == pytest.approx(point.value_nats, abs=1e-9)


@given(LOGPS, st.data())
def test_value_of_an_unsure_expert_is_the_divergence_of_scipy(logp, data):
    weights = data.draw(st.lists(st.floats(0.01, 1), min_size=len(logp), max_size=len(logp)))
    expert = np.array(weights) / sum(weights)
    point = point_of(row_of(logp, 0), config_of(), list(expert))
    assert point.value_nats == pytest.approx(entropy(expert, softmax(logp)), abs=1e-7)
    assert point.value_nats > -1e-9
    assert point.h_cand_nats == pytest.approx(entropy(softmax(logp)), abs=1e-9)


@pytest.mark.parametrize(
    ("p", "answer", "expected"),
    [
        ([0.81, 0.19], 0, "internalised"),
        ([0.79, 0.21], 0, "flat"),
        ([0.5, 0.5], 0, "flat"),
        ([0.21, 0.79], 0, "flat"),
        ([0.19, 0.81], 0, "wrong"),
        ([0.45, 0.45, 0.1], 1, "flat"),
        ([0.05, 0.9, 0.05], 1, "internalised"),
        ([0.05, 0.9, 0.05], 2, "wrong"),
    ],
)
def test_class_is_the_papers_rule_at_the_threshold(p, answer, expected):
    logp = [math.log(x) - 50 for x in p]
    assert point_of(row_of(logp, answer), config_of()).class_ == expected


def test_threshold_and_unit_are_settings():
    row = row_of([math.log(0.6) - 9, math.log(0.4) - 9], 0)
    assert point_of(row, config_of()).class_ == "flat"
    assert point_of(row, config_of(high=0.55)).class_ == "internalised"
    long = row_of([-40.0, -10.0], 0, [40, 2])  # 1 and 5 nats per byte
    assert point_of(long, config_of()).class_ == "wrong"
    for unit in ("token", "byte", "char"):
        point = point_of(long, config_of(per=unit))
        assert (point.class_, point.class_per_byte) == ("internalised", "internalised")
        assert point.p_right == pytest.approx(softmax([-1, -5])[0])
        assert point.p_right_per["sum"] == pytest.approx(softmax([-40, -10])[0])


@pytest.fixture(scope="module")
def done(tmp_path_factory) -> tuple[PrescreenConfig, PrescreenSummary]:
    folder = tmp_path_factory.mktemp("points")
    pairs = write_pairs(folder / "pairs.jsonl", 4, "literary", "factual")
    several = write_lines(folder / "several.jsonl", [OPTIONS])
    config = config_of(pairs=(pairs, several), out=folder / "out", budget=3)
    return config, prescreen(config)


def test_points_are_ranked_by_value_and_say_what_the_scores_say(done):
    config, summary = done
    points = read_lines(config.out / "prescreen.jsonl")
    rows = {row["id"]: row for row in read_lines(config.out / "scores.jsonl")}
    assert {point["id"] for point in points} == set(rows)
    assert len(points) == summary.n == 9
    assert [point["rank"] for point in points] == list(range(1, 10))
    values = [point["value_nats"] for point in points]
    assert values == sorted(values, reverse=True)
    for point in points:
        row = rows[point["id"]]
        p = softmax([option["logp_given_context_nats"] for option in row["options"]])
        assert point["p_right"] == pytest.approx(p[row["answer"]])
        assert point["value_nats"] == pytest.approx(-math.log(p[row["answer"]]), abs=1e-9)


def test_counts_and_shares_are_of_the_ranked_file(done):
    config, summary = done
    points = read_lines(config.out / "prescreen.jsonl")
    for name, n in summary.classes.items():
        assert n == sum(point["class"] == name for point in points)
    assert {g: sum(c.values()) for g, c in summary.groups.items()} == {
        "literary": 4, "factual": 4, "ungrouped": 1,
    }  # fmt: skip
    values = [point["value_nats"] for point in points]
    assert summary.mean_value_nats == pytest.approx(np.mean(values))
    assert summary.value_share_selected == pytest.approx(sum(values[:3]) / sum(values))
    assert [ranked.to_json() for ranked in summary.most_valuable] == points[:10]
    held = json.loads((config.out / "prescreen.json").read_text())
    assert held["settings"]["high"] == 0.8
    assert held["classes"] == summary.classes


def test_budget_selects_the_most_valuable_lines_as_they_were(done):
    config, summary = done
    given = {r["id"]: r for path in config.pairs for r in read_lines(path)}
    best = [p["id"] for p in read_lines(config.out / "prescreen.jsonl")[:3]]
    assert list(summary.selected) == best
    assert read_lines(config.out / "selected.jsonl") == [given[name] for name in best]


def test_text_shows_classes_and_the_most_valuable(done):
    text = prescreen_text(done[1])
    assert "wrong  flat  internalised" in text
    assert done[1].selected[0] in text
    assert "the 3 selected hold" in text


def test_a_group_that_is_called_all_is_not_all_of_them(done):
    classes = dict.fromkeys(done[1].classes, 1)
    groups = {"all": classes, "'all": classes, "x": classes}
    text = prescreen_text(replace(done[1], groups=groups, n=9))
    firsts = [line.split()[0] for line in text.splitlines()[1:5]]
    assert firsts == ["'all", "''all", "x", "all"]


def test_experts_own_distribution_counts(tmp_path):
    unsure = {**OPTIONS, "id": "u", "expert": [0.5, 0.25, 0.25]}
    pairs = write_lines(tmp_path / "p.jsonl", [OPTIONS, unsure])
    prescreen(config_of(pairs=(pairs,), out=tmp_path / "out"))
    points = {p["id"]: p for p in read_lines(tmp_path / "out" / "prescreen.jsonl")}
    row = next(r for r in read_lines(tmp_path / "out" / "scores.jsonl") if r["id"] == "u")
    p = softmax([option["logp_given_context_nats"] for option in row["options"]])
    assert points["u"]["value_nats"] == pytest.approx(entropy([0.5, 0.25, 0.25], p))
    assert points["o"]["value_nats"] == pytest.approx(-math.log(p[0]))


@pytest.mark.parametrize(
    "expert",
    [[0.5, 0.5], [0.5, 0.5, 0.5], [2, -1, 0], "sure", [True, 0, 0], [0.2, 0.7, 0.1]],
    ids=["short", "sum", "range", "text", "truth", "disagrees"],
)
def test_distribution_that_is_none_is_refused_before_scoring(tmp_path, expert):
    pairs = write_lines(tmp_path / "p.jsonl", [{**OPTIONS, "expert": expert}])
    with pytest.raises(DataError, match=f"^{pairs}:1: expected .*expert.* got"):
        prescreen(config_of(pairs=(pairs,), out=tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def test_points_of_earlier_files_are_not_ranked(done):
    config, _ = done
    again = config_of(pairs=config.pairs[1:], out=config.out)
    names = ("prescreen.jsonl", "prescreen.json", "selected.jsonl")
    held = {name: (config.out / name).read_bytes() for name in names}
    assert prescreen(again).n == 1
    assert [p["id"] for p in read_lines(config.out / "prescreen.jsonl")] == ["o"]
    assert not (config.out / "selected.jsonl").exists()
    for name, content in held.items():
        (config.out / name).write_bytes(content)


LONG = {**OPTIONS, "id": "long", "group": "lengthy", "context": "word " * 1100}


def test_points_that_are_too_long_are_refused_by_default_with_what_to_do(done, tmp_path):
    pairs = write_lines(tmp_path / "long.jsonl", [OPTIONS, LONG])
    with pytest.raises(DataError, match=f"^{pairs}:2: expected at most 1024 tokens") as caught:
        prescreen(config_of(pairs=(pairs,), out=tmp_path / "out"))
    assert "--too-long drop of score, prescreen or scale" in str(caught.value.hint)
    assert not (tmp_path / "out").exists()


def test_points_that_are_too_long_are_named_and_in_no_count_when_left_out(done, tmp_path):
    config, without = done
    long = write_lines(tmp_path / "long.jsonl", [LONG])
    changed = config_of(
        pairs=(long, *config.pairs), out=tmp_path / "out", budget=3, too_long="drop"
    )
    summary = prescreen(changed)
    assert without.too_long == {}
    assert summary == replace(without, too_long={"long": "lengthy"})
    assert "long" not in {p["id"] for p in read_lines(changed.out / "prescreen.jsonl")}
    held = json.loads((changed.out / "prescreen.json").read_text())
    assert held["too_long"] == {"long": "lengthy"}
    line = "left out, over the model's 1024 positions: 1 lengthy (long; prescreen.json names all)"
    assert prescreen_text(summary) == f"{prescreen_text(without)}\n{line}"


@pytest.mark.parametrize("changes", [{"high": 0.5}, {"high": 1.1}, {"budget": 0}, {"pairs": ()}])
def test_settings_out_of_range_are_refused(changes):
    with pytest.raises(ConfigError):
        config_of(**changes)
