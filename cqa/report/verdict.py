"""The verdict: what the numbers show, for whom they are evidence, and what they do not show.

Words follow from tests that were fixed in advance; nothing here looks at a number twice.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from cqa.report.focus import View
from cqa.report.tables import show

Row = dict[str, Any]
Mark = Literal["shown", "not shown", "against", "n/a"]
ALPHA = 0.05


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


def make_verdict(view: View) -> Verdict:
    """Return the verdict on the shown adapter, the paper's questions in their order."""
    entry = view.entry
    if entry is None or not entry["n"]:
        return Verdict(_nothing_to_compare(view), _texts(view), [], _evidence(view), NOT_SHOWN)
    findings = [_sensitivity(view, entry)]
    findings += [f for f in (_selectivity(view), _absence(view), _part(view, entry)) if f]
    findings += [_entropy(view, entry), *_texts(view)]
    return Verdict(
        _headline(view, findings[0], findings), findings, _tiles(view, entry), _evidence(view),
        NOT_SHOWN,
    )  # fmt: skip


NOT_SHOWN = [
    "that texts the model writes are better: no text was generated and no reader was asked",
    "that the change comes from what the samples teach: other samples of the same size and style "
    "were not trained on for comparison",
    "that it holds for another base model, other items or another training seed",
]


def _nothing_to_compare(view: View) -> str:
    if not view.source.adapters:
        return "Only the base model was scored, so there is no change to judge."
    if view.primary is not None:
        return f"No paired item was scored under {view.shown}, so there is no change to judge."
    return "No paired items were scored, so sensitivity to quality was not measured."


def _p(value: float | None) -> str:
    text = show(value, "p")
    sign = "" if text.startswith("<") else "= "
    return f"p {sign}{text}".replace(" ", "\N{NO-BREAK SPACE}")


def _nats(value: float | None) -> str:
    return f"{show(value, 'signed')}\N{NO-BREAK SPACE}nats"


def _ci(interval: list[float] | None) -> str:
    return f"95 % CI {show(interval, 'interval')}".replace(" ", "\N{NO-BREAK SPACE}")


def decisive_p(view: View) -> tuple[float, str]:
    """Return the p that decides, and its name: corrected where several adapters were looked at."""
    entry = view.entry
    assert entry is not None
    selection = view.summary["selection"].get(view.primary)
    if selection is None:
        return entry["wilcoxon"]["p"], f"signed-rank test, {entry['wilcoxon']['method']}"
    n = len(selection["p_corrected"])
    return selection["p_corrected"][view.shown], f"corrected for looking at {n} adapters, max-T"


def _sensitivity(view: View, entry: Row) -> Finding:
    p, name = decisive_p(view)
    text = (
        f"{view.shown}: ddI = {_nats(entry['mean_ddi_nats'])} per item, {_ci(entry['ci95_nats'])}, "
        f"n = {entry['n']:,}; {_p(p)} ({name})."
    )
    plain = entry["wilcoxon"]["p"]
    if p > ALPHA >= plain:
        text += (
            f" Alone, this adapter would have {_p(plain)}; but it was picked because its p is the "
            f"smallest, and the correction pays for that."
        )
    detectable = view.summary["base"][view.primary]["power"]["detectable_d_z_at_80"]
    mark: Mark = "shown" if p <= ALPHA else "not shown"
    if mark == "not shown" and (entry["ci95_nats"] or [0])[-1] < 0:
        mark = "against"
        text += " The interval lies below 0: the model became less sensitive."
    elif mark == "not shown" and detectable is not None:
        text += (
            f" With {entry['n']:,} items a test of one adapter finds only effects of d_z ≥ "
            f"{detectable:.2f} four times in five, so a smaller one may have been missed."
        )
    question = f"Did the model become more sensitive to quality in {view.primary} items?"
    return Finding(question, mark, text)


def _selectivity(view: View) -> Finding | None:
    if view.control is None:
        return None
    question = f"Does it change more for {view.primary} than for {view.control} items?"
    test = view.summary["interaction"].get(view.shown)
    if test is None or test["p_two_sided"] is None:
        return Finding(question, "n/a", "Too few items to test the difference of the two groups.")
    p = max(test["p_two_sided"], test["p_permutation"])
    text = (
        f"Difference {_nats(test['difference'])}, {_ci(test['ci95'])}; "
        f"two-sided {_p(test['p_two_sided'])} (Welch), {_p(test['p_permutation'])} (permutation)"
    )
    n = len(view.summary["interaction"])
    if n > 1:
        p = test["p_corrected"]
        text += f", {_p(p)} corrected for looking at {n} adapters (max-T)"
    text += "."
    if p > ALPHA:
        text += " One group changing measurably and the other not would not answer this."
        return Finding(question, "not shown", text)
    return Finding(question, "shown" if test["difference"] > 0 else "against", text)


def _absence(view: View) -> Finding | None:
    if view.control is None:
        return None
    entry = view.summary["groups"][view.control].get(view.shown)
    question = f"Is any change in {view.control} items smaller than a small effect?"
    if entry is None or entry["equivalence"]["p"] is None:
        return Finding(question, "n/a", "Too few items to test for the absence of a change.")
    test = entry["equivalence"]
    text = (
        f"ddI = {_nats(entry['mean_ddi_nats'])}, {_ci(entry['ci95_nats'])}; "
        f"within ±{test['margin_nats']:.2f} nats (small: {test['margin_rule']}): "
        f"{_p(test['p'])} (TOST). The smallest margin that would do is "
        f"±{test['smallest_margin_nats']:.2f} nats."
    )
    low, high = entry["ci95_nats"]
    moved = low > 0 or high < 0
    if test["p"] <= ALPHA:
        small = " The interval excludes 0: there is a change, smaller than the margin."
        return Finding(question, "shown", text + small * moved)
    if moved:
        large = max(low, -high) > test["margin_nats"]
        text += " The interval excludes 0: they did change" + (
            ", by more than that." if large else "; that it is by less than that is not shown."
        )
        return Finding(question, "against" if large else "not shown", text)
    return Finding(
        question, "not shown", text + " No significant change is not the same as no change."
    )


def _part(view: View, entry: Row) -> Finding:
    cond, prior = entry["mean_d_cond_nats"], entry["mean_d_prior_nats"]
    text = (
        f"ddI = d_cond − d_prior = {show(cond, 'signed')} − ({show(prior, 'signed')}) nats; "
        f"{_ci(entry['ci95_d_cond_nats'])} and "
        f"{show(entry['ci95_d_prior_nats'], 'interval')}."
    )
    low_cond = (entry["ci95_d_cond_nats"] or [0, 0])[0]
    high_prior = (entry["ci95_d_prior_nats"] or [0, 0])[1]
    selection = view.summary["selection"].get(view.primary)
    p = selection["p_corrected_d_cond"][view.shown] if selection else None
    mark: Mark = "shown" if low_cond > 0 and (p is None or p <= ALPHA) else "not shown"
    if p is not None:
        n = len(selection["p_corrected_d_cond"])
        text += f" d_cond > 0: {_p(p)}, corrected for looking at {n} adapters (max-T)."
    if low_cond <= 0 and (entry["ci95_d_cond_nats"] or [0, 0])[1] < 0:
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


def _entropy(view: View, entry: Row) -> Finding:
    given, null = entry["entropy_per_token"]["given_context"], entry["entropy_per_token"]["null"]
    candidates = entry["candidates"]["given_context"]["entropy_nats"]
    text = (
        f"H(X|Y) {show(given['change'], 'fine')} nats/token "
        f"{show(given['ci95'], 'fine_interval')}, "
        f"H(X) {show(null['change'], 'fine')} {show(null['ci95'], 'fine_interval')}; over the "
        f"candidates H(X|Y) {show(candidates['change'], 'fine')} nats/item "
        f"{show(candidates['ci95'], 'fine_interval')}."
    )
    low, high = given["ci95"] or (0, 0)
    null_low, null_high = null["ci95"] or (0, 0)
    half = abs(given["change"]) / 2
    mark: Mark = "not shown"
    if low > 0:
        mark = "against"
        text += " The conditional entropy rose."
    elif high < 0 and -half < null_low and null_high < half:
        mark = "shown"
        text += " H(X) changed by less than half as much."
    elif high < 0 and null_low <= 0 <= null_high:
        text += " H(X|Y) fell; that H(X) did not, the interval leaves open."
    elif high < 0:
        mark = "against"
        text += " H(X|Y) fell, but H(X) changed as well."
    return Finding("Did H(X|Y) fall while H(X) stayed?", mark, text)


def _texts(view: View) -> list[Finding]:
    """Say what became of true continuations, which the paper's Table 2 measures."""
    parts, moved = [], []
    for group, models in view.summary["continuations"].items():
        entry = models.get(view.shown or "")
        if entry and entry["ci95_nats"]:
            ci = show(entry["ci95_nats"], "fine_interval")
            change = show(entry["mean_dlogp_per_token_nats"], "fine")
            parts.append(f"{group} {change} {ci}, n = {entry['n']}")
            moved.append(entry["ci95_nats"])
    if not parts:
        return []
    mark: Mark = "not shown"
    if all(low > 0 for low, _ in moved):
        mark = "shown"
    elif any(high < 0 for _, high in moved):
        mark = "against"
    text = f"Change of log P in nats/token: {'; '.join(parts)}."
    return [Finding("Did true continuations become more probable?", mark, text)]


def _headline(view: View, first: Finding, findings: list[Finding]) -> str:
    group = view.primary
    if first.mark == "against":
        return f"Under {view.shown} the model became less sensitive to quality in {group} items."
    if first.mark == "not shown":
        return f"No change of sensitivity to quality in {group} items is shown."
    head = f"Under {view.shown} the model is more sensitive to quality in {group} items"
    if view.control is None:
        return f"{head}; without a control group nothing is said of others."
    if findings[1].mark == "shown":
        return f"{head}, and more so than in {view.control} items."
    return f"{head}; that this is particular to them is not shown."


def _tiles(view: View, entry: Row) -> list[Tile]:
    p, name = decisive_p(view)
    tiles = [
        Tile(
            f"ddI, {view.primary}",
            _nats(entry["mean_ddi_nats"]),
            f"{_ci(entry['ci95_nats'])}",
        ),
        Tile("p, one-sided", show(p, "p"), name),
        Tile(
            "d_z",
            show(entry["d_z"], "signed"),
            f"{_ci(entry['d_z_ci95'])}",
        ),
    ]
    test = view.summary["interaction"].get(view.shown)
    if test is not None and view.control is not None:
        p_text = f"two-sided {_p(test['p_two_sided'])}"
        tiles.append(Tile(f"{view.primary} − {view.control}", _nats(test["difference"]), p_text))
    return tiles


def _evidence(view: View) -> str:
    sizes = [f"{base['n']:,} {group}" for group, base in view.summary["base"].items()]
    texts = [
        f"{models['base']['n']} {group}" for group, models in view.summary["continuations"].items()
    ]
    parts = [f"{', '.join(sizes)} items"] if sizes else []
    parts += [f"{', '.join(texts)} continuations"] if texts else []
    model = view.source.meta["settings"].get("model", "the base model")
    run = view.source.run
    trained = (
        f", trained on {run.facts['n_train']} samples" if run and "n_train" in run.facts else ""
    )
    return (
        f"This is evidence about one base model ({model}), "
        + (f"one training run{trained}, " if view.source.adapters else "")
        + f"and these {' and '.join(parts)}."
    )
