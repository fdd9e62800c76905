"""What a report says of how a study was set up: placebos, seeds, template, groups, copies."""

import json

import pytest
from synthetic import digest_of, make_folder, make_items

from cqa.report.config import ReportConfig
from cqa.report.write import make_report

EPOCHS = ["a/epoch-01", "b/epoch-01"]


def report_of(folder, *, origins=None, items=None, template=None, **settings):
    """Make a report on scores whose adapters say these origins."""
    make_folder(folder, items=items or make_items(12), adapters=[None, *EPOCHS], **settings)
    meta = json.loads((folder / "meta.json").read_text())
    for model in meta["models"]:
        model["template"] = template
        if model["adapter"]:
            model["adapter_origin"] = (origins or {}).get(model["adapter"])
    (folder / "meta.json").write_text(json.dumps(meta))
    return make_report(folder, ReportConfig(out=folder / "out"))


def said(report, words):
    return [text for text in report.caveats if words in text]


def table(report, name):
    return next((t for t in report.tables if t.name == name), None)


def origin(seed, **more):
    return {"recipe_digest": "r", "seed": seed, "epoch": "1", "template_digest": None, **more}


def test_one_seed_is_named_and_two_have_a_table(tmp_path):
    one = report_of(tmp_path / "one", origins={EPOCHS[0]: origin("0")})
    assert said(one, "Only one seed was trained")
    assert table(one, "seeds") is None
    assert any("another training seed" in text for text in one.verdict.not_shown)
    two = report_of(tmp_path / "two", origins={n: origin(str(k)) for k, n in enumerate(EPOCHS)})
    assert not said(two, "Only one seed was trained")
    assert [line.cells[0] for line in table(two, "seeds").lines] == [
        "literary", "factual", "<i>other</i>",
    ]  # fmt: skip
    assert not any("another training seed" in text for text in two.verdict.not_shown)
    assert not said(report_of(tmp_path / "unknown"), "seed was trained")


def test_an_epoch_that_a_seed_lacks_is_named(tmp_path):
    other = {"a/epoch-01": origin("0"), "b/epoch-01": origin("1", epoch="2")}
    report = report_of(tmp_path / "other", origins=other)
    name = report.focus.highlighted
    (text,) = said(report, f"{name}: of the 2 seeds of its recipe 1 has all literary items at its")
    assert text.endswith("epoch; how much of its change is the luck of one run is unknown.")
    assert any("another training seed" in text for text in report.verdict.not_shown)
    both = report_of(tmp_path / "both", origins={n: origin(str(k)) for k, n in enumerate(EPOCHS)})
    assert not said(both, "of its recipe")


def test_a_placebo_in_the_folder_is_known_without_being_told(tmp_path):
    origins = {EPOCHS[0]: origin("0"), EPOCHS[1]: origin("0", recipe_digest="p", placebo="dealt")}
    report = report_of(tmp_path, origins=origins)
    assert report.focus.highlighted == EPOCHS[0]
    assert any("dealt responses" in answer.question for answer in report.verdict.answers)
    assert not any("dealt responses" in text for text in report.verdict.not_shown)


@pytest.mark.parametrize(("template", "n"), [(None, 0), ("{{ messages }}", 1)])
def test_another_template_than_that_of_training_is_named(tmp_path, template, n):
    report = report_of(tmp_path, origins={EPOCHS[0]: origin("0")}, template=template)
    found = said(report, "Trained with one template and scored with another: a/epoch-01.")
    assert len(found) == n


def test_groups_of_other_languages_stand_side_by_side_with_length_and_base(tmp_path):
    items = make_items(12)
    plain = report_of(tmp_path / "plain", items=items)
    assert not said(plain, "The groups differ in")
    for item in items:
        item["lang"] = "zh" if item["group"] == "literary" else "en"
    report = report_of(tmp_path / "apart", items=items)
    (text,) = said(report, "The groups differ in language: literary zh, right options of")
    assert "factual en, right options of" in text
    assert not said(report, "are pooled")
    columns = [column.key for column in table(report, "groups").columns]
    assert {"languages", "mean_delta_i", "tokens_right"} <= set(columns)
    next(i for i in items if i["group"] == "literary")["lang"] = "en"
    (text,) = said(report_of(tmp_path / "mixed", items=items), "are pooled")
    assert text.startswith("literary: items of several languages")


def test_texts_under_several_ids_are_counted_once_and_named(tmp_path):
    items = make_items(12)
    first, second = [i for i in items if i["group"] == "literary" and i["kind"] == "pair"][:2]
    second |= {key: first[key] for key in ("context", "options")}
    report = report_of(tmp_path, items=items)
    assert said(report, "literary: 1 item repeats the texts of another item")
    assert report.focus.summary.base["literary"].n == 11


def test_the_slope_of_every_adapter_and_what_the_choice_is_worth_stand_in_tables(tmp_path):
    report = report_of(tmp_path)
    slopes = table(report, "shrinkage")
    assert [line.cells[:2] for line in slopes.lines][:2] == [("literary", n) for n in EPOCHS]
    assert slopes.adapters is None
    found = table(report, "choice")
    line = dict(zip([c.key for c in found.columns], found.lines[0].cells, strict=True))
    fitted = report.focus.summary.selection["literary"].cross_fitted
    assert line["cross_fitted_ddi_nats"] == fitted.mean_ddi_nats
    assert line["cross_fitted_p"] == fitted.p


def test_the_choice_that_was_scored_is_the_choice_of_the_report(tmp_path):
    assert report_of(tmp_path, choose="last").focus.highlighted == "b/epoch-01"
    other = make_report(tmp_path, ReportConfig(out=tmp_path / "out", choose="best"))
    assert other.focus.selection.rule != "the last one"


def test_a_run_that_began_with_an_adapter_is_named(tmp_path):
    assert not said(report_of(tmp_path / "fresh", origins={EPOCHS[0]: origin("0")}), "on, not from")
    before = origin("0", from_digest="ab" * 32)
    elsewhere = report_of(tmp_path / "elsewhere", origins={EPOCHS[0]: before})
    assert said(
        elsewhere, "Trained from the adapter abababababab on, not from the base: a/epoch-01."
    )
    of_folder = origin("0", from_digest=digest_of(EPOCHS[1]))
    here = report_of(tmp_path / "here", origins={EPOCHS[0]: of_folder})
    assert said(here, "Trained from b/epoch-01 on, not from the base: a/epoch-01.")
