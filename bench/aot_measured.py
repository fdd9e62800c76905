"""What `cqa-fast bench` measured on a card, beside what the model says of it."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

from aot_step import Workload, predict, predict_ops, step_of, summed
from aot_time import CARDS, Card

SAME = {"A800": "A100", "H800": "H100"}  # in all that the model looks at


def card_of(data: dict[str, Any]) -> Card:
    """Return the card that a benchmark ran on."""
    name = str(data["device"].get("name"))
    for known, card in {**{n: n for n in CARDS}, **SAME}.items():
        if known in name:
            return CARDS[card]
    sys.exit(f"expected a benchmark of {', '.join(CARDS)}, got one of {name}")


def measured(data: Any) -> Iterator[tuple[str, str, float]]:
    """Yield level, name and median seconds of every op, step and job that was measured alone."""
    if isinstance(data, list):
        for line in data:
            yield from measured(line)
    elif isinstance(data, dict):
        time = data.get("time")
        if not isinstance(time, dict) or "peer" in data:
            for inner in data.values():
                yield from measured(inner)
        elif "op" in data:
            yield "kernel", f"{data['op']} {data['way']}", time["median_s"]
        elif "window" in data:
            yield "step", data["window"], time["median_s"]
        elif "job" in data:
            yield "score", data["job"], time["median_s"]


def compared(path: Path) -> Iterator[str]:
    """Yield a table of what was measured, predicted, and their ratio."""
    data = json.loads(path.read_text("utf-8"))
    card, settings = card_of(data), data["settings"]
    work = Workload(
        shape=settings["shape"], rank=settings["rank"], dropout=settings["dropout"],
        window=data["windows"][0],
    )  # fmt: skip
    lines = list(measured({k: data[k] for k in ("kernel", "step", "score") if k in data}))
    if not lines:
        sys.exit(f"{path}: expected ops, steps or jobs that were measured, got none")
    levels = {level for level, _, _ in lines}
    ops = predict_ops(card, work) if "kernel" in levels else {}
    yield f"Measured on {data['device']['name']}; predicted for {card.name} by a model."
    yield ""
    yield "| what | predicted, ms | measured, ms | measured/predicted |"
    yield "|---|---|---|---|"
    ratios = []
    for level, name, seconds in lines:
        if level == "kernel":
            told = ops.get(name, math.nan)
        elif level == "step":
            told = summed(step_of(card, replace(work, window=name)), card).seconds
        else:
            told = predict([card], replace(work, job=name))[0].job_s
        ratio = seconds / told if told else math.nan
        if math.isnan(ratio):
            yield f"| {name} | n/a | {seconds * 1e3:.3f} | n/a |"
            continue
        ratios.append(ratio)
        yield f"| {name} | {told * 1e3:.3f} | {seconds * 1e3:.3f} | {ratio:.2f} |"
    yield ""
    off = median(abs(math.log(ratio)) for ratio in ratios) if ratios else math.nan
    yield f"The model is off by a factor of {math.exp(off):.2f}, the median of {len(ratios)} lines."
