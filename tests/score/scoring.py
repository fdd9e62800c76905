"""What the tests of scoring runs share: a few items of every kind, settings, and what is read."""

import json
from pathlib import Path
from typing import Any

from helpers import DEMO, read_lines

from cqa.score.config import ScoreConfig

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
