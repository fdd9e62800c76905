"""Time, memory and size of a report on very many items.

    python tests/large.py [--items 100000] [--models 3] [--per-source 4] [--tokens]

Writes a folder of scores as `cqa-fast score` would and reports on it in a process of its own.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from synthetic import Row, key_of, make_meta

from cqa.schema.rows import ItemText
from cqa.score_folder import text_key, with_checksum

BLOCK = 1000  # items drawn at once
GROUPS = ("literary", "factual")
DATES = ("2023", "2024-05-02", "2024-06", "2024-09-12", None)
DOMAINS = ("novel", "essay", "letter", None)
N_TOKENS = (5, 40)
NUMBERS = ("given", "null", "null2", "entropy", "entropy_null")


def write_large_folder(
    folder: Path,
    *,
    n_items: int,
    n_models: int = 3,
    per_source: int = 4,
    tokens: bool = False,
    change: Callable[[int], Row] = lambda number: {},
) -> Path:
    """Write scores.jsonl, items.jsonl and meta.json, a block of items at a time.

    Args:
        folder: Is made.
        n_items: Nine in ten are pairs, the others continuations; half of each are literary.
        n_models: The base and adapters, each of which changes literary pairs a little more.
        per_source: Items of one source.
        tokens: Whether rows hold values per token.
        change: Returns what is another of an item.
    """
    folder.mkdir(parents=True)
    items = [_item(number, per_source) | change(number) for number in range(n_items)]
    for item in items:
        item["item_key"] = text_key(ItemText.from_json(item, "made up"))
    _write_lines(folder / "items.jsonl", items)
    adapters = [None, *(f"epoch-{k:02d}" for k in range(1, n_models))]
    rows = (
        row
        for depth, adapter in enumerate(adapters)
        for first in range(0, n_items, BLOCK)
        for row in _rows(items[first : first + BLOCK], first, adapter, depth, tokens)
    )
    _write_lines(folder / "scores.jsonl", map(with_checksum, rows))
    (folder / "meta.json").write_text(json.dumps(make_meta(adapters, items)))
    return folder


def _write_lines(path: Path, records: Iterator[Row] | list[Row]) -> None:
    with path.open("w", encoding="utf-8") as file:
        file.writelines(json.dumps(record, ensure_ascii=False) + "\n" for record in records)


def _item(number: int, per_source: int) -> Row:
    is_pair, group = number % 10 != 9, GROUPS[number // 10 % 2 if number % 10 == 9 else number % 2]
    endings = ("better", "worse") if is_pair else ("true",)
    return {
        "id": f"item-{number}",
        "item_key": "",
        "kind": "pair" if is_pair else "continuation",
        "context": f"Context of item {number}, — “quoted”.",
        "options": [f" The {ending} ending of item {number}." for ending in endings],
        "answer": 0 if is_pair else None,
        "group": group,
        "domain": DOMAINS[number // 2 % len(DOMAINS)],
        "lang": "en",
        "source_id": f"book-{number // (2 * per_source)}-{group}",
        "published_at": DATES[number % len(DATES)],
    }


def _rows(
    items: list[Row], first: int, adapter: str | None, depth: int, tokens: bool
) -> Iterator[Row]:
    """Yield the rows of a block; what is drawn of an item's base is the same under each model."""
    base, drift = (np.random.default_rng([first, k]) for k in (0, depth + 1))
    n_tokens = base.integers(*N_TOKENS, (len(items), 2))
    values = -base.gamma(2, n_tokens[..., None], (len(items), 2, len(NUMBERS)))
    values += drift.normal(0, 0.5, values.shape) * depth
    literary = np.array([item["group"] == "literary" for item in items])
    values[literary, 0, 0] += 0.1 * depth
    for item, lengths, drawn in zip(items, n_tokens.tolist(), values.tolist(), strict=True):
        options = [
            _option(item, k, lengths[k], dict(zip(NUMBERS, drawn[k], strict=True)), tokens)
            for k in range(len(item["options"]))
        ]
        yield _row(item, adapter, options)


def _option(item: Row, k: int, n: int, drawn: dict[str, float], tokens: bool) -> Row:
    text = item["options"][k]
    option = {
        "role": ("good", "bad")[k] if item["kind"] == "pair" else "continuation",
        "logp_given_context_nats": drawn["given"],
        "logp_null_nats": drawn["null"],
        "logp_null2_nats": drawn["null2"],
        "pmi_nats": drawn["given"] - drawn["null"],
        "entropy_given_context_nats": -drawn["entropy"],
        "entropy_null_nats": -drawn["entropy_null"],
        "n_tokens": n,
        "n_bytes": len(text.encode()),
        "n_chars": len(text),
        "boundary_merge": False,
    }
    if tokens:
        option["token_ids"] = list(range(n))
        option["token_char_ends"] = np.linspace(1, len(text), n).astype(int).tolist()
        for key, total in (("given_context", "given"), ("null", "null")):
            option[f"token_logp_{key}_nats"] = [drawn[total] / n] * n
    return option


def _row(item: Row, adapter: str | None, options: list[Row]) -> Row:
    pmi = [option["pmi_nats"] for option in options]
    delta_i = pmi[0] - pmi[1] if item["kind"] == "pair" else None
    labels = ("id", "group", "domain", "lang", "source_id", "published_at", "kind", "answer")
    return {
        **{key: item[key] for key in labels},
        "adapter": adapter,
        "model_key": key_of(adapter),
        "item_key": item["item_key"],
        "options": options,
        "delta_i_nats": delta_i,
        "delta_i_best_wrong_nats": delta_i,
        "rank_prob": None if delta_i is None else 0.5,
    }


def measure(scores: Path, out: Path) -> str:
    """Report in a process of its own and say what it took."""
    begun = time.perf_counter()
    command = [sys.executable, "-m", "cqa_fast", "report", str(scores), "--out", str(out)]
    done = subprocess.run(command, env=os.environ, capture_output=True, text=True)
    seconds = time.perf_counter() - begun
    if done.returncode:
        raise SystemExit(done.stderr)
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return (
        f"report: {seconds:,.1f} s, {used.ru_utime + used.ru_stime:,.1f} s of processor time, "
        f"{used.ru_maxrss / 1024:,.0f} MiB, report.html "
        f"{(out / 'report.html').stat().st_size / 1e6:,.1f} MB"
    )


def main() -> None:
    """Write, report, measure."""
    arguments = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    arguments.add_argument("--items", type=int, default=100_000)
    arguments.add_argument("--models", type=int, default=3)
    arguments.add_argument("--per-source", type=int, default=4)
    arguments.add_argument("--tokens", action="store_true")
    settings = arguments.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        scores = write_large_folder(
            Path(folder) / "scores",
            n_items=settings.items,
            n_models=settings.models,
            per_source=settings.per_source,
            tokens=settings.tokens,
        )
        print(f"scores.jsonl {(scores / 'scores.jsonl').stat().st_size / 1e6:,.0f} MB")
        print(measure(scores, Path(folder) / "report"))


if __name__ == "__main__":
    main()
