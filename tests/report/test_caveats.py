"""What a report warns of."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from helpers import write_lines
from report.made_up import PLAIN, focus_of, said, scored, spread, with_primary
from synthetic import make_run

from cqa.data.overlap import TrainedTexts
from cqa.data.samples import Sample, Turn
from cqa.identity import digest_bytes
from cqa.report.caveats import caveats
from cqa.report.focus import make_focus
from cqa.report.source import DataSettings, RunFacts, TrainingRun, read_run
from cqa.report.terminal import summary_text
from cqa.stats.summary import summarise


def test_a_clean_result_has_only_the_caveats_that_nothing_was_given_for():
    found = caveats(focus_of({"mine": PLAIN}))
    assert len(found) == 6
    assert "No plan was given" in " ".join(found)
    assert sum("no item names its source_id" in text for text in found) == 2
    assert "no --cutoff was given" in " ".join(found)
    assert "Min-K% of the base" in " ".join(found)
    assert "(--run)" in " ".join(found)


def test_few_items_are_named_with_the_power_that_they_have():
    (text,) = said(focus_of({"mine": {"literary": spread(1.0)}}), "few items")
    assert "With n = 20 the test finds an effect of d_z = 0.5 in 70 % of cases" in text
    assert "0.58 for 80 %" in text


@pytest.mark.parametrize(("tokens", "warned"), [((10, 10), 0), ((12, 10), 1), ((10, 12), 1)])
def test_uneven_options_are_named(tokens, warned):
    found = said(
        focus_of({"mine": {"literary": spread(1.0, 60)}}, tokens=tokens), "tokens on average"
    )
    assert len(found) == warned


def test_sources_that_share_items_are_counted():
    focus = focus_of({"mine": {"literary": spread(1.0, 60)}}, sources=12)
    (text,) = said(focus, "named sources")
    assert "60 of 60 items come from 12 named sources" in text
    assert not said(focus_of({"mine": {"literary": spread(1.0, 60)}}, sources=60), "sources")


def test_mixed_strata_are_counted():
    dates = ["2023", "2025", None]
    focus = focus_of({"mine": {"literary": spread(1.0, 60)}}, cutoff="2024", dates=dates)
    (text,) = said(focus, "Mixed strata")
    assert "20 items were published by 2024, 20 after it, 20 are of unknown date" in text
    focus = focus_of({"mine": {"literary": spread(1.0, 60)}}, cutoff="2024", dates=["2025"])
    assert not said(focus, "strata")


def test_boundary_merges_are_named():
    (text,) = said(
        focus_of({"mine": {"literary": spread(1.0, 60)}}, merge=True), "--boundary joint"
    )
    assert "in 100 % of the items" in text


def test_items_that_were_left_out_are_named():
    focus = focus_of({"mine": PLAIN})
    assert not said(focus, "left out")
    too_long = {"a": "literary", "b": "factual", "c": "literary"}
    focus.source.family.meta = replace(focus.source.meta, max_positions=512, too_long=too_long)
    literary, factual = said(focus, "left out")
    assert literary.startswith(
        "literary: 2 items are longer than the model's 512 positions and were left out (a, c; "
    )
    assert factual.startswith("factual: 1 items")


def test_texts_that_meet_wrongly_are_counted():
    focus = focus_of({"mine": PLAIN})
    assert not said(focus, "space")
    n = focus.source.n_items
    counts = {"n_contexts_ending_in_space": 2, "n_options_lacking_space": 0}
    focus.source.family.meta = replace(focus.source.meta, **counts)
    (text,) = said(focus, "space")
    assert text.startswith(f"The context ends in a space in 2 of {n} items: ")
    counts = {"n_contexts_ending_in_space": 0, "n_options_lacking_space": 3}
    focus.source.family.meta = replace(focus.source.meta, **counts)
    (text,) = said(focus, "space")
    assert text.startswith(f"An option meets its context without a space in 3 of {n} items, ")


def trained_on(*texts: str) -> TrainingRun:
    samples = [
        Sample(f"s{k}", "prompt", (Turn("user", text),), None, f"train.jsonl:{k}")
        for k, text in enumerate(texts, start=1)
    ]
    return run_of("train.jsonl", TrainedTexts(samples))


def run_of(data: str, trained: TrainedTexts | None) -> TrainingRun:
    facts = RunFacts(
        settings={"data": data}, n_train=None, n_validation=None, total_steps=None, data_digest=None
    )
    settings = DataSettings(data=(str(data),), validation=None)
    return TrainingRun(Path("run"), facts, settings, {}, {}, {}, trained)


ROW = "one two three four five six seven eight nine ten eleven twelve thirteen"


def test_items_that_are_trained_on_are_named_whole_or_by_their_words():
    clean = focus_of({"mine": PLAIN}, run=trained_on("Nothing of it.", ROW))
    assert not said(clean, "training texts")
    focus = focus_of({"mine": PLAIN}, run=trained_on("Nothing of it.", f"It goes: {ROW}!", "G"))
    items = focus.source.family.held_texts
    items["literary-7"] = replace(items["literary-7"], context=f"He counted {ROW}.")
    (text,) = said(focus, "training texts")  # every item's right option is `g`
    assert text.startswith("120 items overlap with training texts, 120 by a whole text")
    items |= {name: replace(item, options=("another", "b")) for name, item in items.items()}
    (text,) = said(focus, "training texts")
    assert text == (
        "1 item overlaps with training texts, 0 by a whole text, the rest by a 13-gram of words: "
        f"literary-7 (train.jsonl:2, “{ROW}”)."
    )


def test_overlap_is_not_known_without_the_run_or_its_file(tmp_path):
    assert said(focus_of({"mine": PLAIN}), "no training run was given")
    unknown = run_of("gone.jsonl", None)
    assert said(focus_of({"mine": PLAIN}, run=unknown), "gone.jsonl is not available as trained on")


def test_training_texts_count_only_if_the_file_is_the_one_trained_on(tmp_path):
    data = write_lines(tmp_path / "t.jsonl", [{"prompt": "Why?", "response": ROW}])
    run = make_run(tmp_path / "run")
    facts = json.loads((run / "run.json").read_text())
    for named in ([str(data)], str(data)):  # earlier versions named one file
        facts["settings"] |= {"data": named, "validation": "0.1"}
        for digest, is_known in ((digest_bytes([data]), True), ("0" * 64, False)):
            (run / "run.json").write_text(json.dumps(facts | {"data_digest": digest}))
            assert (read_run(run, {}).trained is not None) is is_known


def test_an_unstable_choice_is_named_and_what_it_is_worth():
    rng = np.random.default_rng(2)
    epochs = {f"epoch-{k:02d}": {"literary": rng.normal(0.1, 1, 12)} for k in range(1, 8)}
    focus = focus_of(epochs)
    assert focus.selection.chosen_when_drawn_anew[focus.highlighted] < 0.8
    (text,) = said(focus, "The choice is unstable")
    assert "with the sources drawn anew it is epoch-" in text
    assert said(focus, "chosen on the other sources each time")


def test_epochs_that_were_not_scored_are_counted():
    losses = dict.fromkeys(range(1, 13), 3.0)
    scored = {f"epoch-{k:02d}": k for k in (2, 5)}
    run = replace(run_of("train.jsonl", None), loss_nats=losses, scored=scored)
    epochs = dict.fromkeys(scored, PLAIN)
    (text,) = said(focus_of(epochs, run=run), "trained epochs were scored")
    assert text.startswith("2 of 12 trained epochs")


def test_readings_that_disagree_are_named():
    focus = focus_of({"mine": {"literary": spread(1.0, 60)}})
    assert not said(focus, "The reading of dI decides the paper's test")
    named = focus.comparison.variants
    with_primary(focus, variants=replace(named, per_token=replace(named.per_token, p=0.4)))
    (text,) = said(focus, "The reading of dI decides the paper's test")
    assert "the mean per token 0.400" in text


def test_an_adapter_that_lacks_items_is_left_out_by_name():
    source = focus_of({"mine": PLAIN, "stopped": PLAIN}).source
    rows = source.scores
    stopped = rows.items["literary"]["stopped"]
    lost = rows.facts.numbers["literary-3"]
    rows.items["literary"]["stopped"] = stopped.take(stopped.rows != lost)
    summary = summarise(rows)
    family = summary.families["literary"]
    assert list(family.changes) == ["mine"]
    assert family.incomplete == {"stopped": 59}
    focus = make_focus(source, summary)
    assert said(focus, "literary: stopped has scores for 59 of 60 items only")
    assert "stopped has 59 of 60 items" in summary_text(scored(focus))
