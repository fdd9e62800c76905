"""What a reader should be wary of, each with the number behind it."""

from __future__ import annotations

from collections.abc import Iterator

from scipy import stats

from cqa.data.overlap import N_WORDS
from cqa.report.design_caveats import design_caveats
from cqa.report.focus import Focus
from cqa.report.plan_caveats import plan_caveats
from cqa.report.robustness import contamination
from cqa.report.tables import show
from cqa.schema.rows import MANY_MERGES
from cqa.schema.summary import DatedCounts
from cqa.stats.tests import ALPHA, MEDIUM
from cqa.text import counted

# At equal nats per token, a tenth more tokens is a tenth of every sum: of the size of the effects.
UNEVEN = 1.1  # ratio of mean lengths
# A convention: below, one study in five of the same kind would be about another adapter.
STABLE = 0.8  # share of resamples of the sources that leave the choice as it is
MOST_OF_A_KIND = 12  # caveats, most of them one a group
NAMED = 3  # items that a caveat names


def caveats(focus: Focus) -> list[str]:
    """Return warnings in the order in which they matter."""
    checks = (
        _roles, plan_caveats, _choice, _few, _left_out, _unscored, _rejected, _lengths, _leaks,
        _clusters, _dates, _seen, design_caveats, _variants, _merges, _spaces, _scope,
    )  # fmt: skip
    return [text for check in checks for text in _first(list(check(focus)))]


def _first(texts: list[str]) -> list[str]:
    """Return the first caveats of a kind, and how many more there are."""
    if len(texts) <= MOST_OF_A_KIND:
        return texts
    more = len(texts) - MOST_OF_A_KIND
    return [
        *texts[:MOST_OF_A_KIND],
        f"{more} more caveats of the last kind are left out here; tables/ has the numbers.",
    ]


def _roles(focus: Focus) -> Iterator[str]:
    if text := focus.summary.roles.caveat:
        yield f"{text}."


def _choice(focus: Focus) -> Iterator[str]:
    choice, chosen = focus.selection, focus.highlighted
    if choice is None or chosen is None:
        return
    share = choice.chosen_when_drawn_anew.get(chosen, 0.0)
    fitted = choice.cross_fitted
    yield (
        f"{chosen} was chosen: {choice.rule}. With the sources drawn anew it is chosen in "
        f"{show(share, 'share')} of cases"
        + (
            f"; chosen on the other sources each time, the change is "
            f"{show(fitted.mean_ddi_nats, 'signed')} nats {show(fitted.ci95_nats, 'interval')} "
            f"(approximate)"
            if fitted
            else ""
        )
        + "."
    )
    if choice.paper_choice != chosen:
        yield (
            f"The paper's rule (smallest Wilcoxon p) would choose {choice.paper_choice} instead."
        )
    if share < STABLE:
        others = {a: s for a, s in choice.chosen_when_drawn_anew.items() if a != chosen}
        other = max(others, key=lambda name: others[name])
        yield (
            f"The choice is unstable: with the sources drawn anew it is {other} in "
            f"{show(others[other], 'share')} of cases."
        )


def _few(focus: Focus) -> Iterator[str]:
    for group, base in focus.summary.base.items():
        power = base.power
        if power.detectable_d_z_at_80 is None:
            yield f"{group}: {base.n} item is too few for any test."
        elif power.detectable_d_z_at_80 > MEDIUM:
            yield (
                f"{group}: few items. With n = {base.n} the test finds an effect of d_z = "
                f"{MEDIUM:g} in {show(power.at_d_z.medium, 'share')} of cases; d_z must be "
                f"{power.detectable_d_z_at_80:.2f} for 80 %."
            )


def _left_out(focus: Focus) -> Iterator[str]:
    groups: dict[str, list[str]] = {}
    for item_id, group in focus.source.meta.too_long.items():
        groups.setdefault(group, []).append(item_id)
    for group, ids in groups.items():
        first = ", ".join(ids[:NAMED]) + (", …" if len(ids) > NAMED else "")
        yield (
            f"{group}: {len(ids)} items are longer than the model's "
            f"{focus.source.meta.max_positions} positions and were left out ({first}; meta.json "
            f"names all). Results are of shorter texts only."
        )


def _unscored(focus: Focus) -> Iterator[str]:
    groups: dict[str, list[str]] = {}
    for item_id, why in focus.source.meta.unscored.items():
        groups.setdefault(why.group, []).append(item_id)
    for group, ids in groups.items():
        first = ", ".join(ids[:NAMED]) + (", …" if len(ids) > NAMED else "")
        reason = focus.source.meta.unscored[ids[0]].reason
        yield (
            f"{group}: incomplete. {counted(len(ids), 'item')} could not be scored and "
            f"{'is' if len(ids) == 1 else 'are'} in no number ({first}; meta.json names all with "
            f"their reasons). The first: {reason}."
        )


def _rejected(focus: Focus) -> Iterator[str]:
    if n := focus.source.meta.n_rejected:
        yield (
            f"{counted(n, 'line')} of the files could not be scored as an item and "
            f"{'was' if n == 1 else 'were'} left out (rejected.jsonl has all, with reasons)."
        )


def _lengths(focus: Focus) -> Iterator[str]:
    for group, base in focus.summary.base.items():
        length = base.lengths.n_tokens
        longer, shorter = length.n_right_longer, length.n_right_shorter
        ratio = length.mean_right / length.mean_wrong
        differ = longer + shorter
        one_sided = differ > 0 and stats.binomtest(longer, differ).pvalue < ALPHA
        if max(ratio, 1 / ratio) > UNEVEN or one_sided:
            yield (
                f"{group}: right options have {length.mean_right:.1f} tokens on average, wrong "
                f"ones {length.mean_wrong:.1f}; the right one is longer in {longer} items and "
                f"shorter in {shorter}. A sum over tokens depends on length: compare the readings "
                f"per token and per byte."
            )


def _leaks(focus: Focus) -> Iterator[str]:
    run = focus.source.run
    found = focus.source.leaked()
    if run is None:
        yield (
            f"Overlap of items and training texts is n/a: "
            f"{focus.source.run_missing or 'no training run was given'} (--run), or see cqa-fast "
            f"validate."
        )
    elif found is None:
        data, are = ", ".join(run.data.data), "is" if len(run.data.data) == 1 else "are"
        yield (
            f"Overlap of items and training texts is n/a: {data} {are} not available as trained on."
        )
    elif found:
        whole = sum(overlap.excerpt is None for overlap in found.values())
        first = ", ".join(
            f"{item} ({overlap.where}{f', “{overlap.excerpt}”' if overlap.excerpt else ''})"
            for item, overlap in list(found.items())[:NAMED]
        )
        rest = " …" if len(found) > NAMED else ""
        yield (
            f"{len(found)} {'items overlap' if len(found) > 1 else 'item overlaps'} with training "
            f"texts, {whole} by a whole text, the rest by a {N_WORDS}-gram of words: "
            f"{first}{rest}."
        )


def _clusters(focus: Focus) -> Iterator[str]:
    for group, base in focus.summary.base.items():
        if base.n_sources is None:
            yield f"{group}: no item names its source_id, so items are taken as independent."
        elif base.n_sources < (n_named := base.n - base.n_without_source):
            yield (
                f"{group}: {n_named:,} of {base.n:,} items come from {base.n_sources} named "
                f"sources. The deciding tests take sources as independent, the paper's take items."
            )


def _dates(focus: Focus) -> Iterator[str]:
    counts = focus.summary.n_by_date
    if isinstance(counts, DatedCounts):
        yield (
            f"Whether the base saw the texts in training is unknown: no --cutoff was given; "
            f"{counts.dated:,} of {counts.dated + counts.undated:,} items have a date "
            f"(published_at)."
        )
    elif sum(n > 0 for n in (counts.before, counts.after, counts.unknown)) > 1:
        yield (
            f"Mixed strata: {counts.before} items were published by {focus.summary.cutoff}, "
            f"{counts.after} after it, {counts.unknown} are of unknown date. Every result "
            f"outside the section on time pools them."
        )


def _seen(focus: Focus) -> Iterator[str]:
    """Name the items that the base may have been trained on, and the change without them."""
    checked = contamination(focus)
    if focus.summary.base and len(checked) < len(focus.summary.base):
        yield (
            "Min-K% of the base (was it trained on the items?) is n/a: not all rows hold tokens "
            "(score --tokens)."
        )
    for one in checked:
        if not one.out:
            continue
        ids = sorted(one.out, key=lambda i: -one.out[i].min_k)
        first = ", ".join(ids[:NAMED]) + (", …" if len(ids) > NAMED else "")
        text = (
            f"{one.group}: {len(ids)} of {one.n_items} items stand out by Min-K% of the base, as "
            f"if it had been trained on them ({first})."
        )
        if (rest := one.without) is not None:
            text += (
                f" Without them the change is {show(rest.estimate, 'signed')} nats "
                f"{show(rest.ci95, 'interval')}, p {show(rest.p, 'p')}: {rest.mark}."
            )
        yield text


def _variants(focus: Focus) -> Iterator[str]:
    entry = focus.comparison
    if entry is None:
        return
    p = entry.wilcoxon.p
    named = {
        "the second null context": entry.variants.null2,
        "the mean per token": entry.variants.per_token,
        "the mean per byte": entry.variants.per_byte,
    }
    other = [
        f"{name} {show(variant.p, 'p')}"
        for name, variant in named.items()
        if variant is not None and (variant.p <= ALPHA) != (p <= ALPHA)
    ]
    if other:
        yield (
            f"The reading of dI decides the paper's test: p = {show(p, 'p')} for the sum over "
            f"tokens, but with "
            f"{'; '.join(other)} (uncorrected)."
        )


def _merges(focus: Focus) -> Iterator[str]:
    for group, base in focus.summary.base.items():
        share = base.n_boundary_mismatch / base.n
        if share > MANY_MERGES:
            yield (
                f"{group}: in {show(share, 'share')} of the items an option would be tokenised "
                f"differently if encoded together with its context; score --boundary joint shows "
                f"whether that matters."
            )


def _spaces(focus: Focus) -> Iterator[str]:
    meta, n = focus.source.meta, focus.source.n_items
    if spaced := meta.n_contexts_ending_in_space:
        yield (
            f"The context ends in a space in {spaced:,} of {n:,} items: their options begin as no "
            f"text does, since tokenizers have the space at the start of a word."
        )
    if lacking := meta.n_options_lacking_space:
        yield (
            f"An option meets its context without a space in {lacking:,} of {n:,} items, and was "
            f"scored as the end of the word before: nothing is inserted."
        )


def _scope(focus: Focus) -> Iterator[str]:
    run = focus.source.run
    if run is not None:
        trained, scored = set(run.loss_nats), set(run.scored.values())
        if trained - scored:
            yield (
                f"{len(trained & scored)} of {len(trained)} trained epochs were scored; the tests "
                f"pay for these only."
            )
    for group, family in focus.summary.families.items():
        for adapter, n in family.incomplete.items():
            yield (
                f"{group}: {adapter} has scores for {n} of {family.n_items} items only and is left "
                f"out of the deciding tests."
            )
    for other in focus.source.not_in_family:
        yield (
            f"{other.adapter} was scored on these items with another "
            f"{', '.join(other.differs_in)} and is not among the adapters that the tests pay for."
        )
