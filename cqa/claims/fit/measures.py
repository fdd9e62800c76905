"""What the rows of works come to: effects beside their nulls, and each audience's place."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np

from cqa.claims.claim import RowsByModel
from cqa.claims.effects import Measured, change_of, effects
from cqa.claims.fit.residual import (
    Dealings,
    Share,
    audience_means,
    centred,
    dealings,
    rank_intervals,
    ranks,
    tested_shares,
)
from cqa.schema.claims import Effect, Part, StudyResult, StudyRow
from cqa.schema.record import Record
from cqa.stats.clusters import Values
from cqa.text import counted

UNITS = (("", "nats/byte"), ("_sum", "nats"))  # ends of names; the first decides


@dataclass(frozen=True, slots=True, kw_only=True)
class FitRow(StudyRow):
    """One work under one model, after each wording of each audience."""

    logp_nats: float  # S(x | context); of a work without one after the null token
    information_nats: dict[str, tuple[float, ...]]  # I(x; y_a) by audience, wording by wording
    nobody_nats: dict[str, tuple[float, ...]]  # the same of what stands for nobody
    nobody_is_shuffled: bool  # whether that is the wording's own words in another order
    n_bytes: int
    n_tokens: int  # fed


@dataclass(frozen=True, slots=True, kw_only=True)
class Placed(Record):
    """Where an audience stands for a work under a model."""

    id: str
    audience: str
    adapter: str | None
    information_nats: float  # mean over wordings
    information_nats_per_byte: float
    residual_nats: float
    residual_nats_per_byte: float
    rank: int  # among the audiences by the residual per byte; 1 is the largest
    rank95: tuple[int, int]  # over wordings drawn anew


@dataclass(frozen=True, slots=True, kw_only=True)
class FitResult(StudyResult):
    """study.json, with the place of every audience."""

    placed: tuple[Placed, ...]


def sizes_of(rows: RowsByModel[FitRow]) -> list[int]:
    """Return how many wordings each audience has."""
    return [len(values) for values in rows[None][0].information_nats.values()]


def matrices(
    rows: RowsByModel[FitRow], unit: str, *, nobody: bool = False
) -> dict[str | None, Values]:
    """Return of each model I of each work after each wording, audience after audience: (W, N)."""
    found = {}
    for adapter, held in rows.items():
        of = [r.nobody_nats if nobody else r.information_nats for r in held]
        numbers = np.array([[v for values in one.values() for v in values] for one in of])
        sizes = np.array([[r.n_bytes] for r in held])
        found[adapter] = numbers / sizes if unit == "nats/byte" else numbers
    return found


def found_in(rows: RowsByModel[FitRow]) -> list[Effect]:
    """Return all effects: of the residual, and of readers beside nobody, in both units."""
    ways = dealings(sizes_of(rows))
    found: list[Effect] = []
    for end, unit in UNITS:
        found += _of_residuals(rows, ways, end, unit)
    for end, unit in UNITS:
        measured = _of_readers(rows, end, unit)
        base = rows[None]
        found += effects(measured, [r.group for r in base], [r.source_id for r in base])
    return found


def _of_residuals(
    rows: RowsByModel[FitRow], ways: Dealings, end: str, unit: str
) -> Iterator[Effect]:
    n_works = len(rows[None])
    columns = matrices(rows, unit)
    changes = {a: held - columns[None] for a, held in columns.items() if a is not None}
    shuffled = rows[None][0].nobody_is_shuffled
    nobody = tested_shares(matrices(rows, unit, nobody=True), ways) if shuffled else {}

    def untested(
        name: str, label: str, part: Part, adapter: str | None, value: float | None
    ) -> Effect:
        return Effect(
            name=name + end, label=f"{label}, {unit}", part=part, adapter=adapter, group=None,
            value=value, ci95=None, p=None, p_against=None, n=n_works, n_sources=None,
        )  # fmt: skip

    def tested(name: str, label: str, part: Part, adapter: str | None, share: Share) -> Effect:
        effect = untested(name, label, part, adapter, share.excess)
        return replace(effect, p=share.p, p_against=share.p_against, untested=share.untested)

    for adapter, share in tested_shares(columns, ways).items():
        label = "share of the residual between audiences"
        yield untested("share", label, "effect", adapter, share.value)
        yield untested(
            "ratio", "residual between / within audiences", "effect", adapter, share.ratio
        )
        yield untested("dealt", "share, wordings dealt to others", "null", adapter, share.dealt)
        if shuffled:
            value = nobody[adapter].value
            yield untested("share_shuffled", "share, words shuffled", "null", adapter, value)
        yield tested("fit", "share − dealt", "excess", adapter, share)
    for adapter, share in tested_shares(changes, ways).items():
        yield tested("fit_change", "share − dealt of adapter − base", "change", adapter, share)


def _of_readers(rows: RowsByModel[FitRow], end: str, unit: str) -> list[Measured]:
    sizes = sizes_of(rows)

    def means(*, nobody: bool) -> dict[str | None, Values]:
        held = matrices(rows, unit, nobody=nobody)
        return {a: audience_means(columns, sizes).mean(1) for a, columns in held.items()}

    of_readers, of_nobody = means(nobody=False), means(nobody=True)
    excess = Measured(
        f"reader{end}", f"I(x; reader) − I(x; nobody), {unit}", "excess",
        {a: values - of_nobody[a] for a, values in of_readers.items()},
    )  # fmt: skip
    return [
        Measured(f"information{end}", f"I(x; reader), {unit}", "effect", of_readers),
        Measured(f"nobody{end}", f"I(x; nobody), {unit}", "null", of_nobody),
        excess,
        change_of(excess, f"reader_change{end}", f"adapter − base of that, {unit}"),
    ]


def notes_of(rows: RowsByModel[FitRow]) -> tuple[str, ...]:
    """Say how the wordings were dealt, and who is nobody."""
    sizes = sizes_of(rows)
    ways = dealings(sizes)
    how = "all of them" if ways.exact else "drawn, that of the data among them"
    nobody = (
        "Nobody is each wording with its words in another order: what is above it is not the words "
        "alone."
        if rows[None][0].nobody_is_shuffled
        else "Nobody is, for each wording, the one nearest in length of those that describe nobody."
    )
    wordings = f"{counted(sum(sizes), 'wording')} of {counted(len(sizes), 'audience')}"
    return (f"{len(ways):,} ways to deal {wordings}, {how}.", nobody)


def placed_in(rows: RowsByModel[FitRow]) -> Iterator[Placed]:
    """Yield the place of every audience for every work under every model."""
    sizes, names = sizes_of(rows), list(rows[None][0].information_nats)
    per_byte, sums = matrices(rows, "nats/byte"), matrices(rows, "nats")
    for adapter, held in rows.items():
        of_bytes, of_sums = (audience_means(m[adapter], sizes) for m in (per_byte, sums))
        residual, in_sums = centred(of_bytes), centred(of_sums)
        places, bounds = ranks(residual), rank_intervals(per_byte[adapter], sizes)
        for w, row in enumerate(held):
            for a, name in enumerate(names):
                yield Placed(
                    id=row.id, audience=name, adapter=adapter,
                    information_nats=float(of_sums[w, a]),
                    information_nats_per_byte=float(of_bytes[w, a]),
                    residual_nats=float(in_sums[w, a]),
                    residual_nats_per_byte=float(residual[w, a]),
                    rank=int(places[w, a]),
                    rank95=(int(bounds[w, a, 0]), int(bounds[w, a, 1])),
                )  # fmt: skip
