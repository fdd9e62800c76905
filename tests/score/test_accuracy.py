"""Accuracy by summed and by byte-normalised log-probability is lm-eval's own on the same items."""

from pathlib import Path

import pytest
from helpers import read_lines, shared, write_lines
from score.common import lm_eval_model

from cqa.data.tokenizer import Tokenizer
from cqa.score.config import ScoreConfig
from cqa.score.run import score

N_ITEMS = 60


@pytest.fixture(scope="module")
def items() -> list[dict]:
    records = read_lines(shared("data/pairs/narrative_hellaswag.jsonl"))
    return [{key: r[key] for key in ("id", "context", "options", "answer")} for r in records][
        :N_ITEMS
    ]


@pytest.fixture
def ours(items, real_model, tmp_path) -> Path:
    """A folder of scores; lm-eval encodes context and option at once."""
    pairs = write_lines(tmp_path / "hellaswag.jsonl", items)
    score(
        ScoreConfig(
            model=str(real_model), pairs=(pairs,), boundary="joint", out=tmp_path / "out",
            device="cpu",
        )
    )  # fmt: skip
    return tmp_path / "out"


def lm_eval_accuracies(items: list[dict], folder: Path, *, delimiter: str) -> dict[str, float]:
    """Run lm-eval's multiple-choice task over the items as they are."""
    huggingface = pytest.importorskip("lm_eval.models.huggingface", reason="lm-eval not installed")
    import datasets
    from lm_eval.api.task import ConfigurableTask
    from lm_eval.evaluator import evaluate

    n = len(delimiter)
    assert all(o.startswith(delimiter) for item in items for o in item["options"])
    records = [{**item, "options": [o[n:] for o in item["options"]]} for item in items]
    task = ConfigurableTask(
        config={
            "task": "hellaswag_here",
            "custom_dataset": lambda **_: {"test": datasets.Dataset.from_list(records)},
            "test_split": "test",
            "output_type": "multiple_choice",
            "doc_to_text": "context",
            "doc_to_choice": "options",
            "doc_to_target": "answer",
            "target_delimiter": delimiter,
            "metric_list": [{"metric": m} for m in ("acc", "acc_norm", "acc_bytes")],
        }
    )
    tokenizer = Tokenizer(folder)
    lm = lm_eval_model(huggingface, folder, tokenizer)
    results = evaluate(lm=lm, task_dict={"hellaswag_here": task}, bootstrap_iters=0)
    found = results["results"]["hellaswag_here"]
    assert results["n-samples"]["hellaswag_here"]["effective"] == len(items)
    return {name: found[f"{name},none"] for name in ("acc", "acc_norm", "acc_bytes")}


def share_right(folder: Path, length: str, less: int) -> float:
    """Return the share of items whose right option has the largest S / (length - less)."""
    rows = read_lines(folder / "scores.jsonl")
    hits = 0
    for row in rows:
        values = [
            o["logp_given_context_nats"] / (o[length] - less if length else 1)
            for o in row["options"]
        ]
        hits += values.index(max(values)) == row["answer"]
    return hits / len(rows)


def test_accuracies_of_the_summary_are_lm_evals_on_options_as_they_are(ours, items, real_model):
    from cqa.files import read_json

    theirs = lm_eval_accuracies(items, real_model, delimiter="")
    found = read_json(ours / "summary.json")["base"]["ungrouped"]["accuracy"]
    assert found["sum"]["share"] == theirs["acc"]
    assert found["per_byte"]["share"] == theirs["acc_bytes"]
    assert share_right(ours, "n_chars", 0) == theirs["acc_norm"]
    low, high = found["sum"]["ci95"]
    assert low < found["sum"]["share"] < high


def test_lengths_without_the_leading_space_give_the_accuracies_of_its_own_task(
    ours, items, real_model
):
    theirs = lm_eval_accuracies(items, real_model, delimiter=" ")
    assert share_right(ours, "", 0) == theirs["acc"]
    assert share_right(ours, "n_bytes", 1) == theirs["acc_bytes"]
    assert share_right(ours, "n_chars", 1) == theirs["acc_norm"]
