"""A scoring run: items and adapters that are refused, left out, or named."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import read_lines, write_lines
from safetensors.torch import load_file, save_file
from score.scoring import LITERARY, MODEL, TEXTS, bytes_of, config_of, few_of, rows_of

from cqa.errors import ConfigError, DataError, ModelError, NumericsError
from cqa.kernels.token_logprobs import token_stats
from cqa.report.config import ReportConfig
from cqa.report.terminal import summary_text
from cqa.report.write import make_report
from cqa.score.adapters import find_adapters
from cqa.score.run import score


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


def test_texts_that_meet_wrongly_are_counted_in_meta(data, tmp_path):
    spaced = {**LITERARY[0], "context": "It rained. "}
    lacking = {**LITERARY[1], "context": "It rained.", "good": "She ran."}
    file = write_lines(tmp_path / "p.jsonl", [spaced, lacking, LITERARY[2]])
    config = few_of(data, tmp_path / "out", pairs=(file,))
    score(config)
    meta = json.loads((config.out / "meta.json").read_text())
    assert (meta["n_contexts_ending_in_space"], meta["n_options_lacking_space"]) == (1, 1)


def test_a_named_group_that_is_not_there_ends_the_run_before_anything_is_scored(data, tmp_path):
    config = few_of(data, tmp_path / "out", primary="literary", control="news")
    with pytest.raises(ConfigError, match=r"--control to name a group of pairs"):
        score(config)
    assert not (tmp_path / "out" / "scores.jsonl").exists()


def test_items_longer_than_the_models_positions_are_left_out_when_asked_for(data, run, tmp_path):
    long = {**LITERARY[1], "context": "word " * 1100}
    text = {**TEXTS[0], "group": "texts", "continuation": " word" * 1100}
    pairs = (write_lines(tmp_path / "p.jsonl", [LITERARY[0], long, LITERARY[2]]),)
    texts = (write_lines(tmp_path / "t.jsonl", [text]),)
    config = few_of(data, tmp_path / "out", pairs=pairs, continuations=texts, too_long="drop")
    notes: list[str] = []
    result = score(config, on_event=lambda e: notes.append(getattr(e, "text", "")))
    rows = rows_of(config.out)
    assert [row["id"] for row in rows] == ["lit-01", "lit-03"]
    assert [item["id"] for item in read_lines(config.out / "items.jsonl")] == ["lit-01", "lit-03"]
    meta = json.loads((config.out / "meta.json").read_text())
    assert meta["too_long"] == {"lit-02": "literary", TEXTS[0]["id"]: "texts"}
    assert result.summary.n_too_long == {"literary": 1, "texts": 1}
    assert result.summary.statistics.base["literary"].n == 2
    assert "left out, over the model's positions (--too-long drop): 1 literary, 1 texts" in (
        summary_text(result.summary)
    )
    (note,) = [text for text in notes if text.startswith("left out")]
    assert f"1024 positions: 1 literary, 1 texts (lit-02, {TEXTS[0]['id']}; meta.json" in note
    before = bytes_of(config.out)
    assert score(config) == result
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

    monkeypatch.setattr("cqa.model.decoder.token_stats", spoiled)
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
    assert names_of(data, run=(run,)) == ["epoch-01", "epoch-02"]
    assert names_of(data, run=(run,), epochs=(2, 1)) == ["epoch-02", "epoch-01"]
    assert names_of(data, adapter=(run / "init",), run=(run,), epochs=(2,)) == ["init", "epoch-02"]


def test_epochs_of_two_runs_get_the_names_of_their_runs(data, run, tmp_path):
    for name in ("a", "b"):
        shutil.copytree(run / "epoch-01", tmp_path / name / "epoch-01")
    adapters = (tmp_path / "a" / "epoch-01", tmp_path / "b" / "epoch-01")
    assert names_of(data, adapter=adapters) == ["a/epoch-01", "b/epoch-01"]
    mixed = names_of(data, adapter=adapters[:1], run=(run,))
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
        ({"run": "epoch-01"}, "expected a training run with epoch folders, got an adapter"),
    ],
    ids=["missing-epoch", "twice", "missing-folder", "no-run"],
)
def test_adapters_that_are_not_there_are_refused(data, run, tmp_path, changes, message):
    paths = {"run": (run / changes.get("run", ""),)}
    paths["adapter"] = tuple(run / name for name in changes.get("adapter", ()))
    config = few_of(data, tmp_path / "out", **{**changes, **paths})
    with pytest.raises(ModelError, match=message) as caught:
        score(config)
    assert caught.value.exit_code == 4
    assert not config.out.exists()


def test_adapter_in_a_folder_of_its_own_has_the_name_that_was_given(data, run, tmp_path):
    shutil.copytree(run / "epoch-01", tmp_path / "mine" / "default")
    (found,) = find_adapters(few_of(data, Path("unused"), adapter=(tmp_path / "mine",)))
    assert (found.name, found.folder) == ("mine", tmp_path / "mine" / "default")


def test_adapter_that_is_a_loop_of_links_is_refused(data, tmp_path):
    (tmp_path / "loop").symlink_to("loop")
    with pytest.raises(ModelError) as caught:
        score(few_of(data, tmp_path / "out", adapter=(tmp_path / "loop",)))
    assert caught.value.exit_code == 4


def test_adapter_that_changes_nothing_is_refused(data, run, tmp_path):
    with pytest.raises(ModelError, match="expected an adapter that changes the model"):
        score(few_of(data, tmp_path / "out", adapter=(run / "epoch-01", run / "init")))
    assert not (tmp_path / "out").exists()


def test_items_that_choose_are_scored_apart_and_may_not_be_reported_too(data, run, tmp_path):
    choosers = write_lines(tmp_path / "dev.jsonl", LITERARY[3:])
    pairs = (write_lines(tmp_path / "pairs.jsonl", LITERARY[:3]),)
    config = config_of(
        data, tmp_path / "out", pairs=pairs, continuations=(), run=(run,), choose_on=choosers
    )
    summary = score(config).to_json()
    assert summary["base"]["literary"]["n"] == 3
    assert "choose-on" not in summary["base"]
    assert summary["selection"]["literary"]["n_adapters"] == 2
    assert len(summary["families"]["literary"]["changes"]) == 1
    focus = make_report(config.out, ReportConfig(out=tmp_path / "report")).focus
    assert focus.summary.selection["literary"].chosen == summary["highlighted"]
    copies = write_lines(tmp_path / "copies.jsonl", [{**LITERARY[0], "id": "again"}])
    with pytest.raises(DataError, match="got the texts of one that is"):
        score(replace(config, out=tmp_path / "none", choose_on=copies))
    named = write_lines(tmp_path / "named.jsonl", [{**LITERARY[0], "group": "choose-on"}])
    with pytest.raises(DataError, match="expected another group"):
        score(replace(config, out=tmp_path / "none", pairs=(named,)))
    assert not (tmp_path / "none").exists()


def test_a_choice_elsewhere_needs_pairs_and_the_best(data, tmp_path):
    with pytest.raises(ConfigError, match="--choose-on with --pairs and --choose best"):
        config_of(data, tmp_path, choose_on=tmp_path / "dev.jsonl", choose="last")
