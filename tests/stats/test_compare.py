"""The summary beyond Table 1: clusters, entropies, candidates, readings, lengths, strata."""

import json
import math

import numpy as np
import pytest
from scipy import stats
from synthetic import make_items, make_rows, records

from cqa.stats.compare import compare_items
from cqa.stats.config import AnalysisConfig
from cqa.stats.continuations import TextScore, compare_texts
from cqa.stats.items import VARIANTS
from cqa.stats.summary import Scores, summarise
from cqa.text import interval, signed

ADAPTERS = [None, "epoch-02", "epoch-04"]
ITEMS = make_items(8)


@pytest.fixture(scope="module")
def rows() -> list[dict]:
    return list(make_rows(ITEMS, ADAPTERS))


@pytest.fixture(scope="module")
def summary(rows) -> dict:
    return summary_of(rows, cutoff="2024-06")


def summary_of(rows, **settings) -> dict:
    """Return the statistics as summary.json has them."""
    return summarise(Scores(records(rows)), AnalysisConfig(**settings)).to_json()


def of(rows: list[dict], adapter: str | None, group: str) -> list[dict]:
    found = [r for r in rows if (r["adapter"], r["group"]) == (adapter, group)]
    return [r for r in found if r["kind"] != "continuation"]


def pair_of(rows, group):
    return of(rows, None, group), of(rows, "epoch-04", group)


def per_item(rows, value) -> np.ndarray:
    return np.array([value(row) for row in rows])


def check_change(entry, before, after):
    change = after - before
    interval = stats.ttest_1samp(change, 0).confidence_interval()
    assert entry["before"] == pytest.approx(before.mean())
    assert entry["after"] == pytest.approx(after.mean())
    assert entry["change"] == pytest.approx(change.mean())
    assert entry["ci95"] == pytest.approx([interval.low, interval.high])


def test_the_summary_is_json_without_nan(summary):
    json.dumps(summary, allow_nan=False)


@pytest.mark.parametrize("group", ["literary", "factual", "<i>other</i>"])
@pytest.mark.parametrize("where", ["given_context", "null"])
def test_entropy_per_token_is_over_the_tokens_of_all_options(rows, summary, group, where):
    def per_token(row):
        total = sum(o[f"entropy_{where}_nats"] for o in row["options"])
        return total / sum(o["n_tokens"] for o in row["options"])

    before, after = (per_item(r, per_token) for r in pair_of(rows, group))
    entry = summary["groups"][group]["epoch-04"]["entropy_per_token"][where]
    check_change(entry, before, after)


@pytest.mark.parametrize("group", ["literary", "<i>other</i>"])
@pytest.mark.parametrize("where", ["given_context", "null"])
def test_candidates_are_a_softmax_of_sums_and_their_entropy(rows, summary, group, where):
    def p_of(row):
        s = np.array([o[f"logp_{where}_nats"] for o in row["options"]])
        return np.exp(s - s.max()) / np.exp(s - s.max()).sum()

    before, after = pair_of(rows, group)
    entry = summary["groups"][group]["epoch-04"]["candidates"][where]
    check_change(
        entry["entropy_nats"],
        per_item(before, lambda r: stats.entropy(p_of(r))),
        per_item(after, lambda r: stats.entropy(p_of(r))),
    )
    right = entry["p_by_rank"][0]
    check_change(
        right,
        per_item(before, lambda r: p_of(r)[r["answer"]]),
        per_item(after, lambda r: p_of(r)[r["answer"]]),
    )
    strongest = [np.delete(p_of(r), r["answer"]).argmax() for r in before]
    check_change(
        entry["p_by_rank"][1],
        *(
            np.array(
                [np.delete(p_of(r), r["answer"])[k] for r, k in zip(part, strongest, strict=True)]
            )
            for part in (before, after)
        ),
    )


def test_ranks_count_only_items_that_have_so_many_candidates(summary):
    ranks = summary["groups"]["<i>other</i>"]["epoch-02"]["candidates"]["null"]["p_by_rank"]
    assert [rank["n"] for rank in ranks] == [4, 4, 4, 4, 2]


def test_readings_of_delta_i_are_what_they_say(rows, summary):
    before, after = pair_of(rows, "<i>other</i>")

    def contrast(row, value):
        values = np.array([value(o) for o in row["options"]])
        return values[row["answer"]] - np.delete(values, row["answer"]).mean()

    def best_wrong(row):
        pmi = np.array([o["pmi_nats"] for o in row["options"]])
        return pmi[row["answer"]] - np.delete(pmi, row["answer"]).max()

    expected = {
        "null2": lambda r: contrast(
            r, lambda o: o["logp_given_context_nats"] - o["logp_null2_nats"]
        ),
        "per_token": lambda r: contrast(r, lambda o: o["pmi_nats"] / o["n_tokens"]),
        "per_byte": lambda r: contrast(r, lambda o: o["pmi_nats"] / o["n_bytes"]),
        "per_char": lambda r: contrast(r, lambda o: o["pmi_nats"] / o["n_chars"]),
        "best_wrong": best_wrong,
    }
    readings = summary["groups"]["<i>other</i>"]["epoch-04"]["readings"]
    assert set(readings) == set(expected) == set(VARIANTS)
    for name, value in expected.items():
        ddi = per_item(after, value) - per_item(before, value)
        assert readings[name]["mean_ddi"] == pytest.approx(ddi.mean())
        assert readings[name]["p"] == pytest.approx(
            stats.wilcoxon(ddi, alternative="greater").pvalue
        )


def test_items_of_one_source_count_as_one_where_sources_are_named(summary):
    entry = summary["groups"]["literary"]["epoch-04"]["by_source"]
    assert (entry["n_sources"], entry["n_unnamed"]) == (4, 0)
    assert summary["base"]["literary"]["n_sources"] == 4
    assert summary["groups"]["<i>other</i>"]["epoch-04"]["by_source"] is None


def test_source_means_are_tested_and_unnamed_items_stand_alone(rows):
    before, after = pair_of(rows, "literary")
    for part in (before, after):
        part[0] = part[0] | {"source_id": None}
    scores = Scores(records([*before, *after]))
    models = scores.items["literary"]
    entry = compare_items(models[None], models["epoch-04"], scores.facts)
    ddi = per_item(after, lambda r: r["delta_i_nats"]) - per_item(
        before, lambda r: r["delta_i_nats"]
    )
    means = [ddi[0], ddi[1], *ddi[2:].reshape(3, 2).mean(1)]
    assert (entry.by_source.n_sources, entry.by_source.n_unnamed) == (5, 1)
    assert entry.by_source.wilcoxon_of_source_means.p == pytest.approx(
        stats.wilcoxon(means, alternative="greater").pvalue
    )


def test_domains_of_a_group_are_compared_as_the_group_is(rows, summary):
    before, after = (per_item(p, lambda r: r["delta_i_nats"]) for p in pair_of(rows, "literary"))
    of_item = per_item(of(rows, None, "literary"), lambda r: r["domain"])
    domains = summary["groups"]["literary"]["epoch-04"]["domains"]
    assert {name: part["n"] for name, part in domains.items()} == {
        "city": 3, "moor": 1, "sea & <i>shore</i>": 3,
    }  # fmt: skip
    for name, part in domains.items():
        ddi = (after - before)[of_item == name]
        assert part["mean_delta_i_base_nats"] == pytest.approx(before[of_item == name].mean())
        assert part["mean_ddi_nats"] == pytest.approx(ddi.mean())
        exact = stats.wilcoxon(ddi, alternative="greater", method="exact")
        assert part["wilcoxon"]["p"] == pytest.approx(exact.pvalue)
        if len(ddi) > 1:
            interval = stats.ttest_1samp(ddi, 0).confidence_interval()
            assert part["ci95_nats"] == pytest.approx([interval.low, interval.high])
    assert domains["moor"]["ci95_nats"] is None


def test_one_domain_or_none_is_no_part_of_a_group(summary):
    assert summary["groups"]["factual"]["epoch-04"]["domains"] == {}
    assert summary["groups"]["<i>other</i>"]["epoch-04"]["domains"] == {}


def test_equivalence_is_in_units_of_the_changes_spread_or_of_a_margin_in_nats(rows):
    before, after = pair_of(rows, "factual")
    scores = Scores(records([*before, *after]))
    two = [scores.items["factual"][name] for name in (None, "epoch-04")]
    own, given = (compare_items(*two, scores.facts, margin).equivalence for margin in (None, 2.5))
    assert (own.unit, own.margin) == ("d_z", 0.2)
    assert (given.unit, given.margin) == ("nats", 2.5)
    assert given.within == (given.smallest_margin < 2.5)
    assert given.smallest_margin == max(map(abs, given.ci90))


def test_signs_that_turn_are_counted_both_ways(rows, summary):
    before, after = (
        per_item(part, lambda r: r["delta_i_nats"]) > 0 for part in pair_of(rows, "literary")
    )
    entry = summary["groups"]["literary"]["epoch-04"]
    assert entry["n_sign_gained"] == (~before & after).sum()
    assert entry["n_sign_lost"] == (before & ~after).sum()
    assert entry["sign_accuracy_base"] == before.mean()
    low, high = entry["sign_accuracy_ci95"]
    assert low <= after.mean() <= high


def test_lengths_compare_the_right_option_with_the_mean_of_the_others(rows, summary):
    lengths = summary["base"]["<i>other</i>"]["lengths"]["n_chars"]
    others = of(rows, None, "<i>other</i>")
    wrong = [np.mean([o["n_chars"] for o in np.delete(r["options"], 2)]) for r in others]
    right = [r["options"][2]["n_chars"] for r in others]
    assert lengths["mean_right"] == pytest.approx(np.mean(right))
    assert lengths["mean_wrong"] == pytest.approx(np.mean(wrong))


def test_strata_part_the_items_and_never_overlap(rows, summary):
    assert summary["n_by_date"] == {"before": 12, "after": 2, "unknown": 22}
    for group, models in summary["groups"].items():
        parts = [summary["strata"][s]["groups"].get(group) for s in ("before", "after", "unknown")]
        sizes = [part["epoch-04"]["n"] for part in parts if part]
        assert sum(sizes) == models["epoch-04"]["n"]
    before = summary["strata"]["before"]["groups"]["literary"]["epoch-04"]
    kept = [
        [r["delta_i_nats"] for r in part if r["published_at"] in ("2023", "2024-05-02", "2024-06")]
        for part in pair_of(rows, "literary")
    ]
    assert before["mean_ddi_nats"] == pytest.approx(np.mean(kept[1]) - np.mean(kept[0]))


def test_without_a_cutoff_nothing_is_parted_and_dates_are_counted(rows):
    summary = summary_of(rows)
    assert summary["strata"] == {}
    assert summary["n_by_date"] == {"dated": 14, "undated": 22}


def texts_with(mean: float, ci: tuple[float, float], base: float, name: str, domain: str) -> dict:
    """Return ten changes of log-probability per token with a printed mean and t interval."""
    half = (ci[1] - ci[0]) / 2
    values = np.linspace(-1, 1, 10)
    spread = half * math.sqrt(10) / stats.t.ppf(0.975, 9)
    changes = values / values.std(ddof=1) * spread + mean
    return {
        f"{name}{k}": [
            TextScore(7 * base, 0.0, 7, 21, domain, None, None),
            TextScore(7 * (base + change), 0.0, 7, 21, domain, None, None),
        ]
        for k, change in enumerate(changes)
    }


def test_the_combined_row_of_table_2_follows_from_its_parts():
    """Paper, Table 2: news and popular science, n = 10 each, to factual combined, n = 20."""
    texts = texts_with(-0.609, (-0.762, -0.456), -2.496, "n", "news") | texts_with(
        -0.732, (-0.943, -0.520), -2.300, "p", "popular science"
    )
    entry = compare_texts(*({i: pair[k] for i, pair in texts.items()} for k in (0, 1))).to_json()
    assert entry["n"] == 20
    assert entry["mean_logp_per_token_base_nats"] == pytest.approx(-2.398, abs=5e-4)
    assert entry["mean_logp_per_token_nats"] == pytest.approx(-3.068, abs=1e-3)
    assert entry["mean_dlogp_per_token_nats"] == pytest.approx(-0.670, abs=1e-3)
    assert entry["ci95_nats"] == pytest.approx([-0.791, -0.549], abs=1e-3)
    news = entry["domains"]["news"]
    assert news["ci95_nats"] == pytest.approx([-0.762, -0.456], abs=1e-3)
    assert news["mean_dlogp_per_token_bits"] == pytest.approx(-0.609 / math.log(2))
    assert news["mean_dlogp_per_byte_bits"] == pytest.approx(-0.609 / 3 / math.log(2))
    assert news["ci95_per_token_bits"] == pytest.approx(
        [bound / math.log(2) for bound in news["ci95_nats"]]
    )


def test_one_item_has_means_and_nothing_that_needs_two():
    items = make_items(1)
    summary = summary_of(make_rows(items, ADAPTERS), cutoff="2024")
    entry = summary["groups"]["literary"]["epoch-02"]
    assert entry["n"] == 1
    assert entry["mean_ddi_nats"] is not None
    for key in ("d_z", "hedges_g_z", "ci95_nats", "bca95_nats", "d_z_ci95", "sd_ddi_nats"):
        assert entry[key] is None
    assert entry["equivalence"]["within"] is None
    assert summary["base"]["literary"]["power"]["detectable_d_z_at_80"] is None
    json.dumps(summary, allow_nan=False)


def test_an_adapter_that_changes_nothing_is_no_error():
    rows = list(make_rows(ITEMS, [None]))
    same = [row | {"adapter": "epoch-01"} for row in rows]
    summary = summary_of(rows + same)
    entry = summary["groups"]["literary"]["epoch-01"]
    assert (entry["mean_ddi_nats"], entry["d_z"], entry["wilcoxon"]["p"]) == (0, None, 1)
    assert entry["sign_test"]["p"] == 1
    json.dumps(summary, allow_nan=False)


@pytest.mark.parametrize("low", [-0.004, 0.0, 0.004])
def test_ends_that_round_to_zero_are_printed_without_a_sign(low):
    assert interval((low, 0.125)) == "[0.00, +0.12]"
    assert signed(low) == "0.00"
    assert (interval(None), signed(None)) == ("n/a", "n/a")
