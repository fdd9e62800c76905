"""What a reader should be wary of, each with the number behind it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from scipy import stats

from cqa.data.overlap import N_WORDS
from cqa.report.focus import View
from cqa.report.source import epoch_of
from cqa.report.tables import show

UNEVEN = 1.1  # ratio of mean lengths
MANY_MERGES = 0.05
STABLE = 0.9


def cautions(view: View) -> list[str]:
    """Return warnings in the order in which they matter."""
    checks = (
        _choice, _few, _left_out, _lengths, _leaks, _clusters, _dates, _languages, _readings,
        _merges,
    )  # fmt: skip
    found = [text for check in checks for text in check(view)]
    return found + list(_scope(view))


def _choice(view: View) -> Iterator[str]:
    selection = view.summary["selection"].get(view.primary)
    if selection is None:
        return
    votes = selection["chosen_with_one_item_left_out"]
    kept, n = votes[view.shown], sum(votes.values())
    yield (
        f"{view.shown} was chosen on the items that it is then reported for ({selection['rule']}). "
        f"The p of every other adapter is exploratory too: read the max-T column."
    )
    if kept < STABLE * n:
        others = ", ".join(f"{a} {c}" for a, c in votes.items() if c and a != view.shown)
        yield (
            f"The choice is unstable: with one item left out it is {view.shown} in {kept} of {n} "
            f"cases (else {others})."
        )


def _few(view: View) -> Iterator[str]:
    for group, base in view.summary["base"].items():
        detectable = base["power"]["detectable_d_z_at_80"]
        if detectable is None:
            yield f"{group}: {base['n']} item is too few for any test."
        elif detectable > 0.5:
            yield (
                f"{group}: few items. With n = {base['n']} the test finds an effect of d_z = 0.5 "
                f"in {show(base['power']['at_d_z']['0.5'], 'share')} of cases; d_z must be "
                f"{detectable:.2f} for 80 %."
            )


def _left_out(view: View) -> Iterator[str]:
    groups: dict[str, list[str]] = {}
    for item_id, group in view.source.meta.get("too_long", {}).items():
        groups.setdefault(group, []).append(item_id)
    for group, ids in groups.items():
        first = ", ".join(ids[:3]) + (", …" if len(ids) > 3 else "")
        yield (
            f"{group}: {len(ids)} items are longer than the model's "
            f"{view.source.meta['max_positions']} positions and were left out ({first}; meta.json "
            f"names all). Results are of shorter texts only."
        )


def _lengths(view: View) -> Iterator[str]:
    for group, base in view.summary["base"].items():
        length = base["lengths"]["n_tokens"]
        longer, shorter = length["n_right_longer"], length["n_right_shorter"]
        ratio = length["mean_right"] / length["mean_wrong"]
        one_sided = longer + shorter > 0 and stats.binomtest(longer, longer + shorter).pvalue < 0.05
        if max(ratio, 1 / ratio) > UNEVEN or one_sided:
            yield (
                f"{group}: right options have {length['mean_right']:.1f} tokens on average, wrong "
                f"ones {length['mean_wrong']:.1f}; the right one is longer in {longer} items and "
                f"shorter in {shorter}. A sum over tokens depends on length: compare the readings "
                f"per token and per byte."
            )


def _leaks(view: View) -> Iterator[str]:
    run = view.source.run
    found = view.source.leaked()
    if run is None:
        yield (
            "Overlap of items and training texts is n/a: no training run was given (--run), or "
            "see cqa-fast validate."
        )
    elif found is None:
        data = run.settings.get("data", "n/a")
        yield f"Overlap of items and training texts is n/a: {data} is not at hand as trained on."
    elif found:
        whole = sum(overlap.excerpt is None for overlap in found.values())
        first = ", ".join(
            f"{item} ({overlap.where}{f', “{overlap.excerpt}”' if overlap.excerpt else ''})"
            for item, overlap in list(found.items())[:3]
        )
        rest = " …" if len(found) > 3 else ""
        yield (
            f"{len(found)} {'items overlap' if len(found) > 1 else 'item overlaps'} with training "
            f"texts, {whole} by a whole text, the rest by {N_WORDS} words in a row or more: "
            f"{first}{rest}."
        )


def _clusters(view: View) -> Iterator[str]:
    for group, base in view.summary["base"].items():
        entry = view.summary["groups"][group].get(view.shown or "")
        if base["n_sources"] is None:
            yield f"{group}: no item names its source_id, so items are taken as independent."
        elif base["n_sources"] < (n_named := base["n"] - base["n_without_source"]):
            by_source = entry["by_source"] if entry else None
            interval = show(by_source and by_source["bca95_nats"], "interval")
            yield (
                f"{group}: {n_named:,} of {base['n']:,} items come from {base['n_sources']} named "
                f"sources. Tests take items as independent; resampling whole sources gives a "
                f"95 % CI of {interval} nats."
            )


def _dates(view: View) -> Iterator[str]:
    counts, cutoff = view.summary["n_by_date"], view.summary["cutoff"]
    if cutoff is None:
        dated = counts["dated"]
        yield (
            f"Whether the base saw the texts in training is unknown: no --cutoff was given; "
            f"{dated:,} of {dated + counts['undated']:,} items have a date (published_at)."
        )
    elif len([n for n in counts.values() if n]) > 1:
        yield (
            f"Mixed strata: {counts['before']} items were published by {cutoff}, "
            f"{counts['after']} after it, {counts['unknown']} are of unknown date. Every result "
            f"outside the section on time pools them."
        )


def _languages(view: View) -> Iterator[str]:
    languages = Counter(item.lang or "unknown" for item in view.source.items.values())
    if len(languages) > 1:
        counts = ", ".join(f"{n} {name}" for name, n in languages.most_common())
        yield f"Items of several languages are pooled within a group: {counts}."


def _readings(view: View) -> Iterator[str]:
    entry = view.entry
    if entry is None:
        return
    p = entry["wilcoxon"]["p"]
    names = {"null2": "the second null context", "per_token": "the mean per token",
             "per_byte": "the mean per byte"}  # fmt: skip
    other = [
        f"{name} {show(reading['p'], 'p')}"
        for key, name in names.items()
        if ((reading := entry["readings"][key])["p"] <= 0.05) != (p <= 0.05)
    ]
    if other:
        yield (
            f"The reading of dI decides: p = {show(p, 'p')} for the sum over tokens, but with "
            f"{'; '.join(other)} (uncorrected)."
        )


def _merges(view: View) -> Iterator[str]:
    for group, base in view.summary["base"].items():
        share = base["n_boundary_merge"] / base["n"]
        if share > MANY_MERGES:
            yield (
                f"{group}: in {show(share, 'share')} of the items an option would be tokenised "
                f"differently if encoded together with its context; score --boundary joint shows "
                f"whether that matters."
            )


def _scope(view: View) -> Iterator[str]:
    run = view.source.run
    scored = {epoch for a in view.source.adapters if (epoch := epoch_of(a)) is not None}
    if run is not None and scored:
        trained = set(run.loss_nats)
        if trained - scored:
            yield (
                f"{len(trained & scored)} of {len(trained)} trained epochs were scored; max-T pays "
                f"for these only."
            )
    for group, models in view.summary["groups"].items():
        n = view.summary["base"][group]["n"]
        for adapter, entry in models.items():
            if entry["n"] < n:
                yield f"{group}: {adapter} has scores for {entry['n']} of {n} items only."
