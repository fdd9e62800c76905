"""Where an analysis is not the one that was planned, or none was planned."""

from __future__ import annotations

from collections.abc import Iterator

from cqa.report.focus import Focus
from cqa.run_folder import epoch_of
from cqa.schema.plan import AnalysisPlan
from cqa.score_folder import META

AS_ANALYSED = ("primary", "control", "margin", "cutoff", "choose")
AS_SCORED = ("null_token", "boundary", "score_eos", "template", "choose_on")


def plan_caveats(focus: Focus) -> Iterator[str]:
    """Yield every departure from the plan, or that there is none; a margin after the fact too."""
    source = focus.source
    analysis = source.analysis
    if analysis is not None and analysis.margin not in (None, source.settings.margin):
        yield (
            f"The margin of {analysis.margin:g} nats was given to the report, after scoring: that "
            f"a change is within it is said after the fact."
        )
    if source.meta.plan is None:
        yield (
            "No plan was given (score --plan): that groups, margin, adapters and choice were fixed "
            "before the scores were seen is not on record."
        )
        return
    if not source.meta.planned_first:
        yield "The plan was given when scores were there already: it is one after the fact."
    plan = AnalysisPlan.from_json(source.meta.plan, f"{META}: plan")
    found = list(_departures(focus, plan))
    if found:
        yield f"Departures from the plan: {'; '.join(found)}."


def _departures(focus: Focus, plan: AnalysisPlan) -> Iterator[str]:
    settings, analysis = focus.source.meta.settings, focus.source.analysis
    used = {key: settings.get(key.replace("_", "-")) for key in (*AS_SCORED, *AS_ANALYSED)}
    if analysis is not None:
        used |= {key: getattr(analysis, key) for key in AS_ANALYSED}
    used |= {"primary": focus.primary, "control": focus.control}
    for key, value in used.items():
        planned = getattr(plan, key)
        if planned != value:
            yield f"{key.replace('_', '-')} {_shown(value)} instead of {_shown(planned)}"
    yield from _adapters(focus, plan)
    if plan.items_digest != focus.source.meta.given_digest:
        counts = ", ".join(f"{n} {group}" for group, n in plan.n_items.items())
        yield f"other items than planned ({counts})"
    if left_out := focus.source.meta.too_long:
        yield f"{len(left_out)} planned items left out as too long"
    if unscored := focus.source.meta.unscored:
        yield f"{len(unscored)} planned items that could not be scored"
    if n_rejected := focus.source.meta.n_rejected:
        yield f"{n_rejected} lines left out as no items"


def _adapters(focus: Focus, plan: AnalysisPlan) -> Iterator[str]:
    """Compare the adapters that are candidates with those of the plan."""
    made = focus.source.made
    names = [name for name in focus.source.adapters if not made[name].placebo]
    epochs = {name: epoch_of(name.rpartition("/")[2]) for name in names}
    planned, others = set(plan.epochs), set(plan.adapters)
    if more := [n for n in names if epochs[n] not in planned and n not in others]:
        yield f"adapters that were not planned: {', '.join(more)}"
    lacking = [f"epoch {e}" for e in sorted(planned - {*epochs.values()})]
    if lacking := lacking + sorted(others - {*names}):
        yield f"planned adapters that were not scored: {', '.join(lacking)}"


def _shown(value: object) -> str:
    return "none" if value is None else str(value)
