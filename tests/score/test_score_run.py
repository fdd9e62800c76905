"""A scoring run: the rows, the summary, and that it can be repeated, stopped and resumed."""

import itertools
import json
import math
import os
import shutil
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers import DEMO, read_lines, write_lines
from safetensors.torch import load_file, save_file
from scipy import stats

from cqa.data.tokenizer import Tokenizer
from cqa.errors import DataError, ModelError, NumericsError
from cqa.interrupt import Interrupted
from cqa.kernels.token_logprobs import token_stats
from cqa.score.config import ScoreConfig
from cqa.score.run import find_adapters, score
from cqa.score.table import summary_text
from cqa.train.config import TrainConfig
from cqa.train.loop import train

MODEL = DEMO / "model"
ROW = {
    "id", "group", "domain", "lang", "source_id", "published_at", "kind", "answer", "adapter",
    "model_key", "options", "delta_i_nats", "rank_prob",
}  # fmt: skip
OPTION = {
    "role", "logp_given_context_nats", "logp_null_nats", "logp_null2_nats", "pmi_nats",
    "entropy_given_context_nats", "entropy_null_nats", "n_tokens", "n_bytes", "n_chars",
    "boundary_merge",
}  # fmt: skip
PER_TOKEN = {
    "token_ids", "token_char_ends", "token_logp_given_context_nats", "token_logp_null_nats",
}  # fmt: skip
ROLES = {"pair": ["good", "bad"], "continuation": ["continuation"]}
SEVERAL = [
    {
        "id": "several-1",
        "context": "He looked, and there was no",
        "options": [
            "thing left.",
            "body home.",
            " café 在.",
        ],  # " nothing" and " nobody" are tokens
        "answer": 1,
        "lang": "en",
        "published_at": "2024-01-01",
    },
    {"id": "several-2", "context": "It rained, so", "options": [" she ran.", " he."], "answer": 0},
    {"id": "several-3", "context": "A\nB", "options": ["\nC", "\nD", "\nE", "\nZ"], "answer": 3},
]
MODELS = [None, "epoch-01", "epoch-02"]


def differing(record: dict) -> dict:
    """Return a pair cut down to a few words on either side of where its options part."""
    good, bad = record["good"], record["bad"]
    parting = next(i for i in range(len(good)) if good[: i + 1] != bad[: i + 1])
    start = max(0, good.rfind(" ", 0, parting))
    context = (record["context"] + good[:start])[-40:]
    options = {"good": good[start : start + 30], "bad": bad[start : start + 34]}
    return {**record, "context": context, **options}


LITERARY = [differing(r) for r in read_lines(DEMO / "literary.jsonl")[:6]]
FACTUAL = [differing(r) for r in read_lines(DEMO / "factual.jsonl")[:6]]
TEXTS = [
    {
        **record,
        "domain": ["sea", "city"][i % 2],
        "context": record["context"][-40:],
        "continuation": record["continuation"][:30],
    }
    for i, record in enumerate(read_lines(DEMO / "continuations.jsonl")[:4])
]
ITEMS = {record["id"]: record for record in [*LITERARY, *FACTUAL, *SEVERAL, *TEXTS]}


def options_of(record: dict) -> list[str]:
    if "options" in record:
        return record["options"]
    return [record[key] for key in ("good", "bad", "continuation") if key in record]


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    """A folder of item files."""
    folder = tmp_path_factory.mktemp("items")
    write_lines(folder / "literary.jsonl", LITERARY)
    write_lines(folder / "factual.jsonl", FACTUAL)
    write_lines(folder / "several.jsonl", SEVERAL)
    write_lines(folder / "texts.jsonl", TEXTS)
    write_lines(folder / "few.jsonl", [LITERARY[0], SEVERAL[0], FACTUAL[0], SEVERAL[2]])
    return folder


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    """The folder of a training run with two epochs."""
    folder = tmp_path_factory.mktemp("training")
    samples = [
        {"prompt": s["prompt"][-40:], "response": s["response"][:40]}
        for s in read_lines(DEMO / "train.jsonl")[:6]
    ]
    data = write_lines(folder / "train.jsonl", samples)
    out = folder / "run"
    train(
        TrainConfig(
            model=str(MODEL), data=data, out=out, epochs=2, rank=4, lr=3e-3, validation="0",
            device="cpu",
        )
    )  # fmt: skip
    return out


def config_of(data: Path, out: Path, **changes: Any) -> ScoreConfig:
    """Return settings that score every file."""
    settings: dict[str, Any] = {
        "pairs": tuple(data / f"{name}.jsonl" for name in ("literary", "factual", "several")),
        "continuations": (data / "texts.jsonl",),
        "device": "cpu",
    }
    return ScoreConfig(model=str(MODEL), out=out, **{**settings, **changes})


def few_of(data: Path, out: Path, **changes: Any) -> ScoreConfig:
    """Return settings that score four items in several passes."""
    settings = {"pairs": (data / "few.jsonl",), "continuations": (), "batch_tokens": 60}
    return config_of(data, out, **{**settings, **changes})


@pytest.fixture(scope="module")
def scored(data, run, tmp_path_factory) -> tuple[ScoreConfig, list[dict], dict]:
    """The settings of an uninterrupted run over everything, its events and its summary."""
    config = config_of(data, tmp_path_factory.mktemp("scored") / "out", run=run, tokens=True)
    events: list[dict] = []
    return config, events, score(config, on_event=events.append)


@pytest.fixture(scope="module")
def rows(scored) -> list[dict]:
    return rows_of(scored[0].out)


@pytest.fixture(scope="module")
def few(data, run, tmp_path_factory) -> Path:
    """The folder of an uninterrupted run over a few items under the base and one adapter."""
    config = few_of(data, tmp_path_factory.mktemp("few") / "out", adapter=(run / "epoch-01",))
    score(config)
    return config.out


def rows_of(out: Path) -> list[dict]:
    return read_lines(out / "scores.jsonl")


def bytes_of(out: Path) -> bytes:
    return (out / "scores.jsonl").read_bytes()


def summary_of(out: Path) -> dict:
    return json.loads((out / "summary.json").read_text())


def keys_of(out: Path) -> dict[str | None, str]:
    """Return the model key of every adapter of the last run."""
    models = json.loads((out / "meta.json").read_text())["models"]
    return {model["adapter"]: model["model_key"] for model in models}


def on(kind: str, number: int, act: Callable[[], object]) -> Callable[[dict], None]:
    """Return an observer that acts at the nth event of a kind."""
    seen = []

    def on_event(event: dict) -> None:
        if event["event"] == kind:
            seen.append(event)
            if len(seen) == number:
                act()

    return on_event


def crash() -> None:
    raise KeyboardInterrupt


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
    assert events[0] == {"event": "start", "n_items": len(ITEMS), "n_models": 3}
    assert [e["adapter"] for e in events if e["event"] == "model"] == MODELS
    assert sum(e["n"] for e in events if e["event"] == "rows") == 3 * len(ITEMS)


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
    entry = score(few_of(data, tmp_path / "out", pairs=pairs, run=run, epochs=(2,)))["groups"]
    one = entry["literary"]["epoch-02"]
    assert one["n"] == 1
    assert one["mean_ddi_nats"] != 0
    assert (one["d_z"], one["ci95_nats"], one["t"]["t"]) == (None, None, None)


def test_the_same_command_again_computes_nothing(scored, tmp_path):
    shutil.copytree(scored[0].out, tmp_path / "out")
    events: list[dict] = []
    assert score(replace(scored[0], out=tmp_path / "out"), on_event=events.append) == scored[2]
    assert {event["event"] for event in events} == {"start", "note", "model", "scored"}
    assert bytes_of(tmp_path / "out") == bytes_of(scored[0].out)


@pytest.mark.parametrize("n_rows", [0, 3, 4, 7], ids=lambda n: f"{n}-rows")
def test_line_torn_by_a_kill_is_cut_and_what_is_missing_computed(data, run, few, tmp_path, n_rows):
    shutil.copytree(few, tmp_path / "out")
    lines = bytes_of(few).splitlines(keepends=True)
    left = b"".join(lines[:n_rows]) + lines[n_rows][: len(lines[n_rows]) // 2]
    (tmp_path / "out" / "scores.jsonl").write_bytes(left)
    events: list[dict] = []
    score(few_of(data, tmp_path / "out", adapter=(run / "epoch-01",)), on_event=events.append)
    assert sum(e["n"] for e in events if e["event"] == "rows") == len(lines) - n_rows
    assert bytes_of(tmp_path / "out") == bytes_of(few)
    assert summary_of(tmp_path / "out") == summary_of(few)


@pytest.mark.parametrize("n_passes", [1, 3])
def test_run_killed_between_two_passes_is_resumed_to_the_same_bytes(
    data, run, few, tmp_path, n_passes
):
    config = few_of(data, tmp_path / "out", adapter=(run / "epoch-01",))
    with pytest.raises(KeyboardInterrupt):
        score(config, on_event=on("rows", n_passes, crash))
    assert 0 < len(rows_of(config.out)) < 8
    assert not (config.out / "summary.json").exists()
    score(config)
    assert bytes_of(config.out) == bytes_of(few)
    assert summary_of(config.out) == summary_of(few)


@pytest.mark.parametrize(("signum", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_signal_ends_a_run_after_the_pass_in_hand_and_leaves_it_to_be_resumed(
    data, run, few, tmp_path, signum, code
):
    config = few_of(data, tmp_path / "out", adapter=(run / "epoch-01",))
    with pytest.raises(Interrupted) as caught:
        score(config, on_event=on("model", 2, lambda: os.kill(os.getpid(), signum)))
    assert caught.value.exit_code == code
    assert bytes_of(few).startswith(bytes_of(config.out))
    assert 4 < len(rows_of(config.out)) < 8
    score(config)
    assert bytes_of(config.out) == bytes_of(few)


@pytest.mark.parametrize(("batch_tokens", "n_passes"), [(1, 19), (200, 7), (4096, 1)])
def test_batches_change_no_byte(data, scored, tmp_path, batch_tokens, n_passes):
    config = config_of(data, tmp_path / "out", tokens=True, batch_tokens=batch_tokens)
    events: list[dict] = []
    score(config, on_event=events.append)
    assert sum(event["event"] == "rows" for event in events) == n_passes
    base = bytes_of(scored[0].out).splitlines(keepends=True)[: len(ITEMS)]
    assert bytes_of(config.out) == b"".join(base)


def test_base_is_scored_once_for_adapters_that_come_later(data, run, few, tmp_path):
    config = few_of(data, tmp_path / "out")
    score(config)
    base = bytes_of(config.out)
    events: list[dict] = []
    score(replace(config, adapter=(run / "epoch-01",)), on_event=events.append)
    assert sum(e["n"] for e in events if e["event"] == "rows") == 4
    assert bytes_of(config.out).startswith(base)
    assert bytes_of(config.out) == bytes_of(few)


def test_another_adapter_under_the_same_name_is_scored_anew(data, run, tmp_path):
    out, summaries = tmp_path / "out", []
    for epoch in (1, 2):
        adapter = tmp_path / f"copy-{epoch}" / "adapter"
        shutil.copytree(run / f"epoch-0{epoch}", adapter)
        summaries.append(score(few_of(data, out, adapter=(adapter,))))
    rows = [row for row in rows_of(out) if row["adapter"] == "adapter"]
    assert len({row["model_key"] for row in rows}) == 2
    assert len(rows) == 8
    first, second = (s["groups"]["literary"]["adapter"]["mean_ddi_nats"] for s in summaries)
    assert first != second


@pytest.mark.parametrize(
    "changes",
    [{"boundary": "joint"}, {"null_token": "<|im_start|>"}, {"score_eos": True}, {"dtype": "bf16"}],
    ids=lambda changes: next(iter(changes)),
)
def test_other_conventions_are_another_model_key(data, few, tmp_path, changes):
    config = few_of(data, tmp_path / "out", **changes)
    score(config)
    assert keys_of(config.out)[None] != keys_of(few)[None]


def test_tokens_asked_for_later_are_written(data, tmp_path):
    config = few_of(data, tmp_path / "out")
    score(config)
    score(replace(config, tokens=True))
    key = keys_of(config.out)[None]
    latest = {row["id"]: row for row in rows_of(config.out) if row["model_key"] == key}
    assert all(o.keys() >= PER_TOKEN for row in latest.values() for o in row["options"])


@pytest.mark.parametrize(
    "change",
    [{"context": "Another."}, {"good": " Another."}, {"bad": " Another."}, {"group": "factual"}],
    ids=lambda change: next(iter(change)),
)
def test_changed_item_under_a_known_id_is_refused(data, few, run, tmp_path, change):
    out = tmp_path / "out"
    shutil.copytree(few, out)
    changed = write_lines(tmp_path / "changed.jsonl", [{**LITERARY[0], **change}])
    message = f"^{changed}:1: expected item `lit-01` as this folder holds it, got .*\nhint: .*--out"
    with pytest.raises(DataError, match=message):
        score(few_of(data, out, pairs=(changed,), adapter=(run / "epoch-02",)))
    assert bytes_of(out) == bytes_of(few)


def test_item_may_have_keys_that_are_named_like_our_own(data, tmp_path):
    extra = {"item_key": "mine", "kind": "ours", "answer": 7, "model_key": "x", "adapter": "y"}
    pairs = (write_lines(tmp_path / "own.jsonl", [{**LITERARY[0], **extra}]),)
    config = few_of(data, tmp_path / "out", pairs=pairs)
    first = score(config)
    assert score(config) == first
    (record,) = read_lines(config.out / "items.jsonl")
    assert (record["kind"], record["answer"]) == ("pair", 0)


def test_item_longer_than_the_models_positions_is_refused_by_name(data, tmp_path):
    long = {**LITERARY[1], "context": "word " * 1100}
    file = write_lines(tmp_path / "long.jsonl", [LITERARY[0], long])
    message = f"^{file}:2: expected at most 1024 tokens .*, got 11.. in item `lit-02`\nhint: "
    with pytest.raises(DataError, match=message):
        score(few_of(data, tmp_path / "out", pairs=(file,)))
    assert not (tmp_path / "out").exists()


def test_items_longer_than_the_models_positions_are_left_out_when_asked_for(data, run, tmp_path):
    long = {**LITERARY[1], "context": "word " * 1100}
    text = {**TEXTS[0], "group": "texts", "continuation": " word" * 1100}
    pairs = (write_lines(tmp_path / "p.jsonl", [LITERARY[0], long, LITERARY[2]]),)
    texts = (write_lines(tmp_path / "t.jsonl", [text]),)
    config = few_of(data, tmp_path / "out", pairs=pairs, continuations=texts, too_long="drop")
    notes: list[str] = []
    summary = score(config, on_event=lambda e: notes.append(e.get("text", "")))
    rows = rows_of(config.out)
    assert [row["id"] for row in rows] == ["lit-01", "lit-03"]
    assert [item["id"] for item in read_lines(config.out / "items.jsonl")] == ["lit-01", "lit-03"]
    meta = json.loads((config.out / "meta.json").read_text())
    assert meta["too_long"] == {"lit-02": "literary", TEXTS[0]["id"]: "texts"}
    assert summary["n_too_long"] == {"literary": 1, "texts": 1}
    assert summary["base"]["literary"]["n"] == 2
    assert "left out, over the model's positions (--too-long drop): 1 literary, 1 texts" in (
        summary_text(summary)
    )
    (note,) = [text for text in notes if text.startswith("left out")]
    assert f"1024 positions: 1 literary, 1 texts (lit-02, {TEXTS[0]['id']}; meta.json" in note
    before = bytes_of(config.out)
    assert score(config) == summary
    assert bytes_of(config.out) == before


def test_id_that_comes_again_is_refused_among_items_that_are_left_out_too(data, tmp_path):
    long = {**LITERARY[0], "context": "word " * 1100}
    file = write_lines(tmp_path / "p.jsonl", [LITERARY[0], long])
    with pytest.raises(DataError, match=f"^{file}:2: expected each id once"):
        score(few_of(data, tmp_path / "out", pairs=(file,), too_long="drop"))


def test_no_item_that_fits_is_an_error(data, tmp_path):
    file = write_lines(tmp_path / "p.jsonl", [{**LITERARY[0], "context": "word " * 1100}])
    message = f"^{file}: expected an item of at most 1024 tokens, got only longer ones"
    with pytest.raises(DataError, match=message):
        score(few_of(data, tmp_path / "out", pairs=(file,), too_long="drop"))
    assert not (tmp_path / "out").exists()


def test_id_that_pairs_and_continuations_share_is_refused(data, tmp_path):
    texts = write_lines(tmp_path / "texts.jsonl", [{**TEXTS[0], "id": "lit-01"}])
    message = rf"^{texts}:1: expected each id once, .*`lit-01`.*\nhint: .*few\.jsonl:1$"
    with pytest.raises(DataError, match=message):
        score(few_of(data, tmp_path / "out", continuations=(texts,)))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("field", ["logp", "entropy"])
def test_score_that_is_not_finite_is_refused_by_the_items_name(data, tmp_path, monkeypatch, field):
    def spoiled(*inputs: torch.Tensor, **options: Any) -> Any:
        result = token_stats(*inputs, **options)
        getattr(result, field)[-1] = float("nan")
        return result

    monkeypatch.setattr("cqa.score.scorer.token_stats", spoiled)
    pairs = (write_lines(tmp_path / "two.jsonl", LITERARY[:2]),)
    config = few_of(data, tmp_path / "out", pairs=pairs, batch_tokens=4096)
    with pytest.raises(NumericsError, match=r"two\.jsonl:2: expected finite .*`lit-02`") as caught:
        score(config)
    assert caught.value.exit_code == 5
    assert bytes_of(config.out) == b""
    monkeypatch.undo()
    score(config)
    assert len(rows_of(config.out)) == 2


def test_model_with_a_weight_that_is_not_finite_is_refused(data, tmp_path):
    model = Path(shutil.copytree(MODEL, tmp_path / "model"))
    weights = load_file(model / "model.safetensors")
    weights["model.norm.weight"][0] = float("nan")
    save_file(weights, model / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(NumericsError, match="`lit-01`"):
        score(replace(few_of(data, tmp_path / "out"), model=str(model)))


def names_of(data: Path, **changes: Any) -> list[str]:
    return [a.name for a in find_adapters(few_of(data, Path("unused"), **changes))]


def test_adapters_are_named_by_their_folders(data, run, monkeypatch):
    monkeypatch.chdir(run / "epoch-01")
    assert names_of(data, adapter=(Path("../epoch-02"), Path())) == ["epoch-02", "epoch-01"]


def test_epochs_of_a_run_are_all_of_them_or_those_named_in_the_order_named(data, run):
    assert names_of(data, run=run) == ["epoch-01", "epoch-02"]
    assert names_of(data, run=run, epochs=(2, 1)) == ["epoch-02", "epoch-01"]
    assert names_of(data, adapter=(run / "init",), run=run, epochs=(2,)) == ["init", "epoch-02"]


def test_epochs_of_two_runs_get_the_names_of_their_runs(data, run, tmp_path):
    for name in ("a", "b"):
        shutil.copytree(run / "epoch-01", tmp_path / name / "epoch-01")
    adapters = (tmp_path / "a" / "epoch-01", tmp_path / "b" / "epoch-01")
    assert names_of(data, adapter=adapters) == ["a/epoch-01", "b/epoch-01"]
    mixed = names_of(data, adapter=adapters[:1], run=run)
    assert mixed == ["a/epoch-01", "run/epoch-01", "epoch-02"]


def test_adapter_named_base_is_told_apart_from_the_base(data, run, tmp_path):
    adapter = shutil.copytree(run / "epoch-01", tmp_path / "mine" / "base")
    assert names_of(data, adapter=(adapter,)) == ["mine/base"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"epochs": (2, 7)}, "expected epoch 7, got epochs 1, 2"),
        ({"adapter": ("epoch-01",)}, "expected each adapter once"),
        ({"adapter": ("epoch-09",)}, r"expected an adapter folder with adapter_config\.json"),
        ({"run": "epoch-01"}, "expected a training run with epoch folders, got none"),
    ],
    ids=["missing-epoch", "twice", "missing-folder", "no-run"],
)
def test_adapters_that_are_not_there_are_refused(data, run, tmp_path, changes, message):
    paths = {"run": run / changes.get("run", "")}
    paths["adapter"] = tuple(run / name for name in changes.get("adapter", ()))
    config = few_of(data, tmp_path / "out", **{**changes, **paths})
    with pytest.raises(ModelError, match=message) as caught:
        score(config)
    assert caught.value.exit_code == 4
    assert not config.out.exists()


def test_adapter_that_changes_nothing_is_refused(data, run, tmp_path):
    with pytest.raises(ModelError, match="expected an adapter that changes the model"):
        score(few_of(data, tmp_path / "out", adapter=(run / "epoch-01", run / "init")))
    assert not (tmp_path / "out").exists()


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
    config = few_of(data, tmp_path / "out", pairs=pairs, tokens=True)
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
