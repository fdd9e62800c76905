"""Time and memory of the statistics of very many items under many adapters.

    python tests/million.py [--items 1000000] [--adapters 12] [--per-source 4]

The scores are drawn as columns, as reading a folder makes them; `--rows N` measures by how many
lines a second a folder is read.
"""

from __future__ import annotations

import argparse
import resource
import tempfile
import time
from pathlib import Path

import numpy as np
from synthetic import make_folder, make_items

from cqa.report.source import read_source
from cqa.schema.verdict import Verdict
from cqa.stats.columns import NUMBERS, ItemScores
from cqa.stats.items import OF_PMI
from cqa.stats.specification import specification_curve
from cqa.stats.summary import Scores, summarise


def drawn_scores(n_items: int, n_adapters: int, per_source: int) -> Scores:
    """Return the scores of a literary and a factual half; adapters change dI a little."""
    scores = Scores()
    facts, half = scores.facts, n_items // 2
    facts.numbers.update((f"item-{k}", k) for k in range(n_items))
    sources = [f"book-{k // per_source}" for k in range(n_items)]
    facts._labels = {
        "domain": ["novel" if k % 2 else "essay" for k in range(n_items)],
        "source_id": sources, "published_at": [None] * n_items, "lang": ["en"] * n_items,
    }  # fmt: skip
    rng = np.random.default_rng(0)
    for held, kind in [(h, k) for k, h in (("i", facts._right), ("d", facts._wrong))]:
        for column in held:
            column.frombytes(rng.integers(5, 60, n_items).astype(kind).tobytes())
    facts._merges.frombytes(bytes(n_items))
    for group, first in (("literary", 0), ("factual", half)):
        rows = np.arange(first, first + half, dtype=np.int32)
        base = _drawn(facts.numbers, rows, rng, None, 0.0)
        scores.items[group] = {None: base}
        for k in range(n_adapters):
            shift = 0.02 * (k + 1) * (group == "literary")
            name = f"epoch-{k + 1:02d}"
            scores.items[group][name] = _drawn(facts.numbers, rows, rng, base, shift)
    return scores


def _drawn(numbers, rows, rng, base: ItemScores | None, shift: float) -> ItemScores:
    found = ItemScores(numbers)
    found.rows = rows
    names = [*NUMBERS, "delta_i_null2_nats", *(("variants", k) for k in range(len(OF_PMI) - 1))]
    names += [("null2_lengths", k) for k in (0, 1)]
    moved = rng.gamma(2, size=len(rows)) - 2 + shift
    for name in names:
        values = rng.standard_normal(len(rows))
        if base is not None:
            values = base._columns[name] + moved + 0.3 * values
        found._columns[name] = values
    for name in ("is_first", "is_first_per_byte"):
        found._columns[name] = (rng.random(len(rows)) < 0.7).astype(np.int8)
    return found


def peak_mebibytes() -> float:
    """Return the most memory that this process has had."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def main() -> None:
    """Measure."""
    arguments = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    arguments.add_argument("--items", type=int, default=1_000_000)
    arguments.add_argument("--adapters", type=int, default=12)
    arguments.add_argument("--per-source", type=int, default=4)
    arguments.add_argument("--rows", type=int, default=0, help="items of a folder that is read")
    settings = arguments.parse_args()
    if settings.rows:
        with tempfile.TemporaryDirectory() as folder:
            items = make_items(settings.rows // 2)
            make_folder(Path(folder), items=items, adapters=[None, "epoch-01"], tokens=False)
            begun = time.process_time()
            read_source(Path(folder))
            seconds = time.process_time() - begun
        print(f"read: {2 * len(items) / seconds:,.0f} rows a second of processor time")
    scores = drawn_scores(settings.items, settings.adapters, settings.per_source)
    print(f"columns: {peak_mebibytes():,.0f} MiB")
    begun, spent = time.perf_counter(), time.process_time()
    summary = summarise(scores)
    verdict: Verdict = summary.verdict
    print(f"summary: {time.perf_counter() - begun:,.0f} s, {peak_mebibytes():,.0f} MiB")
    groups = ["literary", "factual"]
    specification_curve(scores.items, scores.facts, groups, str(summary.highlighted), summary)
    print(
        f"and the specification curve: {time.perf_counter() - begun:,.0f} s, of it "
        f"{time.process_time() - spent:,.0f} s of processor time, {peak_mebibytes():,.0f} MiB"
    )
    print(verdict.headline)


if __name__ == "__main__":
    main()
