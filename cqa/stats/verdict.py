"""From the scores of items to the verdict: families, the choice of an adapter, the findings."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from cqa.schema.provenance import Provenance
from cqa.schema.rows import CHOOSERS
from cqa.schema.summary import Roles
from cqa.schema.verdict import (
    Choice,
    CrossFitted,
    FamilyChange,
    Finding,
    GroupDifference,
    GroupFamily,
    Interaction,
    SeedEffect,
    Verdict,
)
from cqa.stats import findings
from cqa.stats.choice import choose, cross_fit, paper_choice, stability
from cqa.stats.clusters import Values, by_source
from cqa.stats.columns import Facts, ItemScores
from cqa.stats.config import AnalysisConfig
from cqa.stats.continuations import TextScore
from cqa.stats.deciding import Change, Family, difference_test, family_test
from cqa.stats.findings import Changes, Moved, only
from cqa.stats.items import OF_PMI
from cqa.stats.marks import two_sided, two_sided_alone
from cqa.stats.seeds import seed_effects
from cqa.stats.tests import welch

PER_TOKEN = OF_PMI.index("per_token")
EPOCH = re.compile(r"epoch-(\d+)$")
ByModel = Mapping[str | None, ItemScores]
TextsByModel = Mapping[str | None, Mapping[str, TextScore]]


@dataclass(frozen=True, slots=True)
class Judgement:
    """Everything that the deciding tests say."""

    verdict: Verdict
    highlighted: str | None  # the adapter that the verdict is about
    families: dict[str, GroupFamily]
    choices: dict[str, Choice]
    interactions: dict[str, Interaction]
    seeds: dict[str, tuple[SeedEffect, ...]]
    candidates: tuple[str, ...]  # the adapters that the tests are of and pay for


def judge(
    items: Mapping[str, ByModel],
    texts: Mapping[str, TextsByModel],
    facts: Facts,
    roles: Roles,
    config: AnalysisConfig,
    made: Mapping[str, Provenance] | None = None,
    choosers: ByModel | None = None,
) -> Judgement:
    """Judge the scores of groups of pairs and continuations.

    Args:
        items: Scores of pairs and options by group, model (None is the base) and id.
        texts: Scores of continuations in the same way.
        facts: What is known of each item.
        roles: Which group the question is about, and which one it is compared with.
        config: A margin that was fixed beforehand, and how an adapter is chosen.
        made: What the adapters say of their training; placebos are never candidates.
        choosers: Scores of the items that choose the adapter; it is then the only candidate.
    """
    made = made or {}
    placebos = frozenset(name for name, known in made.items() if known.placebo)
    known = {group: changes_of(group, models, facts) for group, models in items.items()}
    elsewhere = _chosen_elsewhere(choosers, facts, placebos) if choosers else None
    changes = {
        group: _candidates(one, placebos, elsewhere) if one else None
        for group, one in known.items()
    }
    primary, control = (changes.get(name or "") for name in (roles.primary, roles.control))
    families = {
        group: _family(found, items[group], placebos) for group, found in changes.items() if found
    }
    choices = {
        group: found
        for group, one in changes.items()
        if one and (found := _choice(one, config, elsewhere, items[group], made))
    }
    adapters = [a for models in (*items.values(), *texts.values()) for a in models if a is not None]
    candidates = tuple(name for name in dict.fromkeys(adapters) if name not in placebos)
    chosen = choices[roles.primary].chosen if roles.primary in choices else None
    judged = tuple(primary.ddi) if primary is not None else candidates
    highlighted = chosen or (last_trained(judged, made) if judged else None)
    if elsewhere is not None:
        candidates = (elsewhere.chosen,)
    asked: list[Finding] = []
    limits: list[str] = []
    if primary is not None and highlighted is not None and highlighted in primary.ddi:
        asked = _findings(primary, control, highlighted, config)
        limits = findings.limits(primary, highlighted)
        asked += _placebo(known[primary.group], primary, highlighted, made)
    if highlighted is not None:
        asked += _of_texts(texts, highlighted, candidates)
    return Judgement(
        Verdict(_headline(asked, limits, roles, adapters, highlighted), tuple(asked)),
        highlighted,
        families,
        choices,
        _interactions(primary, control) if primary and control else {},
        {
            group: effects
            for group, one in known.items()
            if one and (effects := seed_effects(one.ddi, one.sources, made))
        },
        candidates,
    )


def changes_of(group: str, models: ByModel, facts: Facts) -> Changes | None:
    """Return how the items change under every adapter that scored all of them; None if none did."""
    base = models[None]
    complete = {a: m.only(base) for a, m in models.items() if a is not None and m.covers(base)}
    if not complete or not base:
        return None

    def one(adapted: ItemScores, name: str, k: int | None, *, less: bool) -> Callable[[], Values]:
        if not less:
            return lambda: adapted.column(name, k)
        return lambda: adapted.column(name, k) - base.column(name, k)

    def moved(name: str, k: int | None = None, *, less: bool = True) -> Moved:
        return Moved({a: one(m, name, k, less=less) for a, m in complete.items()})

    def known(*names: str) -> bool:
        columns = (m.column(name) for m in (base, *complete.values()) for name in names)
        return not any(np.isnan(values).any() for values in columns)

    has_entropy = known("entropy_given_nats", "entropy_null_nats")
    return Changes(
        group=group,
        sources=facts.labels("source_id", base.rows),
        ddi=moved("delta_i_nats"),
        ddi_null2=moved("delta_i_null2_nats") if known("delta_i_null2_nats") else None,
        ddi_per_token=moved("variants", PER_TOKEN),
        d_cond=moved("conditional_nats"),
        d_prior=moved("prior_nats"),
        entropy_given=moved("entropy_given_nats") if has_entropy else None,
        entropy_null=moved("entropy_null_nats") if has_entropy else None,
        delta_i=moved("delta_i_nats", less=False),
    )


def _candidates(
    changes: Changes, placebos: Collection[str], elsewhere: Choice | None
) -> Changes | None:
    """Return the changes under the adapters that the tests are of and pay for."""
    names = [name for name in changes.ddi if name not in placebos]
    if elsewhere is not None:
        names = [name for name in names if name == elsewhere.chosen]
    return changes.only(names) if names else None


def _family(changes: Changes, models: ByModel, placebos: Collection[str]) -> GroupFamily:
    family, n_items = changes.ddi_family, len(models[None])
    return GroupFamily(
        n_items=family.n_items,
        n_sources=family.n_sources,
        method=family.method,
        changes={
            name: FamilyChange(c.mean, c.ci95, c.p_greater, c.p_greater_corrected)
            for name, c in family.changes.items()
        },
        controls=tuple(name for name in models if name is not None and name in placebos),
        incomplete={a: len(m) for a, m in models.items() if a is not None and len(m) < n_items},
    )


def _chosen_elsewhere(choosers: ByModel, facts: Facts, placebos: Collection[str]) -> Choice | None:
    """Choose an adapter on items that nothing else is said of; None where none scored them all."""
    found = changes_of(CHOOSERS, choosers, facts)
    changes = _candidates(found, placebos, None) if found else None
    if changes is None:
        return None
    clusters = changes.clusters(changes.ddi)
    n = f"{clusters.n_items} items of {clusters.n_sources} sources"
    return Choice(
        chosen=choose(clusters),
        rule=f"largest studentised mean ddI on the {n} of --choose-on, which are not reported",
        n_adapters=len(clusters.names),
        chosen_when_drawn_anew=stability(clusters),
        cross_fitted=None,
        paper_choice=paper_choice(changes.ddi),
    )


def last_trained(names: Sequence[str], made: Mapping[str, Provenance]) -> str:
    """Return the adapter of the largest epoch, whatever the order in which they were scored.

    Where not every adapter names its epoch the last in the order of scoring is taken; so it is of
    several runs' last epochs.
    """
    epochs = [known if (known := _made(made, n).epoch) is not None else _epoch(n) for n in names]
    known_epochs = [epoch for epoch in epochs if epoch is not None]
    if len(known_epochs) < len(names):
        return names[-1]
    return [n for n, epoch in zip(names, epochs, strict=True) if epoch == max(known_epochs)][-1]


def _choice(
    changes: Changes,
    config: AnalysisConfig,
    elsewhere: Choice | None,
    models: ByModel,
    made: Mapping[str, Provenance],
) -> Choice | None:
    """Return which of several adapters the verdict is about; None where there is no choice."""
    if elsewhere is not None:
        return elsewhere
    ddi = changes.ddi
    if len(ddi) < 2:
        return None
    clusters = changes.clusters(ddi)
    if config.choose == "last":
        chosen = last_trained(tuple(ddi), made)
        scored = [n for n in models if n is not None and not _made(made, n).placebo]
        rule, last = "the last one", last_trained(scored, made)
        if last != chosen:
            rule = f"the last one that has all items, since {last} has not"
    else:
        chosen, rule = choose(clusters), "largest studentised mean ddI on these very items"
    return Choice(
        chosen=chosen,
        rule=rule,
        n_adapters=len(ddi),
        chosen_when_drawn_anew=stability(clusters),
        cross_fitted=_cross_fitted(ddi, changes.sources),
        paper_choice=paper_choice(ddi),
    )


def _cross_fitted(ddi: Mapping[str, Values], sources: Sequence[str | None]) -> CrossFitted | None:
    found = cross_fit(ddi, sources)
    if found is None:
        return None
    test = family_test(by_source({"chosen": found.values}, sources)).changes["chosen"]
    return CrossFitted(test.mean, test.ci95, test.p_greater, found.n_folds, found.n_chosen)


def _findings(
    primary: Changes, control: Changes | None, adapter: str, config: AnalysisConfig
) -> list[Finding]:
    found = [findings.change(primary, adapter)]
    if control is not None and adapter in control.ddi:
        found.append(findings.selective(primary, control, adapter))
    found.append(findings.conditional(primary, adapter))
    if control is not None and adapter in control.ddi:
        found.append(findings.control_small(control, adapter, config.margin))
    found.append(findings.entropy(primary, adapter))
    return found


def _placebo(
    known: Changes | None,
    primary: Changes,
    adapter: str,
    made: Mapping[str, Provenance],
) -> list[Finding]:
    """Compare each candidate with the placebo that is most like it, item by item."""
    held = [name for name in known.ddi if _made(made, name).placebo] if known else []
    if known is None or not held:
        return []
    pairs = {name: _placebo_of(name, held, made) for name in primary.ddi}

    def less_of(name: str, placebo: str) -> Callable[[], Values]:
        return lambda: primary.ddi[name] - known.ddi[placebo]

    less = Moved({name: less_of(name, placebo) for name, placebo in pairs.items()})
    own, other = pairs[adapter], _made(made, adapter).data
    unlike = [] if _epoch(own) == _epoch(adapter) else ["length of training"]
    if None not in (other, data := _made(made, own).data) and other != data:
        unlike.append("samples")
    return [findings.placebo(primary, less, adapter, own, unlike)]


def _placebo_of(name: str, held: Sequence[str], made: Mapping[str, Provenance]) -> str:
    """Return the placebo of the same epoch and samples, and if there are several of the seed."""
    own = _made(made, name)

    def likeness(placebo: str) -> tuple[bool, bool, bool]:
        its = _made(made, placebo)
        return _epoch(placebo) == _epoch(name), its.data == own.data, its.seed == own.seed

    return max(reversed(held), key=likeness)  # of equals the last


def _made(made: Mapping[str, Provenance], name: str) -> Provenance:
    return made.get(name, Provenance())


def _epoch(adapter: str) -> int | None:
    match = EPOCH.search(adapter)
    return int(match[1]) if match else None


def _of_texts(
    texts: Mapping[str, TextsByModel], adapter: str, paid_for: Collection[str]
) -> list[Finding]:
    """Ask of every group of true continuations whether they became more probable."""
    found = []
    for group, models in texts.items():
        base = models[None]
        complete = {a: models[a] for a in paid_for if models.get(a, {}).keys() >= base.keys()}
        if adapter not in complete or not base:
            continue
        before = np.array([score.logp_nats / score.n_tokens for score in base.values()])
        values = {
            a: np.array([m[i].logp_nats / m[i].n_tokens for i in base]) - before
            for a, m in complete.items()
        }
        sources = [score.source_id for score in base.values()]
        found.append(findings.continuations(group, values, sources, adapter))
    return found


def _interactions(primary: Changes, control: Changes) -> dict[str, Interaction]:
    shared = [name for name in primary.ddi if name in control.ddi]
    if not shared:
        return {}
    units = [
        difference_test(
            primary.clusters(only(a, shared)),
            control.clusters(only(b, shared)),
        )
        for a, b in (
            (primary.ddi, control.ddi), (primary.ddi_per_token, control.ddi_per_token)
        )
    ]  # fmt: skip
    return {
        name: Interaction(
            _difference(units[0], name),
            _difference(units[1], name),
            welch(primary.ddi[name], control.ddi[name]),
        )
        for name in shared
    }


def _difference(family: Family, name: str) -> GroupDifference:
    found: Change = family.changes[name]
    return GroupDifference(
        found.mean,
        found.ci95,
        two_sided_alone(found),
        two_sided(found),
    )


def _headline(
    found: Sequence[Finding],
    limits: Sequence[str],
    roles: Roles,
    adapters: Sequence[str],
    highlighted: str | None,
) -> str:
    """Return one sentence that no finding contradicts."""
    if not adapters:
        return "Only the base model was scored, so there is no change to judge."
    if roles.primary is None:
        return "No paired items were scored, so sensitivity to quality was not measured."
    by_name = {finding.name: finding for finding in found}
    if "change" not in by_name:
        return f"No adapter was scored on all {roles.primary} items, so there is nothing to judge."
    mark = by_name["change"].mark
    if mark == "against":
        return (
            f"Under {highlighted} the model became less sensitive to quality in {roles.primary} "
            f"items."
        )
    if mark != "shown":
        return f"No change of sensitivity to quality in {roles.primary} items is shown."
    head = f"Under {highlighted} the model is more sensitive to quality in {roles.primary} items"
    if limits:
        head += f" ({'; '.join(limits)})"
    placebo = by_name.get("placebo")
    if placebo is not None and placebo.mark != "shown":
        return f"{head}, but not shown to be more so than after training on dealt responses."
    if "selective" not in by_name:
        return f"{head}; without a control group nothing is said of others."
    if by_name["selective"].mark == "shown":
        return f"{head}, and more so than in {roles.control} items."
    return f"{head}; that this is particular to them is not shown."
