"""A scoring run: what is in its rows, under every convention, and in its summary."""

import itertools
import json
import math

import numpy as np
import pytest
from helpers import read_lines, write_lines
from scipy import stats
from score.scoring import (
    ITEMS,
    LITERARY,
    MODEL,
    MODELS,
    OPTION,
    PER_TOKEN,
    ROLES,
    ROW,
    few_of,
    keys_of,
    options_of,
    rows_of,
    summary_of,
)

from cqa.data.tokenizer import Tokenizer
from cqa.schema.events import ScoreStart
from cqa.score.run import score


def contrast(row: dict, key: str) -> float:
    """Return the right option's value minus the mean of the others."""
    values = [option[key] for option in row["options"]]
    return values[row["answer"]] - np.mean(np.delete(values, row["answer"]))


def test_there_is_a_row_for_every_item_and_model_in_the_order_of_the_files(rows):
    assert [(row["adapter"], row["id"]) for row in rows] == [
        (adapter, item_id) for adapter in MODELS for item_id in ITEMS
    ]


def test_rows_have_the_fields_of_the_contract(rows):
    for row in rows:
        assert row.keys() >= ROW
        assert all(option.keys() >= OPTION | PER_TOKEN for option in row["options"])


def test_per_token_fields_are_written_only_when_asked_for(few):
    for row in rows_of(few):
        assert row.keys() >= ROW
        assert all(option.keys() >= OPTION for option in row["options"])
        assert all(option.keys().isdisjoint(PER_TOKEN) for option in row["options"])


def test_rows_repeat_the_labels_of_their_items(rows):
    for row in rows:
        item = ITEMS[row["id"]]
        assert row["group"] == item.get("group", "ungrouped")
        for label in ("domain", "lang", "source_id", "published_at"):
            assert row[label] == item.get(label)


def test_options_keep_the_order_of_the_file_and_are_named_by_their_roles(rows):
    for row in rows:
        item, n = ITEMS[row["id"]], len(row["options"])
        kind = next(k for k in ("options", "continuation", "good") if k in item)
        assert row["kind"] == ("pair" if kind == "good" else kind)
        several = ["right" if k == item.get("answer") else "wrong" for k in range(n)]
        assert [o["role"] for o in row["options"]] == ROLES.get(row["kind"], several)
        assert row["answer"] == {"pair": 0, "continuation": None}.get(
            row["kind"], item.get("answer")
        )


def test_counts_are_of_the_option_text_and_its_tokens(rows):
    tokenizer = Tokenizer(MODEL)
    for row in rows:
        for option, text in zip(row["options"], options_of(ITEMS[row["id"]]), strict=True):
            assert option["n_bytes"] == len(text.encode())
            assert option["n_chars"] == len(text)
            assert option["token_ids"] == list(tokenizer.encode_following(text))
            assert option["n_tokens"] == len(option["token_ids"])
            ends = [0, *option["token_char_ends"]]
            spelt = [text[a:b] for a, b in itertools.pairwise(ends)]
            assert "".join(spelt) == text
            for token, part in zip(option["token_ids"], spelt, strict=True):
                decoded = tokenizer.decode([token])
                assert decoded == part or "\N{REPLACEMENT CHARACTER}" in decoded


def test_token_scores_add_up_to_the_option_scores(rows):
    for row in rows:
        for option in row["options"]:
            for given in ("given_context", "null"):
                tokens = option[f"token_logp_{given}_nats"]
                assert len(tokens) == option["n_tokens"]
                assert math.fsum(tokens) == option[f"logp_{given}_nats"]
                assert all(value < 0 for value in tokens)


def test_information_is_the_difference_that_the_context_makes(rows):
    for row in rows:
        for option in row["options"]:
            given, null = option["logp_given_context_nats"], option["logp_null_nats"]
            assert option["pmi_nats"] == given - null
            assert null != option["logp_null2_nats"]


def test_delta_i_is_the_right_options_information_minus_the_wrong_ones_mean(rows):
    for row in rows:
        if row["kind"] == "continuation":
            assert row["delta_i_nats"] is None
        else:
            assert row["delta_i_nats"] == pytest.approx(contrast(row, "pmi_nats"), abs=1e-12)


def test_rank_prob_is_the_softmax_of_scores_per_byte_at_the_right_option(rows):
    for row in rows:
        if row["kind"] == "continuation":
            assert row["rank_prob"] is None
            continue
        per_byte = np.array([o["logp_given_context_nats"] / o["n_bytes"] for o in row["options"]])
        shares = np.exp(per_byte) / np.exp(per_byte).sum()
        assert row["rank_prob"] == pytest.approx(shares[row["answer"]], abs=1e-12)


def test_entropies_lie_between_zero_and_that_of_a_uniform_guess(rows):
    most = math.log(json.loads((MODEL / "config.json").read_text())["vocab_size"])
    for option in (option for row in rows for option in row["options"]):
        for key in ("entropy_given_context_nats", "entropy_null_nats"):
            assert 0 < option[key] < most * option["n_tokens"]


def test_only_an_option_that_joins_the_contexts_last_word_is_flagged(rows):
    flagged = {(row["id"], k) for row in rows for k, o in enumerate(row["options"])
               if o["boundary_merge"]}  # fmt: skip
    assert flagged == {("several-1", 0), ("several-1", 1)}


def test_model_keys_tell_the_models_apart_and_meta_names_what_is_behind_them(scored, rows):
    out = scored[0].out
    assert {row["adapter"]: row["model_key"] for row in rows} == keys_of(out)
    assert len(set(keys_of(out).values())) == 3
    for model in json.loads((out / "meta.json").read_text())["models"]:
        assert model["n_tokens"] > 0
        assert all(len(model[key]) == 64 for key in ("model", "tokenizer"))
        assert (model["adapter_digest"] is None) == (model["adapter"] is None)


def test_texts_are_kept_once_per_item(scored):
    kept = {record["id"]: record for record in read_lines(scored[0].out / "items.jsonl")}
    assert list(kept) == list(ITEMS)
    for item_id, record in kept.items():
        assert record["context"] == ITEMS[item_id]["context"]
        assert record["options"] == options_of(ITEMS[item_id])


def test_events_count_every_item_under_every_model(scored):
    events = scored[1]
    assert events[0] == ScoreStart(n_items=len(ITEMS), n_models=3)
    assert [e.adapter for e in events if e.event == "model"] == MODELS
    assert sum(e.n for e in events if e.event == "rows") == 3 * len(ITEMS)


def by_id(rows: list[dict], adapter: str | None, group: str) -> dict[str, dict]:
    return {r["id"]: r for r in rows if (r["adapter"], r["group"]) == (adapter, group)}


@pytest.mark.parametrize("adapter", MODELS[1:])
@pytest.mark.parametrize(("group", "n"), [("literary", 6), ("factual", 6), ("ungrouped", 3)])
def test_summary_of_pairs_is_what_the_rows_say(scored, rows, adapter, group, n):
    entry = scored[2]["groups"][group][adapter]
    models = by_id(rows, None, group), by_id(rows, adapter, group)
    a, b = ([r for r in rows.values() if r["answer"] is not None] for rows in models)

    def change(key: str) -> np.ndarray:
        return np.array([contrast(y, key) - contrast(x, key) for x, y in zip(a, b, strict=True)])

    ddi = np.array([y["delta_i_nats"] - x["delta_i_nats"] for x, y in zip(a, b, strict=True)])
    t, signed_rank = stats.ttest_1samp(ddi, 0), stats.wilcoxon(ddi, alternative="greater")
    interval = t.confidence_interval()
    assert entry["n"] == len(ddi) == n
    expected = {
        "mean_delta_i_base_nats": np.mean([r["delta_i_nats"] for r in a]),
        "mean_delta_i_nats": np.mean([r["delta_i_nats"] for r in b]),
        "mean_ddi_nats": ddi.mean(),
        "mean_d_cond_nats": change("logp_given_context_nats").mean(),
        "mean_d_prior_nats": change("logp_null_nats").mean(),
        "d_z": ddi.mean() / ddi.std(ddof=1),
    }
    assert {key: entry[key] for key in expected} == pytest.approx(expected, abs=1e-9)
    assert entry["mean_ddi_nats"] == pytest.approx(
        entry["mean_d_cond_nats"] - entry["mean_d_prior_nats"], abs=1e-9
    )
    assert entry["ci95_nats"] == pytest.approx([interval.low, interval.high])
    assert entry["t"]["t"] == pytest.approx(t.statistic)
    assert entry["t"]["df"] == n - 1
    assert entry["t"]["p_one_sided"] == pytest.approx(stats.t.sf(t.statistic, n - 1))
    assert entry["wilcoxon"] == {
        "w_plus": signed_rank.statistic,
        "p": pytest.approx(signed_rank.pvalue),
        "alternative": "greater",
        "method": "exact",
        "n_zero": 0,
    }


@pytest.mark.parametrize("adapter", MODELS)
def test_summary_of_continuations_is_what_the_rows_say(scored, rows, adapter):
    entry = scored[2]["continuations"]["literary"][adapter or "base"]
    a, b = (
        [r for r in by_id(rows, model, "literary").values() if r["kind"] == "continuation"]
        for model in (None, adapter)
    )

    def per_token(rows: list[dict]) -> np.ndarray:
        return np.array(
            [r["options"][0]["logp_given_context_nats"] / r["options"][0]["n_tokens"] for r in rows]
        )

    def check(part: dict, keep: np.ndarray) -> None:
        before, after = per_token(a)[keep], per_token(b)[keep]
        change = after - before
        n = len(change)
        half = stats.t.ppf(0.975, n - 1) * change.std(ddof=1) / math.sqrt(n)
        assert part["n"] == n
        assert part["mean_logp_per_token_base_nats"] == pytest.approx(before.mean())
        assert part["mean_logp_per_token_nats"] == pytest.approx(after.mean())
        assert part["mean_dlogp_per_token_nats"] == pytest.approx(change.mean())
        assert part["mean_dlogp_per_token_bits"] == pytest.approx(change.mean() / math.log(2))
        assert part["ci95_nats"] == pytest.approx([change.mean() - half, change.mean() + half])

    domains = np.array([row["domain"] for row in a])
    check(entry, np.full(4, True))
    assert set(entry["domains"]) == {"sea", "city"}
    for domain, part in entry["domains"].items():
        check(part, domains == domain)


def test_summary_is_written_as_it_is_returned(scored):
    assert summary_of(scored[0].out) == json.loads(json.dumps(scored[2]))
    assert scored[2]["unit"] == "nats"


def test_statistics_that_one_item_cannot_have_are_null(data, run, tmp_path):
    pairs = (write_lines(tmp_path / "one.jsonl", LITERARY[:1]),)
    result = score(few_of(data, tmp_path / "out", pairs=pairs, run=(run,), epochs=(2,)))
    one = result.summary.statistics.groups["literary"]["epoch-02"]
    assert one.n == 1
    assert one.delta_i_nats.change != 0
    assert (one.effect.d_z, one.delta_i_nats.ci95, one.t.t) == (None, None, None)


def test_end_token_is_scored_after_each_option_when_asked_for(data, rows, tmp_path):
    config = few_of(data, tmp_path / "out", score_eos=True, tokens=True)
    score(config)
    plain = {row["id"]: row for row in rows if row["adapter"] is None}
    for row in rows_of(config.out):
        for ours, before in zip(row["options"], plain[row["id"]]["options"], strict=True):
            assert ours["token_ids"] == [*before["token_ids"], Tokenizer(MODEL).end_id]
            assert ours["n_tokens"] == before["n_tokens"] + 1
            assert ours["n_bytes"] == before["n_bytes"]
            logp, logp_before = (o["token_logp_given_context_nats"] for o in (ours, before))
            assert logp[:-1] == pytest.approx(logp_before, abs=1e-4)
            assert logp[-1] < 0


def test_joint_boundary_moves_only_the_options_that_it_flags(data, rows, tmp_path):
    config = few_of(data, tmp_path / "out", boundary="joint", tokens=True)
    score(config)
    split = {row["id"]: row for row in rows if row["adapter"] is None}
    flags = []
    for row in rows_of(config.out):
        for joint, before in zip(row["options"], split[row["id"]]["options"], strict=True):
            assert joint["boundary_merge"] is before["boundary_merge"]
            assert (joint["token_ids"] == before["token_ids"]) is not joint["boundary_merge"]
            assert joint["boundary_merge"] or joint == before
            flags.append(joint["boundary_merge"])
    assert sorted(flags) == [False] * 9 + [True] * 2


def test_option_that_begins_with_the_null_token_loses_no_token(data, tmp_path):
    item = {**LITERARY[0], "good": "<|endoftext|> She ran."}
    pairs = (write_lines(tmp_path / "null.jsonl", [item]),)
    config = few_of(data, tmp_path / "out", pairs=pairs, tokens=True, allow_special=True)
    score(config)
    tokenizer, option = Tokenizer(MODEL), rows_of(config.out)[0]["options"][0]
    assert option["token_ids"] == [*tokenizer.null_ids, *tokenizer.encode_following(" She ran.")]
    for given in ("given_context", "null"):
        assert len(option[f"token_logp_{given}_nats"]) == option["n_tokens"] > 1


def test_null_token_changes_what_the_context_is_compared_with(data, rows, tmp_path):
    config = few_of(data, tmp_path / "out", null_token="<|im_start|>")
    score(config)
    plain = {row["id"]: row for row in rows if row["adapter"] is None}
    for row in rows_of(config.out):
        for ours, before in zip(row["options"], plain[row["id"]]["options"], strict=True):
            assert ours["logp_given_context_nats"] == before["logp_given_context_nats"]
            assert ours["logp_null_nats"] != before["logp_null_nats"]
            assert ours["logp_null2_nats"] != before["logp_null2_nats"]
