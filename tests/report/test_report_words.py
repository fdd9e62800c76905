"""The verdict and the caveats: what they say follows from the tests, and from nothing else."""

from dataclasses import replace

import numpy as np
import pytest
from report.made_up import PLAIN, focus_of, said, scored, spread
from synthetic import digest_of, make_items, make_row, make_run

from cqa.report.figure_data import figure_rows
from cqa.report.focus import Focus, make_focus
from cqa.report.item_table import scored_items
from cqa.report.item_texts import ScoredItem, shown_options
from cqa.report.pair_tables import interaction
from cqa.report.source import read_run
from cqa.report.terminal import summary_text
from cqa.report.verdict import make_page
from cqa.schema.rows import ItemRow, ItemText
from cqa.stats.summary import summarise


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
