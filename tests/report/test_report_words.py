"""The verdict and the caveats: what they say follows from the tests, and from nothing else."""

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pytest
from helpers import write_lines
from synthetic import digest_of, key_of, make_items, make_meta, make_row, make_run, records

from cqa.data.overlap import TrainedTexts
from cqa.data.samples import Sample, Turn
from cqa.data.unique import Fingerprints
from cqa.family import Family
from cqa.identity import digest_bytes
from cqa.report.caveats import caveats
from cqa.report.figure_data import figure_rows
from cqa.report.focus import Focus, make_focus
from cqa.report.item_table import scored_items
from cqa.report.item_texts import ScoredItem, shown_options
from cqa.report.pair_tables import interaction
from cqa.report.source import DataSettings, RunFacts, Source, TrainingRun, read_run
from cqa.report.terminal import summary_text
from cqa.report.verdict import make_page
from cqa.schema.meta import Meta, ScoreSettings
from cqa.schema.provenance import Provenance
from cqa.schema.rows import ItemRow, ItemText
from cqa.schema.summary import ScoreSummary
from cqa.stats.config import AnalysisConfig
from cqa.stats.summary import Scores, summarise

Changes = dict[str, dict[str, Sequence[float]]]  # adapter, group: ddI of every item, nats


@dataclass(slots=True)
class HeldFamily(Family):
    """A family of texts and rows in memory; a folder holds those of a real one."""

    held_texts: dict[str, ItemText] = field(default_factory=dict)  # by id
    held_rows: list[ItemRow] = field(default_factory=list)

    def texts(self) -> Iterator[ItemText]:
        return iter(self.held_texts.values())

    def rows_again(self, name: str | None) -> Iterator[ItemRow]:
        return (row for row in self.held_rows if row.adapter == name)


def spread(mean: float, n: int = 20, sd: float = 1.0) -> np.ndarray:
    """Return n values of a given mean and standard deviation, none of them alike."""
    values = np.random.default_rng(0).permutation(np.linspace(-1, 1, n) ** 3)
    return (values - values.mean()) / values.std(ddof=1) * sd + mean


def focus_of(changes: Changes, *, prior: float = 0.0, **facts) -> Focus:
    """Return a focus on pairs whose dI changes as told; `prior` is about each item's d_prior."""
    rows, items = [], {}
    sizes = {group: len(v) for models in changes.values() for group, v in models.items()}
    for group, n in sizes.items():
        for k in range(n):
            item_id = f"{group}-{k}"
            items[item_id] = ItemText(
                id=item_id, item_key="", kind="pair", context="c", options=("g", "b"), answer=0,
                lang="en",
            )  # fmt: skip
            base = float(5 * np.sin(7 * k + 1))
            for adapter in (None, *changes):
                moved = 0.0 if adapter is None else float(changes[adapter][group][k])
                shift = 0.0 if adapter is None or not prior else prior + 0.1 * float(np.sin(3 * k))
                rows.append(_row(item_id, group, adapter, base + moved + shift, shift, facts))
    meta = Meta.from_json(make_meta([None, *changes], []), "made up")
    names = {key_of(name): name for name in (None, *changes)}
    digests = {name: digest_of(name) for name in changes}
    made = dict.fromkeys(changes, Provenance())
    held = list(records(rows))
    family = HeldFamily(
        Path("scores"), meta, names, digests, made, Fingerprints(), {},
        held_texts=items, held_rows=held,
    )  # fmt: skip
    source = Source(
        family, ScoreSettings.from_json(meta.settings, "made up"), len(items), Scores(held),
        Counter(row.adapter for row in held), list(changes), facts.get("run"),
    )  # fmt: skip
    named = ("cutoff", "primary", "control")
    config = AnalysisConfig(**{name: facts[name] for name in named if name in facts})
    return make_focus(source, summarise(source.scores, config))


def _row(item_id, group, adapter, given, null, facts):
    lengths = facts.get("tokens", (10, 10))
    number = int(item_id.rpartition("-")[2])
    options = [
        {
            "role": role,
            "logp_given_context_nats": -50 + (given if good else 0.0),
            "logp_null_nats": -50 + (null if good else 0.0),
            "logp_null2_nats": -50 + (null if good else 0.0),
            "pmi_nats": given - null if good else 0.0,
            "entropy_given_context_nats": 30.0,
            "entropy_null_nats": 30.0,
            "n_tokens": length, "n_bytes": length, "n_chars": length,
            "boundary_merge": facts.get("merge", False),
        }
        for role, length, good in (("good", lengths[0], True), ("bad", lengths[1], False))
    ]  # fmt: skip
    sources = facts.get("sources")
    return {
        "id": item_id, "group": group, "domain": None, "lang": "en", "kind": "pair", "answer": 0,
        "source_id": f"book-{number % sources}" if sources else None,
        "published_at": facts.get("dates", [None])[number % len(facts.get("dates", [None]))],
        "adapter": adapter, "model_key": key_of(adapter), "item_key": "", "options": options,
        "delta_i_nats": given - null,
    }  # fmt: skip


def with_primary(focus: Focus, **changed) -> Focus:
    """Return a focus whose primary group under the highlighted adapter has other results."""
    models = focus.summary.groups[focus.primary]
    models[focus.highlighted] = replace(models[focus.highlighted], **changed)
    return focus


def marks(focus: Focus) -> list[str]:
    return [answer.mark for answer in make_page(focus).answers]


def test_a_change_of_one_group_alone_is_shown_with_all_that_it_needs():
    focus = focus_of({"mine": {"literary": spread(1.5, 400), "factual": spread(0.0, 400)}})
    page = make_page(focus)
    assert page.headline == (
        "Under mine the model is more sensitive to quality in literary items, and more so than in "
        "factual items."
    )
    assert marks(focus)[:4] == ["shown", "shown", "shown", "shown"]
    assert page.tiles[0].value == "+1.50\N{NO-BREAK SPACE}nats"
    assert [answer.text.count("400 items of 400 sources") for answer in page.answers[:1]] == [1]


def test_both_groups_changing_is_not_selective():
    focus = focus_of({"mine": {"literary": spread(1.5), "factual": spread(1.4)}})
    assert marks(focus)[:2] == ["shown", "not shown"]
    assert marks(focus)[3] == "against"
    assert make_page(focus).headline.endswith("that this is particular to them is not shown.")


def test_a_noisy_null_is_not_taken_for_no_change():
    focus = focus_of({"mine": {"literary": spread(9.58, sd=19), "factual": spread(-3.04, sd=25)}})
    assert [marks(focus)[k] for k in (1, 3)] == ["not shown", "not shown"]
    assert "is not the same as no change" in make_page(focus).answers[3].text


def test_a_p_that_only_the_choice_made_small_is_not_shown():
    """Seven unrelated epochs, one of which is significant if looked at alone."""
    rng = np.random.default_rng(5)
    epochs = {f"epoch-{k:02d}": {"literary": rng.normal(0, 1, 20)} for k in range(1, 7)}
    epochs["epoch-07"] = {"literary": spread(0.46)}
    focus = focus_of(epochs)
    assert focus.highlighted == focus.selection.chosen == "epoch-07"
    change = focus.family.changes["epoch-07"]
    assert change.p <= 0.05 < change.p_corrected
    page = make_page(focus)
    assert page.answers[0].mark == "not shown"
    assert "alone p" in page.answers[0].text.replace("\N{NO-BREAK SPACE}", " ")
    assert page.tiles[1].detail == "corrected for 7 adapters"
    assert page.headline.startswith("No change of sensitivity")


def test_a_fall_is_named_as_one():
    focus = focus_of({"mine": {"literary": spread(-1.5)}})
    assert marks(focus)[0] == "against"
    assert make_page(focus).headline.startswith("Under mine the model became less sensitive")


def test_without_a_control_group_nothing_is_said_of_selectivity():
    focus = focus_of({"mine": {"poems": spread(1.5)}})
    verdict = make_page(focus)
    assert verdict.headline.endswith("without a control group nothing is said of others.")
    assert not any("factual" in answer.question for answer in verdict.answers)


OTHER_NAMES = {"mine": {"poems": spread(1.5), "news": spread(0.0)}}


def test_groups_of_other_names_get_every_test_once_they_are_named():
    focus = focus_of(OTHER_NAMES, primary="poems", control="news")
    named = focus_of({"mine": {"literary": spread(1.5), "factual": spread(0.0)}})
    verdict, expected = make_page(focus), make_page(named)
    assert marks(focus) == marks(named)
    assert verdict.headline == expected.headline.replace("literary", "poems").replace(
        "factual", "news"
    )
    assert [tile.value for tile in verdict.tiles] == [tile.value for tile in expected.tiles]
    assert verdict.tiles[-1].name == "poems − news"
    assert not said(focus, "--primary")
    assert interaction(focus).title == "Poems minus news"
    assert interaction(focus).columns[1].heading == "poems − news, nats"
    assert "selective, poems" in summary_text(scored(focus))


def test_the_named_primary_comes_first_wherever_its_items_are():
    focus = focus_of(OTHER_NAMES, primary="news", control="poems")
    assert [row.group for row in figure_rows(focus)["d_by_epoch"]] == ["news", "poems"]
    assert make_page(focus).answers[0].question.endswith("in news items?")


def test_groups_of_other_names_that_nobody_named_are_told_of():
    focus = focus_of(OTHER_NAMES)
    line = (
        "poems is taken as the subject, as none was named (--primary names it); no control was "
        "found among poems, news (--control names it)"
    )
    assert said(focus, "--primary") == [f"{line}."]
    assert line in summary_text(scored(focus)).splitlines()
    assert make_page(focus).headline.endswith("without a control group nothing is said of others.")


def scored(focus: Focus) -> ScoreSummary:
    return ScoreSummary(focus.summary, "d", "i", {}, {}, {}, ())


def test_a_change_of_the_prior_is_not_taken_for_one_of_the_conditional():
    changes = {"mine": {"literary": spread(1.5)}}
    answers = {}
    for name, prior in (("conditional", 0.0), ("prior", -1.5)):
        page = make_page(focus_of(changes, prior=prior))
        (answers[name],) = [a for a in page.answers if "the prior moved" in a.question]
    assert answers["conditional"].mark == "shown"
    assert answers["prior"].mark == "not shown"
    assert "d_cond +0.00, d_prior -1.50" in answers["prior"].text


def test_what_it_is_evidence_for_names_model_items_and_groups():
    text = make_page(focus_of({"mine": {"literary": spread(1), "factual": spread(0)}})).evidence_for
    assert "models/tiny & <small>" in text
    assert "20 literary, 20 factual items" in text


def test_adapters_are_of_one_run_only_where_that_is_known(tmp_path):
    def said_of(adapters: list[str], **settings) -> str:
        focus = focus_of({name: {"literary": spread(1)} for name in adapters})
        focus.source.settings = replace(focus.source.settings, **settings)
        return make_page(focus).evidence_for

    assert ", one training run, and these" in said_of(["mine"])
    assert ", one training run, and these" in said_of(["a", "b"], run=("run",))
    several = ", 2 adapters, of one training run or of several, and these"
    assert several in said_of(["a", "b"])
    assert several in said_of(["a", "b"], run=("run",), adapter=("another",))
    assert ", 2 training runs, and these" in said_of(["a", "b"], run=("r1", "r2"))
    run = make_run(tmp_path / "run")
    for adapters, text in (
        (("epoch-01", "epoch-02"), ", one training run, trained on 94 samples, and these"),
        (("epoch-01", "other"), ", 2 adapters, of several, and these"),
    ):
        digests = {name: digest_of(name) for name in adapters}
        focus = focus_of(dict.fromkeys(adapters, PLAIN), run=read_run(run, digests))
        assert text in make_page(focus).evidence_for


@pytest.mark.parametrize("value", [0.5, -0.5])
def test_a_change_that_is_the_same_in_all_items_cannot_be_tested(value):
    same = [value] * 20
    page = make_page(focus_of({"mine": {"literary": same, "factual": same}}))
    assert [answer.mark for answer in page.answers[:3]] == ["n/a", "n/a", "n/a"]
    assert "no spread over sources" in page.answers[0].text
    assert page.tiles[1].value == "n/a"


def test_two_equal_falls_are_no_evidence_of_one():
    page = make_page(focus_of({"mine": {"literary": [-0.5, -0.5]}}))
    assert page.answers[0].mark == "n/a"
    assert page.headline == "No change of sensitivity to quality in literary items is shown."


PLAIN = {"literary": spread(0.5, 60), "factual": spread(0.0, 60)}


def said(focus: Focus, words: str) -> list[str]:
    return [text for text in caveats(focus) if words in text]


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


def item_with_tokens(score_eos: bool) -> ScoredItem:
    (item,) = [i for i in make_items(4) if i["id"] == "literary-3"]
    row = make_row(item, None, 0, np.random.default_rng(0))
    option = row["options"][0]
    text = item["options"][0]
    ends = [1, 1, 1, 4, len(text)] + [len(text)] * score_eos
    option["token_char_ends"], option["n_tokens"] = ends, len(ends)
    option["token_ids"] = list(range(len(ends)))
    for key in ("token_logp_given_context_nats", "token_logp_null_nats"):
        option[key] = [-1.0, -0.5, -0.25, -2.0, -3.004, -4.0][: len(ends)]
    text = ItemText.from_json({**item, "item_key": ""}, "made up")
    return ScoredItem(ItemRow.from_json(row, "made up"), None, text)


@pytest.mark.parametrize("score_eos", [False, True])
def test_pieces_of_a_character_are_one_and_an_end_token_is_its_own(score_eos):
    scored = item_with_tokens(score_eos)
    tokens = shown_options(scored, score_eos=score_eos)[0].tokens
    n = len(scored.text.options[0])
    assert tokens.ends == [1, 4, n] + [n] * score_eos
    assert tokens.base == [-175, -200, -300] + [-400] * score_eos
    assert tokens.adapter is None


def test_items_come_group_by_group_and_the_largest_change_first(tmp_path):
    from synthetic import make_folder

    from cqa.report.source import read_source

    source = read_source(make_folder(tmp_path / "scores"))
    focus = make_focus(source, summarise(source.scores))
    found = scored_items(focus).items
    groups = [s.group for s in found if s.kind != "continuation"]
    assert groups == ["literary"] * 6 + ["factual"] * 6 + ["<i>other</i>"] * 4
    ddi = [s.ddi_nats for s in found[:6]]
    assert ddi == sorted(ddi, reverse=True)
    assert {s.kind for s in found[16:]} == {"continuation"}
