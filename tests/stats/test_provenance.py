"""Placebos, seeds, choosers and copies: what of a folder's rows a verdict is about."""

import numpy as np
import pytest
from synthetic import make_items, make_rows, records

from cqa.schema.provenance import provenance
from cqa.schema.rows import CHOOSERS
from cqa.stats.config import AnalysisConfig
from cqa.stats.seeds import over_seeds
from cqa.stats.summary import Scores, summarise

RUNS = [None, "a/epoch-01", "a/epoch-02", "b/epoch-01", "b/epoch-02"]


def scores_of(adapters, *, items=None, gains=None, copies=()):
    """Return scores whose dI of the right option is raised by a gain an adapter and item."""
    items = make_items(24) if items is None else items
    rows = []
    for row in make_rows(items, adapters):
        if (gain := (gains or {}).get(row["adapter"])) is not None and row["answer"] is not None:
            rng = np.random.default_rng([len(row["id"]), int(row["id"].rpartition("-")[2])])
            option = row["options"][row["answer"]]
            moved = gain + 0.3 * rng.normal()
            option["logp_given_context_nats"] += moved
            option["pmi_nats"] += moved
            row["delta_i_nats"] += moved
        rows.append(row)
    return Scores(records(rows), copies)


REAL = {"recipe_digest": "r", "seed": "0", "epoch": "1"}
PLACEBO = {"placebo": "responses dealt by seed 0", "recipe_digest": "p", "seed": "0", "epoch": "1"}


def test_a_placebo_is_never_chosen_and_the_difference_from_it_is_a_finding():
    adapters = [None, "run/epoch-01", "fake/epoch-01"]
    made = {"run/epoch-01": provenance(REAL), "fake/epoch-01": provenance(PLACEBO)}
    gains = {"run/epoch-01": 1.0, "fake/epoch-01": 5.0}
    scores = scores_of(adapters, gains=gains)
    with_all, alone = summarise(scores, made=made), summarise(scores_of(adapters[:2], gains=gains))
    assert with_all.highlighted == "run/epoch-01"
    family = with_all.families["literary"]
    assert family.controls == ("fake/epoch-01",)
    assert family.changes == alone.families["literary"].changes
    finding = with_all.verdict.finding("placebo")
    assert (finding.mark, finding.adapter) == ("against", "run/epoch-01")
    assert "fake/epoch-01" in finding.test
    texts = [s.verdict.finding("continuations") for s in (with_all, alone)]
    assert texts[0] == texts[1]
    assert with_all.candidates == ("run/epoch-01",)
    assert "not shown to be more so than after training on dealt responses" in (
        with_all.verdict.headline
    )
    better = summarise(scores_of(adapters, gains={adapters[1]: 5.0, adapters[2]: 1.0}), made=made)
    assert better.verdict.finding("placebo").mark == "shown"


PAIRED = {  # adapters of a run, and placebos with another epoch, other samples, another seed
    "run/epoch-02": ("r", "0", "2", "d"),
    "fake/epoch-01": ("p", "0", "1", "d"),
    "other/epoch-02": ("p", "0", "2", "e"),
    "seed/epoch-02": ("p", "1", "2", "d"),
    "fake/epoch-02": ("p", "0", "2", "d"),
}


@pytest.mark.parametrize(
    ("placebos", "compared", "unlike"),
    [
        (["fake/epoch-01", "other/epoch-02", "seed/epoch-02", "fake/epoch-02"], -1, None),
        (["fake/epoch-02", "seed/epoch-02", "other/epoch-02", "fake/epoch-01"], 0, None),
        (["other/epoch-02", "seed/epoch-02"], 1, None),
        (["other/epoch-02", "fake/epoch-01"], 0, "other samples"),
        (["fake/epoch-01"], 0, "other length of training"),
    ],
)
def test_a_placebo_that_is_unlike_shows_nothing(placebos, compared, unlike):
    adapters = [None, "run/epoch-02", *placebos]
    made = {
        name: provenance(
            dict(zip(("recipe_digest", "seed", "epoch", "data_digest"), of, strict=True))
            | ({} if name.startswith("run") else {"placebo": "dealt"})
        )
        for name, of in PAIRED.items()
    }
    summary = summarise(scores_of(adapters, gains={"run/epoch-02": 5.0}), made=made)
    found = summary.verdict.finding("placebo")
    assert f"ddI less that of {placebos[compared]};" in found.test
    assert found.mark == ("shown" if unlike is None else "not shown")
    if unlike is not None:
        assert found.reason.endswith(f"but {placebos[compared]} is of {unlike}")
        assert "but not shown to be more so" in summary.verdict.headline


def test_placebos_alone_are_no_subject():
    made = {"fake/epoch-01": provenance(PLACEBO)}
    summary = summarise(scores_of([None, "fake/epoch-01"], gains={"fake/epoch-01": 5.0}), made=made)
    assert summary.highlighted is None
    assert not summary.families
    assert "nothing to judge" in summary.verdict.headline


def test_runs_that_differ_in_their_seed_are_one_adapter_an_epoch():
    gains = {name: 1 + 0.2 * k for k, name in enumerate(RUNS[1:])}
    scores = scores_of(RUNS, gains=gains)
    made = {
        name: provenance({"recipe_digest": "r", "seed": name[0], "epoch": name[-1]})
        for name in RUNS[1:]
    }
    found = summarise(scores, made=made).seeds["literary"]
    assert [effect.epoch for effect in found] == [1, 2]
    assert found[0].adapters == {"a": "a/epoch-01", "b": "b/epoch-01"}
    base = scores.items["literary"][None]
    table = [
        [scores.items["literary"][name][i].delta_i_nats - base[i].delta_i_nats for i in base]
        for name in found[0].adapters.values()
    ]
    right = over_seeds(table, [scores.facts[i].source_id for i in base])
    assert (found[0].mean_ddi_nats, found[0].ci95_nats) == (right.mean, right.ci95)
    assert found[0].sd_of_seeds_nats == right.sd_of_seeds
    made["b/epoch-01"] = provenance({"recipe_digest": "other", "seed": "b", "epoch": "1"})
    assert [e.epoch for e in summarise(scores, made=made).seeds["literary"]] == [2]
    assert summarise(scores).seeds == {}


def test_items_that_choose_are_not_reported_and_leave_one_adapter_to_test():
    items = make_items(24)
    choosers = [i for i in items if i["group"] == "literary" and i["kind"] == "pair"][::2]
    for item in choosers:
        item["group"] = CHOOSERS
    adapters = [None, "epoch-01", "epoch-02", "epoch-03"]
    gains = {"epoch-01": 0.2, "epoch-02": 3.0, "epoch-03": 0.2}
    summary = summarise(scores_of(adapters, items=items, gains=gains))
    assert set(summary.base) == {"literary", "factual", "<i>other</i>"}
    assert summary.base["literary"].n == 12
    choice = summary.selection["literary"]
    assert (choice.chosen, choice.n_adapters, choice.cross_fitted) == ("epoch-02", 3, None)
    assert "12 items of 12 sources of --choose-on" in choice.rule
    assert list(summary.families["literary"].changes) == ["epoch-02"]
    assert list(summary.interaction) == ["epoch-02"]
    one = summary.families["literary"].changes["epoch-02"]
    assert one.p == one.p_corrected
    assert set(summary.groups["literary"]) == set(adapters[1:])


def test_the_last_adapter_is_the_subject_where_it_is_asked_for():
    gains = {"epoch-01": 3.0, "epoch-02": 0.5}
    scores = scores_of([None, "epoch-01", "epoch-02"], gains=gains)
    assert summarise(scores).highlighted == "epoch-01"
    last = summarise(scores, AnalysisConfig(choose="last"))
    assert last.highlighted == "epoch-02"
    assert last.verdict.finding("change").adapter == "epoch-02"
    assert last.families == summarise(scores).families


def test_the_last_adapter_is_that_of_the_last_epoch_however_they_were_scored():
    """First 12, then the earlier ones; and where it lacks items, that is said."""
    last = AnalysisConfig(choose="last")
    adapters = [None, "a/epoch-12", "b/epoch-12", "a/epoch-02", "a/epoch-03"]
    assert summarise(scores_of(adapters), last).highlighted == "b/epoch-12"
    assert summarise(scores_of([None, "mine", "epoch-01"]), last).highlighted == "epoch-01"
    items = make_items(24)
    rows = [
        row
        for row in make_rows(items, [None, "epoch-02", "epoch-03"])
        if row["adapter"] != "epoch-03" or row["id"] != "literary-3"
    ]
    only = summarise(Scores(records(rows)))
    assert only.highlighted == "epoch-02"
    assert "nothing to judge" not in only.verdict.headline
    three = [*rows, *make_rows(items, ["epoch-01"])]
    chosen = summarise(Scores(records(three)), last).selection["literary"]
    assert chosen.chosen == "epoch-02"
    assert chosen.rule == "the last one that has all items, since epoch-03 has not"


def test_copies_are_counted_once():
    scores = scores_of([None, "a"], copies={"literary-3", "factual-1", "literary-5"})
    summary = summarise(scores)
    assert summary.n_copies == {"literary": 2, "factual": 1}
    assert (summary.base["literary"].n, summary.base["factual"].n) == (22, 23)


@pytest.mark.parametrize("origin", [None, {}, {"model_digest": "m"}, {"epoch": None}])
def test_an_adapter_of_another_tool_is_no_placebo_and_of_no_seed(origin):
    found = provenance(origin)
    assert (found.placebo, found.recipe, found.seed, found.epoch) == (False, None, None, None)


def test_a_headline_says_that_the_wrong_options_are_still_ahead():
    adapters = [None, "epoch-01"]
    ahead = summarise(scores_of(adapters, gains={None: 20.0, "epoch-01": 23.0})).verdict
    behind = summarise(scores_of(adapters, gains={None: -20.0, "epoch-01": -17.0})).verdict
    assert [v.finding("change").mark for v in (ahead, behind)] == ["shown", "shown"]
    said = "more sensitive to quality in literary items (dI itself is still below 0"
    assert said in behind.headline
    assert "below 0" not in ahead.headline
