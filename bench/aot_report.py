"""What was predicted, as Markdown and JSON, beside the goals and what was predicted before."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import triton
from aot_step import PAPER, PAPER_STEPS, Predicted, Sum, compiled, launches_in

HELD = Path(__file__).parent / "results" / "aot.json"
MODEL = "A model by arithmetic (docs/gpu-model.md). Nothing here was measured."
GOALS_S = {("step", "H200"): 0.078, ("job", "H200"): 9.0, ("paper run", "A100"): 101.0}
RISE = 1.10  # of a sum, above which the change that made it fails
_WHAT = {
    "step": f"training step, {PAPER.window} tokens, rank {PAPER.rank}, dropout {PAPER.dropout}",
    "job": f"scoring job {PAPER.job}",
    "paper run": f"the paper's run, {PAPER_STEPS} such steps",
}


def _time(seconds: float) -> str:
    return f"{seconds:.1f} s" if seconds >= 1 else f"{seconds * 1e3:.1f} ms"


def goals(found: Iterable[Predicted]) -> Iterator[str]:
    """Yield the lines of the table of sums and goals."""
    yield "| card | what | predicted | goal | predicted/goal | measured | measured/predicted |"
    yield "|---|---|---|---|---|---|---|"
    for each in found:
        for name, seconds in each.totals_s.items():
            goal = GOALS_S.get((name, each.card.name))
            against = "– | –" if goal is None else f"{_time(goal)} | {seconds / goal:.2f}"
            line = f"| {each.card.name} | {_WHAT[name]} | {_time(seconds)} | {against}"
            yield f"{line} | n/a | n/a |"


def _parts(name: str, by_card: dict[str, dict[str, float]]) -> Iterator[str]:
    cards = list(by_card)
    yield f"| {name}, ms | {' | '.join(cards)} |"
    yield "|---" * (len(cards) + 1) + "|"
    parts = dict.fromkeys(part for parts in by_card.values() for part in parts)
    for part in parts:
        cells = [f"{by_card[card].get(part, 0.0) * 1e3:.2f}" for card in cards]
        yield f"| {part} | {' | '.join(cells)} |"
    yield f"| sum | {' | '.join(f'{sum(by_card[c].values()) * 1e3:.1f}' for c in cards)} |"


def _lines(title: str, total: Sum, least_s: float) -> Iterator[str]:
    yield f"### {title}"
    yield ""
    yield "| what | times | each, µs | all, ms | waits for |"
    yield "|---|---|---|---|---|"
    rest = 0.0
    for line in total.lines:
        if line.seconds < least_s:
            rest += line.seconds
            continue
        what = line.what if line.part in line.what else f"{line.part}: {line.what}"
        each, all_ms = f"{line.each_s * 1e6:.1f}", f"{line.seconds * 1e3:.2f}"
        yield f"| {what} | {line.count} | {each} | {all_ms} | {line.limit} |"
    yield f"| what is shorter | | | {rest * 1e3:.2f} | |"
    yield ""


def markdown(found: Sequence[Predicted]) -> Iterator[str]:
    """Yield everything that was predicted."""
    yield "## Predicted times"
    yield ""
    yield MODEL
    yield ""
    yield from goals(found)
    yield ""
    for each in found:
        yield (
            f"{each.card.name}: {each.step.launches} launches a step, by the host "
            f"{each.step.host_s * 1e3:.0f} ms; scoring computes {each.computed} rows for "
            f"{each.fed} that are fed."
        )
    yield ""
    yield from _parts("a training step", {each.card.name: each.step.parts_s for each in found})
    yield ""
    yield from _parts("a scoring job", {each.card.name: each.job_parts_s for each in found})
    yield ""
    for each in found:
        yield from _lines(f"A training step on {each.card.name}", each.step, 1e-4)
        yield from _lines(f"Scoring under an adapter on {each.card.name}", each.adapted, 1e-3)


def to_json(found: Iterable[Predicted]) -> dict[str, Any]:
    """Return what is held: the sums, and what they are made of."""

    def rounded(parts: dict[str, float]) -> dict[str, float]:
        return {part: round(seconds * 1e3, 3) for part, seconds in parts.items()}

    return {
        "model": MODEL,
        "triton": triton.__version__,
        "cards": {
            each.card.name: {
                **{f"{name}_s": round(seconds, 5) for name, seconds in each.totals_s.items()},
                "host_step_s": round(each.step.host_s, 5),
                "launches_a_step": each.step.launches,
                "rows_fed": each.fed,
                "rows_computed": each.computed,
                "step_parts_ms": rounded(each.step.parts_s),
                "job_parts_ms": rounded(each.job_parts_s),
            }
            for each in found
        },
    }


def write_held(found: Iterable[Predicted], path: Path = HELD) -> None:
    """Write what later changes are held to."""
    path.write_text(json.dumps(to_json(found), indent=1) + "\n", encoding="utf-8")


def risen(found: Iterable[Predicted], held: dict[str, Any]) -> Iterator[str]:
    """Yield which sums are more than a tenth above what is held."""
    for each in found:
        before = held["cards"][each.card.name]
        for name in ("step", "job"):
            now, then = each.totals_s[name], before[f"{name}_s"]
            if now > RISE * then:
                yield (
                    f"{each.card.name}: expected a {name} of at most {_time(RISE * then)} by the "
                    f"model, got {_time(now)}; what rose: {_rose(each, name, before)}"
                )


def _rose(each: Predicted, name: str, before: dict[str, Any]) -> str:
    """Name the parts that rose most."""
    parts = each.step.parts_s if name == "step" else each.job_parts_s
    then = before[f"{name}_parts_ms"]
    more = {part: seconds * 1e3 - then.get(part, 0.0) for part, seconds in parts.items()}
    most = sorted(more.items(), key=lambda item: -item[1])[:3]
    return ", ".join(f"{part} by {ms:.1f} ms" for part, ms in most)


def code_problems(found: Iterable[Predicted]) -> Iterator[str]:
    """Yield what is wrong with the code of a step's and a job's kernels."""
    seen = set()
    for each in found:
        for launch in launches_in((*each.step.events, *each.base.events, *each.adapted.events)):
            key = (launch, each.card.architecture)
            if key not in seen:
                seen.add(key)
                for problem in compiled(*key).problems:
                    yield f"{launch.name}, sm_{key[1]}: {problem}"
