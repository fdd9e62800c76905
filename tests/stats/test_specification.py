"""The specification curve against scipy, and its share of agreement by hand."""

import numpy as np
import pytest
from scipy import stats
from synthetic import make_items, make_rows, records

from cqa.schema.provenance import provenance
from cqa.schema.rows import CHOOSERS
from cqa.stats.specification import share_that_agrees, specification_curve
from cqa.stats.summary import Scores, summarise

ADAPTERS = [None, "epoch-02", "epoch-04"]


@pytest.fixture(scope="module")
def curve():
    rows = list(make_rows(make_items(24), ADAPTERS))
    scores = Scores(records(rows))
    summary = summarise(scores)
    found = specification_curve(
        scores.items, scores.facts, ["literary", "factual"], "epoch-04", summary
    )
    return rows, summary.verdict, found


def reading(rows, group, adapter, null, length):
    def i_of(option):
        pmi = option["logp_given_context_nats"] - option[null]
        return pmi / (option[length] if length else 1)

    found = [r for r in rows if (r["group"], r["adapter"]) == (group, adapter)]
    pairs = [r["options"] for r in found if r["kind"] == "pair"]
    return np.array([i_of(good) - i_of(bad) for good, bad in pairs])


def test_every_combination_is_there_once(curve):
    _, _, found = curve
    keys = {(s.question, s.per, s.null, s.test) for s in found}
    assert len(keys) == len(found) == 2 * 3 * 2 * 3


@pytest.mark.parametrize(
    ("null", "key"), [("null", "logp_null_nats"), ("null2", "logp_null2_nats")]
)
@pytest.mark.parametrize(
    ("per", "length"), [("sum", ""), ("token", "n_tokens"), ("byte", "n_bytes")]
)
def test_each_is_the_test_of_its_reading(curve, null, key, per, length):
    rows, _, found = curve
    ddi = {
        group: reading(rows, group, "epoch-04", key, length)
        - reading(rows, group, None, key, length)
        for group in ("literary", "factual")
    }
    mine = {(s.question, s.test): s for s in found if (s.per, s.null) == (per, null)}
    own, other = ddi["literary"], ddi["factual"]
    assert mine["change", "t"].estimate == pytest.approx(own.mean())
    greater = {"alternative": "greater"}
    assert mine["change", "t"].p == pytest.approx(stats.ttest_1samp(own, 0, **greater).pvalue)
    wilcoxon = stats.wilcoxon(own, method="exact", **greater).pvalue
    assert mine["change", "Wilcoxon (paper)"].p == pytest.approx(wilcoxon)
    welch = stats.ttest_ind(own, other, equal_var=False)
    assert mine["selective", "t (paper)"].p == pytest.approx(welch.pvalue)
    assert mine["selective", "t (paper)"].estimate == pytest.approx(own.mean() - other.mean())


def test_the_headline_specification_is_the_verdict_s_test(curve):
    _, verdict, found = curve
    (headline,) = [
        s
        for s in found
        if (s.question, s.per, s.null, s.test) == ("change", "sum", "null", "deciding test")
    ]
    assert headline.p == verdict.finding("change").p
    asked = [s for s in found if s.question == "change"]
    by_hand = np.mean([s.says == verdict.finding("change").mark for s in asked])
    assert share_that_agrees(found, "change") == by_hand
    assert share_that_agrees([], "change") is None


PLACEBO = provenance({"placebo": "responses dealt by seed 0", "epoch": "1"})


@pytest.mark.parametrize("how", ["placebo", "chosen elsewhere"])
def test_the_curve_pays_for_what_the_verdict_pays_for(how):
    items = make_items(24)
    if how == "chosen elsewhere":
        for item in [i for i in items if i["group"] == "literary" and i["kind"] == "pair"][::2]:
            item["group"] = CHOOSERS
    adapters = [None, "epoch-02", "epoch-04", "fake/epoch-02", "fake/epoch-04"]
    scores = Scores(records(make_rows(items, adapters)))
    made = dict.fromkeys(adapters[3:], PLACEBO) if how == "placebo" else {}
    summary = summarise(scores, made=made)
    groups, name = ["literary", "factual"], summary.highlighted
    found = specification_curve(scores.items, scores.facts, groups, name, summary)
    tests = [s for s in found if (s.per, s.null, s.test) == ("sum", "null", "deciding test")]
    assert [s.p for s in tests] == [
        summary.verdict.finding("change").p,
        summary.interaction[name].sum_nats.p_corrected,
    ]
