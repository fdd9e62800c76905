"""What a reader should be wary of in how a study was set up: groups, seeds, template, shrinkage."""

from __future__ import annotations

from collections.abc import Iterator

from cqa.report.focus import Focus
from cqa.report.tables import show
from cqa.schema.comparison import BaseGroup
from cqa.schema.provenance import trained_with_other_template
from cqa.text import counted

# A convention: sums over tokens grow with length, so from here on lengths alone may part groups.
OTHER_LENGTH = 1.5  # ratio of the groups' mean lengths
NAMED = 3  # adapters that a caveat names


def design_caveats(focus: Focus) -> Iterator[str]:
    """Yield warnings in the order in which they matter."""
    for check in (
        _shrinkage, _copies, _template, _started, _groups, _languages, _seeds, _engine,
    ):  # fmt: skip
        yield from check(focus)


def _shrinkage(focus: Focus) -> Iterator[str]:
    for group in (focus.primary, focus.control):
        entry = focus.of(group)
        found = entry.shrinkage if entry else None
        ddi = entry.delta_i_nats.change if entry else None
        if found is not None and found.explains and ddi is not None and ddi > 0:
            yield (
                f"{group}: shrinkage explains ddI above 0. Under {focus.highlighted} dI is "
                f"{show(found.slope, 'number')} {show(found.slope_ci95, 'interval')} times what it "
                f"was, and it was {show(found.mean_delta_i_base_nats, 'signed')} nats on average: "
                f"that alone gives {show(found.by_shrinkage_nats, 'signed')} of "
                f"{show(ddi, 'signed')} nats. The rest is {show(found.rest_nats, 'signed')} "
                f"{show(found.rest_ci95_nats, 'interval')}."
            )


def _engine(focus: Focus) -> Iterator[str]:
    base = focus.source.meta.models[0]
    if not base.batch_invariant:
        yield (
            f"Scored by {base.backend}, not by this package's decoder: another batch, machine or "
            f"release may change the last digits of a score."
        )


def _copies(focus: Focus) -> Iterator[str]:
    for group, n in focus.summary.n_copies.items():
        repeat = "item repeats" if n == 1 else "items repeat"
        yield f"{group}: {n} {repeat} the texts of another item; each text is counted once."


def _template(focus: Focus) -> Iterator[str]:
    """Compare the template that an adapter was trained with and the one it is scored with."""
    other = trained_with_other_template(focus.source.meta.models)
    if other:
        names = ", ".join(other[:NAMED]) + (", …" if len(other) > NAMED else "")
        yield (
            f"Trained with one template and scored with another: {names}. What changes is then "
            f"also how a model takes the other form; --template of train and score should agree."
        )


def _started(focus: Focus) -> Iterator[str]:
    """Name the adapters whose runs began with another one, which had been trained before."""
    names = {model.adapter_digest: model.adapter for model in focus.source.meta.models}
    started: dict[str, list[str]] = {}
    for name, made in focus.source.made.items():
        if made.started_from is not None:
            started.setdefault(made.started_from, []).append(name)
    for digest, adapters in started.items():
        before = names.get(digest) or f"the adapter {digest[:12]}"
        shown = ", ".join(adapters[:NAMED]) + (", …" if len(adapters) > NAMED else "")
        yield (
            f"Trained from {before} on, not from the base: {shown}. What that adapter was trained "
            f"on has a part in the change, and its texts are compared with no item here."
        )


def _groups(focus: Focus) -> Iterator[str]:
    """Say where the two groups differ in language or length, so that kind is not all they do."""
    names = (focus.primary or "", focus.control or "")
    primary, control = (focus.summary.base.get(name) for name in names)
    if primary is None or control is None:
        return
    lengths = [base.lengths.n_tokens.mean_right for base in (primary, control)]
    known = "unknown" not in {**primary.languages, **control.languages}
    apart = known and not set(primary.languages) & set(control.languages)
    longer = max(lengths) > OTHER_LENGTH * min(lengths)
    if apart or longer:
        what = " and ".join(
            word for word, differs in (("language", apart), ("length", longer)) if differs
        )
        yield (
            f"The groups differ in {what}: {names[0]} {_described(primary)}; {names[1]} "
            f"{_described(control)}. A difference of their changes may come from that."
        )


def _described(base: BaseGroup) -> str:
    return (
        f"{', '.join(base.languages)}, right options of "
        f"{base.lengths.n_tokens.mean_right:.1f} tokens, dI of the base "
        f"{show(base.mean_delta_i_nats, 'signed')} nats"
    )


def _languages(focus: Focus) -> Iterator[str]:
    for group, languages in focus.source.family.items.languages.items():
        if len(languages) > 1:
            counts = ", ".join(f"{n} {name}" for name, n in languages.most_common())
            yield f"{group}: items of several languages are pooled: {counts}."


def _seeds(focus: Focus) -> Iterator[str]:
    made = [m for m in focus.source.made.values() if m.recipe is not None and not m.placebo]
    seeds: dict[str | None, set[str | None]] = {}
    for one in made:
        seeds.setdefault(one.recipe, set()).add(one.seed)
    if seeds and all(len(held) == 1 for held in seeds.values()):
        yield (
            "Only one seed was trained: how much of the change is the luck of one run is unknown. "
            "Several --run of score that differ in --seed only give the mean over seeds."
        )
        return
    own = focus.source.made.get(focus.highlighted or "")
    if own is None or own.recipe is None or own.placebo:
        return
    n, n_trained = focus.n_seeds, len(seeds[own.recipe])
    if n < max(n_trained, 2):
        yield (
            f"{focus.highlighted}: of the {counted(n_trained, 'seed')} of its recipe {n} "
            f"{'has' if n == 1 else 'have'} all {focus.primary} items at its epoch"
            + ("; how much of its change is the luck of one run is unknown." if n == 1 else ".")
        )
