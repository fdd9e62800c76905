"""Scores as columns: what goes in comes out, in the order of the base."""

import numpy as np
import pytest
from synthetic import make_items, make_rows, records

from cqa.stats.information import entropies, entropy, softmax
from cqa.stats.items import item_facts, item_score
from cqa.stats.summary import Scores, summarise

ADAPTERS = [None, "epoch-01", "epoch-02"]


@pytest.fixture
def rows():
    found = records(make_rows(make_items(8), ADAPTERS))
    return [row for row in found if row.kind != "continuation"]


def check(scores: Scores, rows) -> None:
    last = {(row.adapter, row.id): row for row in rows}
    for row in last.values():
        assert scores.items[row.group][row.adapter][row.id] == item_score(row)
        assert scores.facts[row.id] == item_facts(row)
    assert sum(len(m) for models in scores.items.values() for m in models.values()) == len(last)


def test_every_score_comes_out_as_it_went_in(rows):
    check(Scores(rows), rows)


def test_items_are_in_the_order_of_the_base_whatever_that_of_the_lines(rows):
    mixed = sorted(rows, key=lambda row: (row.adapter is None, row.id[::-1]))
    scores = Scores(mixed)
    check(scores, rows)
    for group, models in scores.items.items():
        ids = [row.id for row in mixed if row.adapter is None and row.group == group]
        for held in models.values():
            assert list(held) == ids
            by_id = [held[i].delta_i_nats for i in ids]
            assert held.column("delta_i_nats").tolist() == by_id


def test_the_last_line_of_an_item_counts(rows):
    anew = records(make_rows(make_items(8), ADAPTERS, seed=1))
    again = [row for row in anew if row.kind != "continuation"][3:9]
    check(Scores([*rows, *again]), [*rows, *again])


def test_an_adapter_that_lacks_items_has_only_those_of_both(rows):
    few = [row for k, row in enumerate(rows) if row.adapter != "epoch-02" or k % 3]
    scores = Scores(few)
    base, stopped = (scores.items["literary"][name] for name in (None, "epoch-02"))
    assert base.covers(stopped)
    assert not stopped.covers(base)
    assert list(base.only(stopped)) == list(stopped)
    with pytest.raises(KeyError):
        stopped[next(i for i in base if i not in stopped)]


def test_an_adapter_that_lacks_items_of_the_control_alone_is_no_error(rows):
    few = [r for r in rows if (r.adapter, r.id) != ("epoch-02", "factual-3")]
    summary = summarise(Scores(few))
    assert list(summary.families["literary"].changes) == ["epoch-01", "epoch-02"]
    assert list(summary.interaction) == ["epoch-01"]
    assert summary.families["factual"].incomplete == {"epoch-02": 7}


def test_p_right_is_that_of_the_softmax_to_the_bit(rows):
    scores = Scores(rows)
    for row in rows:
        held = scores.items[row.group][row.adapter]
        assert held.p_right()[list(held).index(row.id)] == softmax_at_answer(row)


def softmax_at_answer(row):
    return softmax([option.logp_given_context_nats for option in row.options])[row.answer]


def test_candidates_are_the_softmax_of_any_number_of_them(rows):
    scores = Scores(rows)
    for models in scores.items.values():
        for held in models.values():
            table = held.candidates("p_given")
            for p, score in zip(table, held.values(), strict=True):
                assert p[~np.isnan(p)] == pytest.approx(score.p_given, rel=1e-14)
            by_hand = [entropy(s.p_given) for s in held.values()]
            assert entropies(table) == pytest.approx(by_hand, rel=1e-14)
