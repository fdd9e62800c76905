"""The verdict: what the numbers show, for whom they are evidence, and what they do not show.

Words follow from tests that were fixed in advance; nothing here looks at a number twice.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from cqa.report.focus import Focus
from cqa.report.tables import show
from cqa.schema.comparison import Comparison
from cqa.schema.result import Interval
from cqa.stats.tests import ALPHA

Mark = Literal["shown", "not shown", "against", "n/a"]
# So that most of the fall of H(X|Y) is its own, whatever H(X) did within its interval.
STAYED = 0.5  # of the change of H(X|Y): what a change of H(X) must stay below

NO_SPREAD = "The change is the same in all items"


@dataclass(frozen=True, slots=True)
class Finding:
    """One question, whether the data answer it, and the numbers."""

    question: str
    mark: Mark
    text: str


@dataclass(frozen=True, slots=True)
class Tile:
    """A headline number with its name and what stands beside it."""

    name: str
    value: str
    detail: str


@dataclass(frozen=True, slots=True)
class Verdict:
    """The first screen of a report."""

    headline: str
    findings: list[Finding]
    tiles: list[Tile]
    evidence_for: str
    not_shown: list[str]


def make_verdict(focus: Focus) -> Verdict:
    """Return the verdict on the highlighted adapter, the paper's questions in their order."""
    entry = focus.comparison
    if entry is None or not entry.n:
        return Verdict(_nothing_to_compare(focus), _texts(focus), [], _evidence(focus), NOT_SHOWN)
    sensitivity, selectivity = _sensitivity(focus, entry), _selectivity(focus)
    asked = (sensitivity, selectivity, _absence(focus), _part(focus, entry), _entropy(entry))
    return Verdict(
        headline=_headline(focus, sensitivity, selectivity),
        findings=[*(finding for finding in asked if finding), *_texts(focus)],
        tiles=_tiles(focus, entry),
        evidence_for=_evidence(focus),
        not_shown=NOT_SHOWN,
    )


NOT_SHOWN = [
    "that texts the model writes are better: no text was generated and no reader was asked",
    "that the change comes from what the samples teach: other samples of the same size and style "
    "were not trained on for comparison",
    "that it holds for another base model, other items or another training seed",
]


def _nothing_to_compare(focus: Focus) -> str:
    if not focus.source.adapters:
        return "Only the base model was scored, so there is no change to judge."
    if focus.primary is not None:
        return (
            f"No paired item was scored under {focus.highlighted}, so there is no change to judge."
        )
    return "No paired items were scored, so sensitivity to quality was not measured."


def _p(value: float | None) -> str:
    text = show(value, "p")
    sign = "" if text.startswith("<") else "= "
    return f"p {sign}{text}".replace(" ", "\N{NO-BREAK SPACE}")


def _nats(value: float | None) -> str:
    return f"{show(value, 'signed')}\N{NO-BREAK SPACE}nats"


def _ci(interval: Interval | None) -> str:
    return f"95 % CI {show(interval, 'interval')}".replace(" ", "\N{NO-BREAK SPACE}")


def _ends(interval: Interval | None) -> Interval:
    """Return an interval's ends; both are 0, from which nothing follows, where it has no width."""
    return (0.0, 0.0) if interval is None or interval[0] == interval[1] else interval


def decisive_p(focus: Focus, entry: Comparison) -> tuple[float, str]:
    """Return the p that decides, and its name: corrected where several adapters were looked at."""
    selection = focus.selection
    if selection is None:
        return entry.wilcoxon.p, f"signed-rank test, {entry.wilcoxon.method}"
    n = selection.n_adapters
    return selection.p_corrected[selection.chosen], f"corrected for looking at {n} adapters, max-T"


def _sensitivity(focus: Focus, entry: Comparison) -> Finding:
    p, name = decisive_p(focus, entry)
    ddi, plain = entry.delta_i_nats, entry.wilcoxon.p
    text = (
        f"{focus.highlighted}: ddI = {_nats(ddi.change)} per item, {_ci(ddi.ci95)}, "
        f"n = {entry.n:,}; {_p(p)} ({name})."
    )
    if p > ALPHA >= plain:
        text += (
            f" Alone, this adapter would have {_p(plain)}; but it was picked because its p is the "
            f"smallest, and the correction pays for that."
        )
    detectable = focus.summary.base[focus.primary or ""].power.detectable_d_z_at_80
    mark: Mark = "shown" if p <= ALPHA else "not shown"
    if entry.n > 1 and not entry.sd_ddi_nats:
        text += f" {NO_SPREAD}, so its interval has no width and decides nothing."
    if mark == "not shown" and _ends(ddi.ci95)[1] < 0:
        mark = "against"
        text += " The interval lies below 0: the model became less sensitive."
    elif mark == "not shown" and detectable is not None:
        text += (
            f" With {entry.n:,} items a test of one adapter finds only effects of d_z ≥ "
            f"{detectable:.2f} four times in five, so a smaller one may have been missed."
        )
    question = f"Did the model become more sensitive to quality in {focus.primary} items?"
    return Finding(question, mark, text)


def _selectivity(focus: Focus) -> Finding | None:
    if focus.control is None:
        return None
    question = f"Does it change more for {focus.primary} than for {focus.control} items?"
    test = focus.interaction
    if test is None:
        return Finding(question, "n/a", "Too few items to test the difference of the two groups.")
    if test.welch.p_two_sided is None:
        return Finding(question, "n/a", f"{NO_SPREAD} in either group: no test can be made.")
    welch = test.welch
    p = max(test.welch.p_two_sided, test.p_permutation)
    text = (
        f"Difference {_nats(welch.difference)}, {_ci(welch.ci95)}; "
        f"two-sided {_p(welch.p_two_sided)} (Welch), {_p(test.p_permutation)} (permutation)"
    )
    n = len(focus.summary.interaction)
    if n > 1:
        p = test.p_corrected
        text += f", {_p(p)} corrected for looking at {n} adapters (max-T)"
    text += "."
    if p > ALPHA:
        text += " One group changing measurably and the other not would not answer this."
        return Finding(question, "not shown", text)
    return Finding(question, "shown" if welch.difference > 0 else "against", text)


def _absence(focus: Focus) -> Finding | None:
    if focus.control is None:
        return None
    entry = focus.of(focus.control)
    question = f"Is any change in {focus.control} items smaller than a small effect?"
    if entry is None or entry.n < 2:
        return Finding(question, "n/a", "Too few items to test for the absence of a change.")
    ddi, test, margin = entry.delta_i_nats, entry.equivalence, entry.equivalence.margin_nats
    if margin is None:
        return Finding(
            question, "n/a", "dI of the base is the same in all items: --margin is needed."
        )
    if test.p is None:
        return Finding(question, "n/a", f"{NO_SPREAD}: no test can be made.")
    text = (
        f"ddI = {_nats(ddi.change)}, {_ci(ddi.ci95)}; "
        f"within ±{margin:.2f} nats (small: {test.margin_rule}): "
        f"{_p(test.p)} (TOST). The smallest margin that would do is "
        f"±{show(test.smallest_margin_nats, 'number')} nats."
    )
    low, high = _ends(ddi.ci95)
    moved = low > 0 or high < 0
    if test.p <= ALPHA:
        small = " The interval excludes 0: there is a change, smaller than the margin."
        return Finding(question, "shown", text + small * moved)
    if moved:
        large = max(low, -high) > margin
        text += " The interval excludes 0: they did change" + (
            ", by more than that." if large else "; that it is by less than that is not shown."
        )
        return Finding(question, "against" if large else "not shown", text)
    return Finding(
        question, "not shown", text + " No significant change is not the same as no change."
    )


def _part(focus: Focus, entry: Comparison) -> Finding:
    text = (
        f"ddI = d_cond − d_prior = {show(entry.mean_d_cond_nats, 'signed')} − "
        f"({show(entry.mean_d_prior_nats, 'signed')}) nats; {_ci(entry.ci95_d_cond_nats)} and "
        f"{show(entry.ci95_d_prior_nats, 'interval')}."
    )
    low_cond, high_cond = _ends(entry.ci95_d_cond_nats)
    _, high_prior = _ends(entry.ci95_d_prior_nats)
    mark: Mark = "shown" if low_cond > 0 else "not shown"
    selection = focus.selection
    if selection is not None:
        p, n = selection.p_corrected_d_cond[selection.chosen], selection.n_adapters
        text += f" d_cond > 0: {_p(p)}, corrected for looking at {n} adapters (max-T)."
        if p > ALPHA:
            mark = "not shown"
    if high_cond < 0:
        mark = "against"
        text += " After its context the right option lost on the wrong ones."
    elif mark == "shown":
        text += " After its context the right option gained on the wrong ones."
    elif low_cond > 0:
        text += " The interval alone would say that it sharpened; the correction does not bear it."
    elif high_prior < 0:
        text += (
            " The change comes from the prior: without any context the right option lost on the "
            "wrong ones."
        )
    else:
        text += " Neither part can be told from 0."
    return Finding("Is it the conditional that sharpened, not the prior that fell?", mark, text)


def _entropy(entry: Comparison) -> Finding:
    given, null = entry.entropy_per_token.given_context, entry.entropy_per_token.null
    candidates = entry.candidates.given_context.entropy_nats
    text = (
        f"H(X|Y) {show(given.change, 'fine')} nats/token "
        f"{show(given.ci95, 'fine_interval')}, "
        f"H(X) {show(null.change, 'fine')} {show(null.ci95, 'fine_interval')}; over the "
        f"candidates H(X|Y) {show(candidates.change, 'fine')} nats/item "
        f"{show(candidates.ci95, 'fine_interval')}."
    )
    low, high = _ends(given.ci95)
    null_low, null_high = _ends(null.ci95)
    bound = STAYED * abs(given.change or 0.0)
    mark: Mark = "not shown"
    if low > 0:
        mark = "against"
        text += " The conditional entropy rose."
    elif high < 0 and -bound < null_low and null_high < bound:
        mark = "shown"
        text += " H(X) changed by less than half as much."
    elif high < 0 and null_low <= 0 <= null_high:
        text += " H(X|Y) fell; that H(X) did not, the interval leaves open."
    elif high < 0:
        mark = "against"
        text += " H(X|Y) fell, but H(X) changed as well."
    return Finding("Did H(X|Y) fall while H(X) stayed?", mark, text)


def _texts(focus: Focus) -> list[Finding]:
    """Say what became of true continuations, which the paper's Table 2 measures."""
    parts, moved = [], []
    for group, models in focus.summary.continuations.items():
        entry = models.get(focus.highlighted or "")
        if entry is not None and entry.per_token_nats.ci95 is not None:
            ci = show(entry.per_token_nats.ci95, "fine_interval")
            change = show(entry.per_token_nats.change, "fine")
            parts.append(f"{group} {change} {ci}, n = {entry.n}")
            moved.append(_ends(entry.per_token_nats.ci95))
    if not parts:
        return []
    mark: Mark = "not shown"
    if all(low > 0 for low, _ in moved):
        mark = "shown"
    elif any(high < 0 for _, high in moved):
        mark = "against"
    text = f"Change of log P in nats/token: {'; '.join(parts)}."
    return [Finding("Did true continuations become more probable?", mark, text)]


def _headline(focus: Focus, sensitivity: Finding, selectivity: Finding | None) -> str:
    adapter, group = focus.highlighted, focus.primary
    if sensitivity.mark == "against":
        return f"Under {adapter} the model became less sensitive to quality in {group} items."
    if sensitivity.mark == "not shown":
        return f"No change of sensitivity to quality in {group} items is shown."
    head = f"Under {adapter} the model is more sensitive to quality in {group} items"
    if selectivity is None:
        return f"{head}; without a control group nothing is said of others."
    if selectivity.mark == "shown":
        return f"{head}, and more so than in {focus.control} items."
    return f"{head}; that this is particular to them is not shown."


def _tiles(focus: Focus, entry: Comparison) -> list[Tile]:
    p, name = decisive_p(focus, entry)
    ddi, effect, test = entry.delta_i_nats, entry.effect, focus.interaction
    tiles = [
        Tile(f"ddI, {focus.primary}", _nats(ddi.change), _ci(ddi.ci95)),
        Tile("p, one-sided", show(p, "p"), name),
        Tile("d_z", show(effect.d_z, "signed"), _ci(effect.d_z_ci95)),
    ]
    if test is not None and focus.control is not None:
        p_text = f"two-sided {_p(test.welch.p_two_sided)}"
        name = f"{focus.primary} − {focus.control}"
        tiles.append(Tile(name, _nats(test.welch.difference), p_text))
    return tiles


def _evidence(focus: Focus) -> str:
    summary = focus.summary
    sizes = [f"{base.n:,} {group}" for group, base in summary.base.items()]
    texts = [f"{models['base'].n} {group}" for group, models in summary.continuations.items()]
    parts = [f"{', '.join(sizes)} items"] if sizes else []
    parts += [f"{', '.join(texts)} continuations"] if texts else []
    model = focus.source.meta["settings"].get("model", "the base model")
    trained = f"{_runs(focus)}, " if focus.source.adapters else ""
    return f"This is evidence about one base model ({model}), {trained}and these " + (
        f"{' and '.join(parts)}."
    )


def _runs(focus: Focus) -> str:
    """Say of how many training runs the adapters are, as far as that is known."""
    run, settings, n = focus.source.run, focus.source.meta["settings"], len(focus.source.adapters)
    if run is not None and "n_train" in run.facts:
        return f"one training run, trained on {run.facts['n_train']} samples"
    if n == 1 or run is not None or (settings.get("run") and not settings.get("adapter")):
        return "one training run"
    return f"{n} adapters, of one training run or of several"
