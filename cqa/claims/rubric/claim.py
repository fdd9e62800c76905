"""What constraints say of a text together beyond the sum of what each says (section 1.1).

    I(x; S) = mean over the orders of S of S(x | S, context) - S(x | context)          nats
    G(x)    = I(x; y1 … yk) - Σ I(x; y_i)

A rubric scores each constraint by itself and adds. What it leaves out of the choice between two
texts is G(good) - G(bad). Where constraints are independent given the text, G is the same for every
text, ln Π p(y_i) - ln p(y1 … yk), and the difference is 0; G itself is 0 only where they are also
independent of each other. So the claim is of the difference, against that with the last constraint
of another item.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from matplotlib.figure import Figure

from cqa.claims.claim import Asked, RowsByModel, Task
from cqa.claims.effects import Measured, change_of, effects, findings
from cqa.claims.items import dealt_among, read_all
from cqa.claims.rubric.config import RubricConfig
from cqa.claims.rubric.terms import Order, gains, gap, gap_of_last, moebius, orders, subset
from cqa.claims.sequences import SEPARATOR, Pair, conditioned, encode, n_fed, score_sequences
from cqa.data.items import Item
from cqa.data.jsonl import take_words
from cqa.data.tokenizer import Tokenizer
from cqa.errors import DataError
from cqa.report.effect_figure import draw_effects
from cqa.schema.claims import Effect, StudyResult, StudyRow
from cqa.score.decoder_engine import DecoderEngine
from cqa.score_folder import digest_json, full_key
from cqa.stats.tests import ALPHA
from cqa.text import signed

PANELS = (("gap", "mismatched", "excess"), ("gap_good", "gap_bad", "redundant"))
FEWEST, MOST = 2, 4  # constraints of an item: of 4 there are 65 orders of subsets
CLAIM = "Constraints together favour the good text by more than the sum of what each says alone"
NULL = (
    "the last constraint of another item of near length; and a paraphrase of the first, which is "
    "to be redundant. I(x; S) is beyond the item's plain context"
)
CAUTION = (
    "A constraint is a text before the context, and G holds whatever texts do to each other there: "
    "length, distance, style. The control has all of these but the match. G of one text is no "
    "measure of dependence, as constraints that are independent given the text have one too unless "
    "they are independent of each other; G(good) - G(bad) has no such part."
)


@dataclass(frozen=True, slots=True)
class Rubric:
    """An item with all that its texts are scored after."""

    context: str
    good: str
    bad: str
    constraints: tuple[str, ...]
    other: str  # of another item, in place of the last
    paraphrase: str | None  # of the first
    where: str
    other_where: str

    @property
    def mismatched(self) -> tuple[str, ...]:
        """The constraints with another item's in place of the last."""
        return (*self.constraints[:-1], self.other)

    @property
    def redundant(self) -> tuple[str, ...]:
        """The first constraint and its paraphrase; nothing where there is none."""
        return () if self.paraphrase is None else (self.constraints[0], self.paraphrase)

    def where_of(self, order: Order) -> str:
        """Name the lines that an order is made of."""
        foreign = self.other in order and self.other not in self.constraints
        return f"{self.where} (with a constraint of {self.other_where})" if foreign else self.where


@dataclass(frozen=True, slots=True, kw_only=True)
class RubricRow(StudyRow):
    """One item under one model. Of every subset of its constraints by bit mask, the first bit 0."""

    n_constraints: int
    good_gains_nats: tuple[float, ...]  # I(good; S)
    bad_gains_nats: tuple[float, ...]
    good_terms_nats: tuple[float, ...]  # their Moebius terms
    bad_terms_nats: tuple[float, ...]
    good_other_gains_nats: tuple[float, ...]  # with another item's constraint as the last
    bad_other_gains_nats: tuple[float, ...]
    good_paraphrase_gains_nats: tuple[float, ...] | None  # of the first and its paraphrase
    n_tokens: int  # fed


class RubricGap:
    """See the module."""

    name = "rubric"
    row = RubricRow
    code = ("claims/rubric", "claims/sequences.py", "claims/dealing.py")
    _tokenizer: Tokenizer
    _max_positions: int

    def __init__(self, config: RubricConfig) -> None:
        self._config = config

    def inputs(self) -> Mapping[str, Any]:
        """Return what decides a row besides its task."""
        return {"separator": SEPARATOR}

    def tasks(self, tokenizer: Tokenizer, max_positions: int) -> list[Task[Rubric]]:
        """Read the items, and deal the last constraint of every one to another."""
        self._tokenizer, self._max_positions = tokenizer, max_positions
        items = read_all(self._config)
        constraints = [_constraints_of(item) for item in items]
        for item, texts in zip(items, constraints, strict=True):  # each line before their mixtures
            for text in item.options:
                encode(tokenizer, conditioned(texts, item.context), text, max_positions, item.where)
        last = [texts[-1] for texts in constraints]
        others = dealt_among(
            items, last, [len(tokenizer.encode_following(text)) for text in last],
            "last constraints",
            "the null control needs them; take items of more sources, or put a constraint last "
            "that is the item's own",
            lambda a, b: last[b] in constraints[a],
        )  # fmt: skip
        return [
            self._task(item, texts, items[k], last[k])
            for item, texts, k in zip(items, constraints, others, strict=True)
        ]

    def _task(
        self, item: Item, constraints: tuple[str, ...], donor: Item, other: str
    ) -> Task[Rubric]:
        paraphrase = None
        if item.extra.get("paraphrase") is not None:
            paraphrase = take_words(item.extra, "paraphrase", item.where)
            if paraphrase == constraints[0]:
                raise DataError(
                    "expected `paraphrase` to say the first constraint in other words, got the "
                    "same text",
                    where=item.where,
                )
        good, bad = item.options
        rubric = Rubric(
            item.context, good, bad, constraints, other, paraphrase, item.where, donor.where
        )
        return Task(
            id=item.id,
            group=item.group,
            source_id=item.labels.get("source_id"),
            key=digest_json([full_key(item), constraints, other, paraphrase]),
            n_tokens=n_fed(self._pairs(rubric).values()),
            content=rubric,
        )

    def _pairs(self, rubric: Rubric) -> dict[tuple[Order, str], Pair]:
        """Encode both texts after every order, again for every model: kept they would be many."""
        return {
            (order, text): encode(
                self._tokenizer, conditioned(order, rubric.context), text, self._max_positions,
                rubric.where_of(order),
            )
            for order in _orders(rubric)
            for text in (rubric.good, rubric.bad)
        }  # fmt: skip

    def compute(
        self, engine: DecoderEngine, tasks: Sequence[Task[Rubric]], model: Asked
    ) -> list[RubricRow]:
        """Score both texts of each item after every order of every subset."""
        pairs = [self._pairs(task.content) for task in tasks]
        found = score_sequences(engine, (pair for held in pairs for pair in held.values()))
        return [
            _row(task, {key: found[pair].total for key, pair in held.items()}, model)
            for task, held in zip(tasks, pairs, strict=True)
        ]

    def result(self, rows: RowsByModel[RubricRow]) -> StudyResult:
        """Test the gap against that with another item's constraint, under every model."""
        base = rows[None]
        found = _tested(rows, measured(rows), range(len(base)))
        found += _terms(rows)
        held = [k for k, row in enumerate(base) if row.good_paraphrase_gains_nats is not None]
        redundant = _tested(rows, [_redundancy(rows)], held) if held else []
        found += redundant
        return StudyResult(
            study=self.name, claim=CLAIM, null_control=NULL, caution=CAUTION, n_items=len(base),
            n_tokens=sum(row.n_tokens for row in base), effects=tuple(found),
            findings=tuple(findings("gap", found, "excess") + findings("changed", found, "change")),
            notes=_notes(redundant), panels=PANELS,
        )  # fmt: skip

    def draw(self, rows: RowsByModel[RubricRow], result: StudyResult) -> Figure:
        """Draw G(good) - G(bad) beside its null, and G of each text."""
        return draw_effects(result)


def _constraints_of(item: Item) -> tuple[str, ...]:
    if item.kind != "pair":
        raise DataError(
            f"expected a pair with one `good` and one `bad`, got {len(item.options)} options",
            where=item.where,
        )
    held = item.extra.get("constraints")
    if not isinstance(held, list) or not FEWEST <= len(held) <= MOST:
        got = f"{len(held)} of them" if isinstance(held, list) else f"{held!r:.80}"
        got = got if "constraints" in item.extra else "no `constraints`"
        raise DataError(
            f"expected `constraints` to be an array of {FEWEST} to {MOST} texts, got: {got}",
            where=item.where,
        )
    names = [f"constraints[{k}]" for k in range(len(held))]
    texts = tuple(take_words({n: t}, n, item.where) for n, t in zip(names, held, strict=True))
    if len(set(texts)) < len(texts):
        raise DataError("expected constraints that differ, got one twice", where=item.where)
    return texts


def _orders(rubric: Rubric) -> Iterable[Order]:
    """Return all that the texts are scored after, each once."""
    sets = (rubric.constraints, rubric.mismatched, rubric.redundant)
    return dict.fromkeys(order for texts in sets for order in orders(texts))


def _row(
    task: Task[Rubric], logp: Mapping[tuple[Order, str], float], model: Asked
) -> RubricRow:  # fmt: skip
    rubric = task.content

    def of(constraints: Sequence[str], text: str) -> tuple[float, ...]:
        return gains(constraints, lambda order: logp[order, text])

    good, bad = of(rubric.constraints, rubric.good), of(rubric.constraints, rubric.bad)
    return RubricRow(
        **task.labels(model),
        n_constraints=len(rubric.constraints),
        good_gains_nats=good,
        bad_gains_nats=bad,
        good_terms_nats=moebius(good),
        bad_terms_nats=moebius(bad),
        good_other_gains_nats=of(rubric.mismatched, rubric.good),
        bad_other_gains_nats=of(rubric.mismatched, rubric.bad),
        good_paraphrase_gains_nats=of(rubric.redundant, rubric.good) if rubric.redundant else None,
        n_tokens=task.n_tokens,
    )


def measured(rows: RowsByModel[RubricRow]) -> list[Measured]:
    """Return the gap, its null control, the excess and its change, of all items."""

    def of(number: Any) -> dict[str | None, list[float]]:
        return {adapter: [number(row) for row in held] for adapter, held in rows.items()}

    def matched(row: RubricRow) -> float:
        return gap(row.good_gains_nats) - gap(row.bad_gains_nats)

    def mismatched(row: RubricRow) -> float:
        return gap(row.good_other_gains_nats) - gap(row.bad_other_gains_nats)

    def foreign(row: RubricRow) -> float:
        return gap_of_last(row.good_other_gains_nats) - gap_of_last(row.bad_other_gains_nats)

    found = [
        Measured("gap", "G(good) − G(bad), nats", "effect", of(matched)),
        Measured("gap_good", "G(good), nats", "effect", of(lambda r: gap(r.good_gains_nats))),
        Measured("gap_bad", "G(bad), nats", "effect", of(lambda r: gap(r.bad_gains_nats))),
        Measured("mismatched", "G(good) − G(bad), another's last, nats", "null", of(mismatched)),
    ]
    if any(row.n_constraints > FEWEST for row in rows[None]):
        label = "the part of it that has the other's, nats"
        found.append(Measured("foreign", label, "null", of(foreign)))
    excess = Measured(
        "excess", "G(good) − G(bad), matched − mismatched, nats", "excess",
        of(lambda row: matched(row) - mismatched(row)),
    )  # fmt: skip
    return [*found, excess, change_of(excess, "change", "adapter − base of that, nats")]


def _terms(rows: RowsByModel[RubricRow]) -> list[Effect]:
    """Return the Moebius terms of two constraints or more, each of the items that have it."""
    found = []
    most = max(row.n_constraints for row in rows[None])
    masks = (mask for mask in range(1 << most) if mask.bit_count() > 1)
    for mask in sorted(masks, key=lambda mask: (mask.bit_count(), mask)):
        held = [k for k, row in enumerate(rows[None]) if mask < 1 << row.n_constraints]
        values = {
            adapter: [
                r.good_terms_nats[mask] - r.bad_terms_nats[mask] if k in set(held) else math.nan
                for k, r in enumerate(of_model)
            ]
            for adapter, of_model in rows.items()
        }
        names = subset([str(k + 1) for k in range(most)], mask)
        label = f"term of constraints {' and '.join(names)}, good − bad, nats"
        found += _tested(rows, [Measured(f"term_{''.join(names)}", label, "effect", values)], held)
    return found


def _notes(redundant: Sequence[Effect]) -> tuple[str, ...]:
    """Say where the control that is known to be redundant was not, or not seen to be."""
    if not redundant:
        return ("No item has a `paraphrase`: redundancy is not checked.",)
    return tuple(
        f"{e.adapter or 'base'}: a `paraphrase` is not seen to be redundant (G {signed(e.value)}): "
        "in this model a text before the context does more than say what it says"
        for e in redundant
        if e.group is None and not (e.p is not None and e.p < ALPHA)
    )


def _redundancy(rows: RowsByModel[RubricRow]) -> Measured:
    values = {
        adapter: [
            math.nan if r.good_paraphrase_gains_nats is None else gap(r.good_paraphrase_gains_nats)
            for r in of_model
        ]
        for adapter, of_model in rows.items()
    }
    return Measured(
        "redundant", "G(good) of the first and its paraphrase, nats", "null", values, "less"
    )


def _tested(
    rows: RowsByModel[RubricRow], of: Sequence[Measured], held: Sequence[int]
) -> list[Effect]:
    """Test measures of some of the items."""
    base = [rows[None][k] for k in held]
    some = [
        Measured(
            m.name, m.label, m.part, {a: [v[k] for k in held] for a, v in m.values.items()},
            m.claimed,
        )
        for m in of
    ]  # fmt: skip
    return effects(some, [r.group for r in base], [r.source_id for r in base])
