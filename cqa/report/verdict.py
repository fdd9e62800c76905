"""The verdict as a page shows it: each finding of the statistics as a question with its numbers.

Marks and headline are those of summary.json; nothing here looks at a number twice.
"""

from __future__ import annotations

from dataclasses import dataclass

from cqa.report.focus import Focus
from cqa.report.tables import show
from cqa.schema.result import Interval
from cqa.schema.verdict import Finding, Mark

NOT_SHOWN = [
    "that texts the model writes are better: no text was generated and no reader was asked",
    "that it holds for another base model or other items",
]
ONE_SEED = "that it holds for another training seed: no runs that differ in --seed only were scored"
NO_PLACEBO = (
    "that the change comes from what the samples teach: no adapter trained on dealt responses "
    "(train --placebo) was scored beside"
)


@dataclass(frozen=True, slots=True)
class Answer:
    """One question, whether the data answer it, and the numbers."""

    question: str
    mark: Mark
    text: str
    test: str


@dataclass(frozen=True, slots=True)
class Tile:
    """A headline number with its name and what stands beside it."""

    name: str
    value: str
    detail: str


@dataclass(frozen=True, slots=True)
class Page:
    """The first screen of a report."""

    headline: str
    answers: list[Answer]
    tiles: list[Tile]
    evidence_for: str
    not_shown: list[str]


def make_page(focus: Focus) -> Page:
    """Word the verdict of the statistics."""
    verdict = focus.summary.verdict
    placebo = [] if verdict.finding("placebo") else [NO_PLACEBO]
    return Page(
        headline=verdict.headline,
        answers=[_answer(focus, finding) for finding in verdict.findings],
        tiles=_tiles(focus),
        evidence_for=_evidence(focus),
        not_shown=[*NOT_SHOWN, *([] if focus.n_seeds > 1 else [ONE_SEED]), *placebo],
    )


def _answer(focus: Focus, finding: Finding) -> Answer:
    return Answer(_question(focus, finding), finding.mark, _numbers(finding), f"{finding.test}.")


def _question(focus: Focus, finding: Finding) -> str:
    asked = {
        "change": f"Did the model become more sensitive to quality in {focus.primary} items?",
        "selective": f"Does it change more for {focus.primary} than for {focus.control} items, in "
        f"sum and per token?",
        "conditional": "Is it the conditional that sharpened, by more than the prior moved?",
        "control_small": f"Is any change in {finding.group} items smaller than a small effect?",
        "placebo": "Is the change larger than after training on dealt responses?",
        "entropy": "Did H(X|Y) fall, by more than twice what H(X) moved?",
        "continuations": f"Did true continuations become more probable ({finding.group})?",
    }
    return asked[finding.name]


def _numbers(finding: Finding) -> str:
    """Return the estimate with its interval, p, how many items and sources, and the reason."""
    fine = finding.unit == "nats/token"
    estimate = show(finding.estimate, "fine" if fine else "signed")
    parts = [f"{finding.adapter}: {estimate}\N{NO-BREAK SPACE}{finding.unit}"]
    if finding.ci95 is not None:
        parts.append(f"95 % CI {show(finding.ci95, 'fine_interval' if fine else 'interval')}")
    if finding.p is not None:
        parts.append(_p(finding.p))
        if finding.p_alone is not None and show(finding.p_alone, "p") != show(finding.p, "p"):
            parts.append(f"alone {_p(finding.p_alone)}")
    both = " in the group with fewer" if finding.name == "selective" else ""
    parts.append(f"{finding.n_items:,} items of {finding.n_sources:,} sources{both}")
    return f"{', '.join(parts)}: {finding.reason}."


def _p(value: float | None) -> str:
    text = show(value, "p")
    sign = "" if text.startswith("<") else "= "
    return f"p {sign}{text}".replace(" ", "\N{NO-BREAK SPACE}")


def _nats(value: float | None, unit: str = "nats") -> str:
    return f"{show(value, 'signed')}\N{NO-BREAK SPACE}{unit}"


def _ci(interval: Interval | None) -> str:
    return f"95 % CI {show(interval, 'interval')}".replace(" ", "\N{NO-BREAK SPACE}")


def _tiles(focus: Focus) -> list[Tile]:
    """Return the headline numbers: those of the findings, so that nothing contradicts them."""
    verdict = focus.summary.verdict
    change, selective = verdict.finding("change"), verdict.finding("selective")
    if change is None:
        return []
    family = focus.family
    n = len(family.changes) if family else 1
    looked = "one adapter was looked at" if n == 1 else f"corrected for {n} adapters"
    tiles = [
        Tile(f"ddI, {change.group}", _nats(change.estimate), _ci(change.ci95)),
        Tile("p, one-sided", show(change.p, "p"), looked),
    ]
    entry = focus.comparison
    if entry is not None:
        tiles.append(Tile("d_z", show(entry.effect.d_z, "signed"), "mean / sd of ddI over items"))
    if selective is not None:
        tiles.append(
            Tile(
                f"{focus.primary} − {focus.control}",
                _nats(selective.estimate),
                f"two-sided {_p(selective.p)}, in sum and per token",
            )
        )
    return tiles


def _evidence(focus: Focus) -> str:
    summary = focus.summary
    sizes = [f"{base.n:,} {group}" for group, base in summary.base.items()]
    texts = [f"{models['base'].n} {group}" for group, models in summary.continuations.items()]
    parts = [f"{', '.join(sizes)} items"] if sizes else []
    parts += [f"{', '.join(texts)} continuations"] if texts else []
    model = focus.source.settings.model
    trained = f"{_runs(focus)}, " if focus.source.adapters else ""
    return f"This is evidence about one base model ({model}), {trained}and these " + (
        f"{' and '.join(parts)}."
    )


def _runs(focus: Focus) -> str:
    """Say of how many training runs the adapters are, as far as that is known."""
    run, adapters, settings = focus.source.run, focus.source.adapters, focus.source.settings
    if run is not None and run.scored.keys() >= set(adapters):
        known = run.facts.n_train
        return "one training run" + (f", trained on {known} samples" if known is not None else "")
    last = {model.adapter for model in focus.source.meta.models}
    runs = settings.run if not settings.adapter and last >= set(adapters) else ()
    if len(adapters) == 1 or (run is None and len(runs) == 1):
        return "one training run"
    if runs:
        return f"{len(runs)} training runs"
    several = "several" if run is not None else "one training run or of several"
    return f"{len(adapters)} adapters, of {several}"
