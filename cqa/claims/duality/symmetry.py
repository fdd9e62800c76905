"""Whether a text tells as much of its context as the context of the text.

    PMI→ = S(x | y) - S(x | ∅)      PMI← = S(y | x) - S(y | ∅)      nats

Of one joint distribution over texts in which their order says nothing, both are the same number,
whatever the texts are; PMI→ - PMI← is ln P(y x) - ln P(x y). A model sees an order: "x y" has a
seam that nobody would write. Another item's text after y has the same seams and not the match, so
the claim is of what the two directions have beyond that, F and R: both positive, and neither twice
the other, F > R/2 and R > F/2. Every token is scored: the first one of a text alone, after ∅.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from cqa.claims.associations import Associated, association_effects, excess_of
from cqa.claims.claim import RowsByModel
from cqa.claims.duality.row import DualityRow
from cqa.claims.effects import Measured, change_of, effects, finding
from cqa.claims.sequences import Pair, encode
from cqa.data.tokenizer import Tokenizer
from cqa.schema.claims import Effect, StudyFinding
from cqa.score.engine import SequenceScores
from cqa.stats.association import concordance
from cqa.stats.resampling import Statistic

PANELS = (
    ("forward", "reverse", "other_forward", "other_reverse"),
    ("excess_forward", "excess_reverse", "excess_gap"),
    ("concordance", "other_concordance"),
)


@dataclass(frozen=True, slots=True)
class BothWays:
    """The four sequences of two texts."""

    forward: Pair  # x after y
    text_alone: Pair  # x after ∅
    reverse: Pair  # y after x
    context_alone: Pair  # y after ∅

    @property
    def pairs(self) -> tuple[Pair, ...]:
        """All that is scored."""
        return self.forward, self.text_alone, self.reverse, self.context_alone

    def pmi(self, found: SequenceScores) -> tuple[float, float]:
        """Return PMI→ and PMI←."""
        forward, text, reverse, context = (found[pair].total for pair in self.pairs)
        return forward - text, reverse - context


def both_ways(
    tokenizer: Tokenizer, context: str, text: str, max_positions: int, where: str
) -> BothWays:
    """Encode two texts in both orders, and each alone, as `score` does.

    Raises:
        DataError: They are too long, or hold a control token.
    """
    forward = encode(tokenizer, context, text, max_positions, where)
    reverse = encode(tokenizer, text, context, max_positions, where)
    null = tokenizer.null_ids
    return BothWays(forward, (null, forward[1]), reverse, (null, reverse[1]))


def symmetry_outcome(
    rows: RowsByModel[DualityRow],
) -> tuple[list[Effect], list[StudyFinding]]:
    """Return the effects and the findings of each model."""
    base = rows[None]
    groups, sources = [r.group for r in base], [r.source_id for r in base]
    found = [
        replace(e, p=None, p_against=None) if e.name.endswith("gap") else e  # no claim has a side
        for e in effects(measured(rows), groups, sources)
    ]
    found += association_effects(_associated(rows), groups, sources)
    said = [
        *_both("both ways alike", found, "half_forward", "half_reverse"),
        *_both("more both ways", found, "change_forward", "change_reverse"),
    ]
    return found, said


def measured(rows: RowsByModel[DualityRow]) -> list[Measured]:
    """Return both directions, their null control, what exceeds it, and its changes."""

    def of(value: Callable[[DualityRow], float]) -> dict[str | None, list[float]]:
        return {adapter: [value(row) for row in held] for adapter, held in rows.items()}

    def beyond(row: DualityRow) -> tuple[float, float]:
        return (
            row.forward_nats - row.other_forward_nats,
            row.reverse_nats - row.other_reverse_nats,
        )

    def share(forward: float, reverse: float) -> dict[str | None, list[float]]:
        return of(lambda row: forward * beyond(row)[0] + reverse * beyond(row)[1])

    f = Measured("excess_forward", "F: PMI→ beyond another's text, nats", "excess", share(1, 0))
    r = Measured("excess_reverse", "R: PMI← beyond another's text, nats", "excess", share(0, 1))
    gap = Measured("excess_gap", "F − R, nats", "excess", share(1, -1))
    return [
        Measured(
            "forward", "PMI→ of the text given its context, nats", "effect",
            of(lambda row: row.forward_nats),
        ),
        Measured(
            "reverse", "PMI← of the context given its text, nats", "effect",
            of(lambda row: row.reverse_nats),
        ),
        Measured(
            "other_forward", "PMI→ of another's text, nats", "null",
            of(lambda row: row.other_forward_nats),
        ),
        Measured(
            "other_reverse", "PMI← by another's text, nats", "null",
            of(lambda row: row.other_reverse_nats),
        ),
        Measured(
            "gap", "PMI→ − PMI←, nats", "effect",
            of(lambda row: row.forward_nats - row.reverse_nats),
        ),
        Measured(
            "other_gap", "PMI→ − PMI← with another's text, nats", "null",
            of(lambda row: row.other_forward_nats - row.other_reverse_nats),
        ),
        f, r, gap,
        Measured("half_forward", "F − R/2, nats", "excess", share(1, -0.5)),
        Measured("half_reverse", "R − F/2, nats", "excess", share(-0.5, 1)),
        change_of(f, "change_forward", "adapter − base of F, nats"),
        change_of(r, "change_reverse", "adapter − base of R, nats"),
        change_of(gap, "change_gap", "adapter − base of F − R, nats"),
    ]  # fmt: skip


def _associated(rows: RowsByModel[DualityRow]) -> list[Associated]:
    def of(value: Callable[[DualityRow], tuple[float, float]]) -> dict[str | None, Statistic]:
        return {
            adapter: concordance(*zip(*(value(row) for row in held), strict=True))
            for adapter, held in rows.items()
        }

    own = Associated(
        "concordance", "Lin's concordance of PMI→ and PMI←", "effect",
        of(lambda row: (row.forward_nats, row.reverse_nats)),
    )  # fmt: skip
    other = Associated(
        "other_concordance", "Lin's concordance, another's text", "null",
        of(lambda row: (row.other_forward_nats, row.other_reverse_nats)),
    )  # fmt: skip
    excess = excess_of(own, other, "excess_concordance", "Lin's concordance, own − another's text")
    return [own, other, excess]


def _both(name: str, found: Sequence[Effect], a: str, b: str) -> list[StudyFinding]:
    """Return the finding of every model that two claims hold together.

    That takes each of them by itself, so the larger p needs no correction (intersection-union;
    Berger 1982); that one of them is turned around is told by either, so that p is corrected.
    """
    held = {e.name + (e.adapter or ""): e for e in found if e.name in (a, b) and e.group is None}
    adapters = [e.adapter for e in held.values() if e.name == a]
    return [finding(name, _weaker(held[a + (m or "")], held[b + (m or "")])) for m in adapters]


def _weaker(a: Effect, b: Effect) -> Effect:
    for one in (a, b):
        if one.p is None:
            return one
    weaker = max(a, b, key=lambda one: one.p or 0.0)
    least = min(p for p in (a.p_against, b.p_against) if p is not None)
    return replace(weaker, p_against=min(1.0, 2 * least))
