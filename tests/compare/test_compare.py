"""Models side by side: what is common to all, paired differences, and what one of them lacks."""

import csv
import json
import math
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from cqa_fast.main import main
from helpers import DEMO, read_lines, write_lines
from scipy.stats import binom
from synthetic import base_folder, make_folder, make_items

from cqa.compare.config import CompareConfig
from cqa.compare.contrasts import mcnemar
from cqa.compare.run import compare
from cqa.errors import ConfigError, DataError
from cqa.report.compared_tables import caveats, compare_text
from cqa.score.config import ScoreConfig
from cqa.score.run import score

ITEMS = make_items(24)


def config(out: Path, **settings) -> CompareConfig:
    return CompareConfig(out=out, **settings)


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> list[Path]:
    root = tmp_path_factory.mktemp("folders")
    return [base_folder(root / "one", ITEMS), base_folder(root / "two", ITEMS, gain=2.0)]


def shares(row: dict) -> list[float]:
    weights = [math.exp(o["logp_given_context_nats"] / o["n_bytes"]) for o in row["options"]]
    return [weight / sum(weights) for weight in weights]


def test_means_and_differences_are_those_of_the_rows(folders, tmp_path):
    found = compare(folders, config(tmp_path / "out"))
    group = found.groups["literary"]
    assert (group.n_items, group.n_sources) == (24, 12)
    truth = {}
    for folder in folders:
        rows = [r for r in read_lines(folder / "scores.jsonl") if r["group"] == "literary"]
        truth[folder.name] = [shares(r)[r["answer"]] for r in rows if r["answer"] is not None]
        right = [
            o for r in rows if r["kind"] == "pair" for o in r["options"] if o["role"] == "good"
        ]
        bits = -sum(o["logp_given_context_nats"] for o in right) / math.log(2)
        (system,) = (s for s in group.systems if s.system == folder.name)
        ranking = system.rankings["byte"]
        assert ranking.mean_rank_prob == pytest.approx(np.mean(truth[folder.name]), rel=1e-12)
        assert ranking.accuracy == np.mean(
            [max(shares(r)) == shares(r)[0] for r in rows if r["kind"] == "pair"]
        )
        assert system.bits_per_byte == pytest.approx(bits / sum(o["n_bytes"] for o in right))
        assert ranking.ci95[0] < ranking.mean_rank_prob < ranking.ci95[1]
    (contrast,) = (c for c in group.contrasts if c.reading == "byte")
    assert contrast.rank_prob_difference == pytest.approx(
        np.mean(truth["two"]) - np.mean(truth["one"])
    )
    assert contrast.ci95[0] > 0
    assert contrast.p == contrast.p_holm < 0.01
    assert contrast.accuracy_difference > 0


def test_an_option_drawn_at_random_has_what_chance_gives(folders, tmp_path):
    found = compare(folders, config(tmp_path / "out"))
    for group in ("literary", "factual"):
        for system in found.groups[group].systems:
            ranking = system.rankings["byte"]
            low, high = ranking.permuted_ci95
            assert low < ranking.chance == 0.5 < high
    assert found.groups["<i>other</i>"].systems[0].rankings["sum"].chance == pytest.approx(0.225)


@pytest.mark.parametrize(("one", "other"), [(0, 0), (1, 8), (5, 5), (0, 12), (30, 11)])
def test_mcnemar_is_the_binomial_test_of_what_differs(one, other):
    n = one + other
    tail = binom.cdf(min(one, other), n, 0.5) if n else 0.5
    assert mcnemar(one, other) == pytest.approx(min(1.0, 2 * tail))


def test_equal_scores_give_no_difference_and_no_test(folders, tmp_path):
    twin = base_folder(tmp_path / "twin", ITEMS)
    found = compare([folders[0], twin], config(tmp_path / "out"))
    for contrast in found.groups["factual"].contrasts:
        assert (contrast.rank_prob_difference, contrast.p, contrast.ci95) == (0.0, None, None)
        assert contrast.mcnemar_p == 1.0
    (agreement,) = found.agreements
    assert (agreement.same_model, agreement.largest_difference_nats) == (True, 0.0)


def test_holm_pays_for_every_model_of_a_reading(folders, tmp_path):
    third = base_folder(tmp_path / "three", ITEMS, gain=0.3, seed=0)
    contrasts = compare([*folders, third], config(tmp_path / "out")).groups["literary"].contrasts
    two, three = (c for c in contrasts if c.reading == "sum")
    least = min(two.p, three.p)
    assert min(two.p_holm, three.p_holm) == min(1.0, 2 * least)


def test_what_a_model_lacks_is_listed_and_not_pooled(folders, tmp_path):
    fewer = [dict(item) for item in ITEMS if item["id"] != "literary-3"]
    fewer[0] = {**fewer[0], "options": [" another", " text"]}  # literary-0 under the same id
    other = base_folder(tmp_path / "other", fewer)
    found = compare([folders[0], other], config(tmp_path / "out"))
    assert found.groups["literary"].n_items == 22
    (contrast, *_) = found.groups["literary"].contrasts
    assert (contrast.n_items, contrast.n_only_system, contrast.n_only_reference) == (22, 1, 2)
    lacks = {(m.system, m.id): m.reason for m in found.missing}
    assert lacks == {
        ("one", "literary-0"): "other texts or labels under this id",
        ("other", "literary-0"): "other texts or labels under this id",
        ("other", "literary-3"): "not among its items",
    }
    assert "other lacks 2 items that another model has; none is pooled." in list(caveats(found))


def test_few_sources_give_no_interval(tmp_path):
    items = make_items(8)
    both = [base_folder(tmp_path / n, items, gain=g) for n, g in (("a", 0.0), ("b", 1.0))]
    group = compare(both, config(tmp_path / "out")).groups["literary"]
    assert group.n_sources == 4
    assert {(c.p, c.ci95) for c in group.contrasts} == {(None, None)}
    assert group.systems[0].rankings["sum"].ci95 is None


def test_adapters_are_models_of_their_own_and_some_may_be_chosen(tmp_path):
    both = [make_folder(tmp_path / n, items=make_items(2)) for n in ("a", "b")]
    found = compare(both, config(tmp_path / "out", models=("base", "epoch-05")))
    assert [s.name for s in found.systems] == ["a", "a/epoch-05", "b", "b/epoch-05"]
    found = compare(both, config(tmp_path / "out", models=("epoch-05",), reference="b/epoch-05"))
    assert found.reference == "b/epoch-05"
    assert {c.system for g in found.groups.values() for c in g.contrasts} == {"a/epoch-05"}
    with pytest.raises(ConfigError, match=r"--reference to be one of a/epoch-05, b/epoch-05, got"):
        compare(both, config(tmp_path / "out", models=("epoch-05",), reference="a"))
    names = "hint: they have base, epoch-02, epoch-04, epoch-05$"
    with pytest.raises(ConfigError, match=rf"folder has scored, got: epoch-09\n{names}"):
        compare(both, config(tmp_path / "out", models=("base", "epoch-09")))


def test_what_is_no_comparison_is_refused_and_leaves_nothing(folders, tmp_path):
    other = base_folder(tmp_path / "other", [{**ITEMS[0], "id": "another"}])
    for given, said in (
        (folders[:1], "two models or more to compare, got 1"),
        ([folders[0], other], "all 2 models have scored, got none in common"),
    ):
        with pytest.raises(DataError, match=said):
            compare(given, config(tmp_path / "out"))
    (tmp_path / "empty").mkdir()
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    for name, said in (
        ("nowhere", "no such folder"),
        ("loop", "no such folder"),
        ("empty", "one without meta.json"),
    ):
        with pytest.raises(DataError, match=f"of scores or of letters, got {said}"):
            compare([folders[0], tmp_path / name], config(tmp_path / "out"))
    with pytest.raises(ConfigError, match="each folder once"):
        compare([folders[0], folders[0]], config(tmp_path / "out"))
    with pytest.raises(ConfigError, match="to hold no input"):
        compare(folders, config(folders[0]))
    assert not (tmp_path / "out").exists()


def test_files_are_the_same_every_time_and_hold_what_is_printed(folders, tmp_path):
    out = tmp_path / "out"
    found = compare(folders, config(out))
    before = {p: p.read_bytes() for p in out.rglob("*") if p.is_file()}
    assert compare(folders, config(out)) == found
    assert {p: p.read_bytes() for p in out.rglob("*") if p.is_file()} == before
    assert json.loads((out / "compare.json").read_text()) == found.to_json()
    rows = list(csv.DictReader((out / "tables" / "contrasts.csv").read_text().splitlines()))
    assert [r["group"] for r in rows[:3]] == ["literary"] * 3
    text = compare_text(found)
    assert "How the options are ranked" in text
    page = (out / "compare.md").read_text()
    assert "<i>other" not in page
    assert "figures/rank_prob.svg" in page
    svg = (out / "figures" / "rank_prob.svg").read_text()
    assert "24 items" in svg


def test_two_engines_on_one_model_agree_to_rounding(tmp_path):
    pairs = write_lines(tmp_path / "pairs.jsonl", read_lines(DEMO / "literary.jsonl")[:3])
    for engine in ("cqa", "transformers"):
        score(
            ScoreConfig(
                model=str(DEMO / "model"), pairs=(pairs,), out=tmp_path / engine, engine=engine,
                device="cpu", summary=False,
            )
        )  # fmt: skip
    run = CliRunner().invoke(
        main,
        ["compare", str(tmp_path / "cqa"), str(tmp_path / "transformers"), "--out",
         str(tmp_path / "out"), "--json"],
    )  # fmt: skip
    assert run.exit_code == 0, run.output
    (agreement,) = json.loads(run.stdout)["agreements"]
    assert agreement["same_model"]
    assert agreement["n_options"] == 6
    assert 0 < agreement["largest_difference_nats"] < 1e-3
