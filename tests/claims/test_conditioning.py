"""The study of conditioning, and what all studies share: resume, family, refusals, the null."""

import json
import shutil
import signal
import subprocess
import sys

import numpy as np
import pytest
from claims.asking import MODEL, reference_stats
from helpers import read_lines, write_lines
from safetensors.torch import load_file, save_file

from cqa.claims.conditioning.claim import Conditioning
from cqa.claims.conditioning.config import ConditioningConfig
from cqa.claims.run import run_study
from cqa.claims.verdict.claim import Verdict
from cqa.claims.verdict.config import VerdictConfig
from cqa.errors import ConfigError, DataError, ModelError
from cqa.interrupt import Interrupted

ITEMS = [
    {
        "id": f"c{k}",
        "condition": f"{weather} all week.",
        "context": "She looked out",
        "good": f" and {end}.",
        "bad": " and sat down.",
        "source_id": f"book-{k // 2}",
        "group": ("literary", "factual")[k % 2],
    }
    for k, (weather, end) in enumerate(
        [
            ("It rained", "ran"), ("It snowed", "was still"), ("The sun was out", "smiled"),
            ("Fog lay", "saw no one"), ("The wind blew", "held the door"), ("It was dry", "wept"),
            ("It was hot", "slept"), ("It hailed", "hid"),
        ]
    )
]  # fmt: skip


@pytest.fixture
def settings(tmp_path):
    pairs = write_lines(tmp_path / "items.jsonl", ITEMS)

    def make(**changes) -> ConditioningConfig:
        given = {"model": str(MODEL), "pairs": (pairs,), "out": tmp_path / "out", "device": "cpu"}
        return ConditioningConfig(**{**given, **changes})

    return make


def ask(config: ConditioningConfig, **options):
    return run_study(Conditioning(config), config, **options)


def test_rows_are_those_of_transformers_in_float64(settings, trained):
    adapter = trained / "epoch-02"
    config = settings(adapter=(adapter,))
    ask(config)
    rows = {(r["id"], r["adapter"]): r for r in read_lines(config.out / "rows.jsonl")}
    assert len(rows) == 2 * len(ITEMS)
    item = ITEMS[3]
    for name, path in ((None, None), ("epoch-02", adapter)):
        row = rows["c3", name]
        for place, context in ((0, ""), (1, item["condition"] + "\n\n")):
            logp, entropy = reference_stats(context + item["context"], item["good"], path)
            assert row["logp_nats"][place] == pytest.approx(logp, abs=1e-4)
            assert row["entropy_nats"][place] == pytest.approx(entropy, abs=1e-4)


def test_effects_are_means_over_items_and_the_finding_is_of_the_excess(settings):
    config = settings()
    result = ask(config)
    rows = read_lines(config.out / "rows.jsonl")
    dh = np.array([np.subtract(r["entropy_nats"], r["entropy_nats"][0]) for r in rows])
    by_name = {e.name: e for e in result.effects if e.group is None}
    assert by_name["matched"].value == pytest.approx(dh[:, 1].mean())
    assert by_name["excess"].value == pytest.approx((dh[:, 1] - dh[:, 2]).mean())
    assert by_name["rises"].value == np.mean(dh[:, 1] > 0)
    assert by_name["excess"].n_sources == 4
    assert {f.mark for f in result.findings} == {"n/a"}  # four sources decide nothing
    groups = {e.group: e.n for e in result.effects if e.name == "excess"}
    assert groups == {None: 8, "literary": 4, "factual": 4}
    assert (config.out / "figure.svg").read_bytes().startswith(b"<?xml")
    assert json.loads((config.out / "study.json").read_text()) == json.loads(
        json.dumps(result.to_json())
    )


def test_a_stopped_study_goes_on_to_the_same_bytes(settings, trained, tmp_path):
    whole = settings(adapter=(trained / "epoch-01",), batch_tokens=200)
    ask(whole)
    stopped = settings(adapter=whole.adapter, batch_tokens=200, out=tmp_path / "stopped")

    def stop(event) -> None:
        if event.event == "rows":
            signal.raise_signal(signal.SIGINT)

    with pytest.raises(Interrupted) as caught:
        ask(stopped, on_event=stop)
    assert "cqa-fast study conditioning --model" in caught.value.command
    held = (stopped.out / "rows.jsonl").read_bytes()
    assert 0 < len(held) < (whole.out / "rows.jsonl").stat().st_size
    with (stopped.out / "rows.jsonl").open("ab") as file:
        file.write(b'{"id": "torn')
    ask(stopped)
    assert (stopped.out / "rows.jsonl").read_bytes() == (whole.out / "rows.jsonl").read_bytes()
    for name in ("figure.svg", "figure.png"):
        assert (stopped.out / name).read_bytes() == (whole.out / name).read_bytes()


def test_the_batch_changes_no_row(settings, tmp_path):
    ask(settings(batch_tokens=64))
    ask(settings(batch_tokens=4000, out=tmp_path / "other"))
    rows = [(tmp_path / out / "rows.jsonl").read_bytes() for out in ("out", "other")]
    assert rows[0] == rows[1]


def test_the_tests_pay_for_every_adapter_that_was_ever_asked(settings, trained):
    ask(settings(adapter=(trained / "epoch-01",)))
    later = ask(settings(adapter=(trained / "epoch-02",)))
    assert [m.adapter for m in later.models] == [None, "epoch-02", "epoch-01"]
    at_once = ask(settings(run=(trained,)))
    values = {e.adapter: e.ci95 for e in later.effects if e.name == "excess" and e.group is None}
    assert values == {
        e.adapter: e.ci95 for e in at_once.effects if e.name == "excess" and e.group is None
    }


def test_an_adapter_counts_whatever_became_of_the_result(settings, trained):
    out = ask(settings(run=(trained,), epochs=(1,))) and settings().out
    both = ask(settings(run=(trained,), epochs=(2,)))
    for left in (None, "", "{}"):  # gone as after a stop, or damaged
        (out / "study.json").unlink()
        if left is not None:
            (out / "study.json").write_text(left)
        again = ask(settings(run=(trained,), epochs=(2,)))
        assert (again.effects, again.models) == (both.effects, both.models)


def test_a_folder_is_of_one_study_and_one_base(settings, tmp_path):
    ask(settings())
    before = {path.name: path.read_bytes() for path in settings().out.iterdir()}
    other = Verdict(VerdictConfig(**vars(settings())))
    with pytest.raises(ConfigError, match="study verdict, got one of study conditioning"):
        run_study(other, settings())
    model = tmp_path / "other"
    shutil.copytree(MODEL, model)
    weights = load_file(model / "model.safetensors")
    weights["model.norm.weight"] *= 1.5
    save_file(weights, model / "model.safetensors")
    with pytest.raises(ModelError, match="the model that this folder's study was begun with"):
        ask(settings(model=str(model)))
    assert {path.name: path.read_bytes() for path in settings().out.iterdir()} == before


def test_a_row_that_was_changed_is_refused(settings):
    config = settings()
    ask(config)
    path = config.out / "rows.jsonl"
    path.write_text(path.read_text().replace('"id": "c2"', '"id": "c3"', 1))
    with pytest.raises(DataError, match=r"rows\.jsonl:3: expected a row as it was written"):
        ask(config)


def test_an_adapter_that_changes_nothing_is_refused(settings, trained, tmp_path):
    weak = shutil.copytree(trained / "epoch-02", tmp_path / "weak")
    path = weak / "adapter_model.safetensors"
    save_file({name: 1e-30 * tensor for name, tensor in load_file(path).items()}, path)
    with pytest.raises(ModelError, match="expected an adapter that changes a number"):
        ask(settings(adapter=(weak,)))


def test_conditions_of_one_source_cannot_be_dealt(settings, tmp_path):
    lines = [{**item, "source_id": "one"} for item in ITEMS]
    pairs = write_lines(tmp_path / "one.jsonl", lines)
    with pytest.raises(DataError, match="of other sources, got too many of one source"):
        ask(settings(pairs=(pairs,)))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"condition": None}, r"bad\.jsonl:2: expected text in `condition`"),
        ({"condition": "  "}, r"bad\.jsonl:2: expected words in `condition`, got: white space"),
        ({"condition": "word " * 5000}, r"bad\.jsonl:2: expected at most \d+ tokens"),
        ({"good": " and sat down."}, r"bad\.jsonl:2: expected `good` and `bad` to differ"),
    ],
)
def test_bad_lines_are_named(settings, tmp_path, change, said):
    bad = {k: v for k, v in {**ITEMS[1], **change}.items() if v is not None}
    pairs = write_lines(tmp_path / "bad.jsonl", [ITEMS[0], bad, *ITEMS[2:]])
    with pytest.raises(DataError, match=said):
        ask(settings(pairs=(pairs,)))


def test_a_folder_of_something_else_is_refused(settings, trained):
    with pytest.raises(ConfigError, match="expected a new folder or one of a study, got one of a"):
        ask(settings(out=trained))


def test_the_command_says_its_cost_first_and_its_null(settings):
    config = settings()
    command = [sys.executable, "-m", "cqa_fast", "study", "conditioning", "--device", "cpu"]
    command += ["--model", str(MODEL), "--pairs", str(config.pairs[0]), "--out", str(config.out)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    said = done.stderr.splitlines()
    assert "tokens to feed, about" in said[1]
    assert done.stdout.splitlines()[1].startswith("null: z of another item")
    again = subprocess.run([*command, "--json"], capture_output=True, text=True, check=True)
    assert json.loads(again.stdout)["study"] == "conditioning"
