"""What the rows of verdicts come to."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np

from cqa.claims.associations import (
    Associated,
    association_effects,
    change_of_statistic,
    excess_of,
)
from cqa.claims.claim import RowsByModel
from cqa.claims.effects import Measured, change_of, described, effects, findings
from cqa.claims.verdict.asking import (
    QUESTIONS,
    SAME_QUESTIONS,
    balanced,
    halves,
    leaning_to_first,
    leaning_to_yes,
)
from cqa.claims.verdict.row import VerdictRow
from cqa.schema.claims import Effect, StudyResult
from cqa.stats.association import partial_spearman, spearman, spearman_brown
from cqa.stats.resampling import Statistic
from cqa.text import named

CLAIM = "Asked of a pair, the model says that the good text is better, and says so as dI does"
NULL = (
    "the same pair under another item's context, of near length; and the good text against itself"
)
CAUTION = (
    "A verdict is of this wording of the question; another one may turn it. An unreliable verdict "
    "correlates with nothing; the reliability of the halves is at most that of the whole. A "
    "correlation over items does not say that one comes from the other."
)
PANELS = (
    ("verdict", "mismatched", "excess", "change"),  # in nats
    ("agreement", "partial_agreement", "other_agreement", "agreeing", "agreeing_change"),
)
LEAST_MASS = 0.5  # of next tokens that are some form of yes or no


def outcome(study: str, rows: RowsByModel[VerdictRow]) -> StudyResult:
    """Test the verdict and its correlation with dI against those under another context."""
    base = rows[None]
    groups, sources = [r.group for r in base], [r.source_id for r in base]
    found = effects(_measured(rows), groups, sources)
    found += association_effects(_associated(rows), groups, sources)
    found += _reliabilities(found)
    for adapter, held in rows.items():
        found += _described(adapter, held)
    return StudyResult(
        study=study, claim=CLAIM, null_control=NULL, caution=CAUTION, n_items=len(base),
        n_tokens=sum(r.n_tokens for r in base), effects=tuple(found),
        findings=tuple(
            findings("says so", found, "excess")
            + findings("says so as dI does", found, "agreeing")
            + findings("says so more", found, "change")
            + findings("says so more as dI does", found, "agreeing_change")
        ),
        notes=tuple(_notes(rows)), panels=PANELS,
    )  # fmt: skip


def _measured(rows: RowsByModel[VerdictRow]) -> list[Measured]:
    def of(value: Callable[[VerdictRow], float]) -> dict[str | None, list[float]]:
        return {adapter: [value(r) for r in held] for adapter, held in rows.items()}

    excess = Measured(
        "excess", "log-odds, own − another's context, nats", "excess",
        of(lambda r: r.verdict_nats - r.verdict_other_nats),
    )  # fmt: skip
    return [
        Measured(
            "verdict", "log-odds of good, nats", "effect", of(lambda r: r.verdict_nats)
        ),
        Measured(
            "mismatched", "log-odds of good, another's context, nats", "null",
            of(lambda r: r.verdict_other_nats),
        ),
        excess,
        change_of(excess, "change", "adapter − base of the excess, nats"),
    ]  # fmt: skip


def _associated(rows: RowsByModel[VerdictRow]) -> list[Associated]:
    def of(
        statistic: Callable[[Sequence[VerdictRow]], Statistic],
    ) -> dict[str | None, Statistic]:
        return {adapter: statistic(held) for adapter, held in rows.items()}

    own = Associated(
        "agreement", "Spearman with dI", "effect",
        of(lambda held: spearman([r.verdict_nats for r in held], _delta_i(held))),
    )  # fmt: skip
    other = Associated(
        "other_agreement", "Spearman, another's context", "null",
        of(lambda held: spearman([r.verdict_other_nats for r in held], _delta_i(held))),
    )  # fmt: skip
    excess = excess_of(own, other, "agreeing", "Spearman, own − another's context")
    return [
        own,
        Associated(
            "partial_agreement", "Spearman, difference of bytes fixed", "effect",
            of(lambda held: partial_spearman(
                [r.verdict_nats for r in held], _delta_i(held),
                [r.n_bytes_good - r.n_bytes_bad for r in held],
            )),
        ),
        other,
        excess,
        change_of_statistic(
            excess, "agreeing_change", "adapter − base of Spearman's excess"
        ),
        Associated(
            "halves", "Spearman of questions of the first and of the second text",
            "description",
            of(lambda held: spearman(*zip(*(halves(r.log_odds_yes_nats) for r in held),
                                          strict=True))),
        ),
    ]  # fmt: skip


def _delta_i(held: Sequence[VerdictRow]) -> list[float]:
    return [r.delta_i_nats for r in held]


Value = Callable[[VerdictRow], float]


def _described(adapter: str | None, held: Sequence[VerdictRow]) -> Iterator[Effect]:
    """Yield what nothing is decided by."""
    for name, (label, value) in MEANS.items():
        yield described(name, label, adapter, float(np.mean([value(r) for r in held])), len(held))
    dark = [_same_first(r) for r in held]
    yield described(
        "same_spread", "good against good: its standard deviation over items, nats", adapter,
        float(np.std(dark, ddof=1)) if len(dark) > 1 else None, len(held),
    )  # fmt: skip


def _reliabilities(found: Sequence[Effect]) -> Iterator[Effect]:
    for effect in found:
        if effect.name == "halves" and effect.group is None:
            yield described(
                "reliability", "split-half reliability of the log-odds (Spearman-Brown)",
                effect.adapter, spearman_brown(effect.value), effect.n,
            )  # fmt: skip


def _won(value: float) -> float:
    """Return 1 for what is positive, 0 for what is negative, and a half for neither."""
    return (1 + float(np.sign(value))) / 2


def _first(row: VerdictRow) -> float:
    return leaning_to_first(row.log_odds_yes_nats, [of_first for _, of_first in QUESTIONS])


def _same_first(row: VerdictRow) -> float:
    return leaning_to_first(row.log_odds_yes_same_nats, SAME_QUESTIONS)


def _same_balanced(row: VerdictRow) -> float:
    return balanced(row.log_odds_yes_same_nats * 2)  # both orders are one


MEANS: dict[str, tuple[str, Value]] = {
    "accuracy": (
        "share of items of which the good text is called better", lambda r: _won(r.verdict_nats),
    ),
    "accuracy_other": (
        "the same under another's context", lambda r: _won(r.verdict_other_nats),
    ),
    "accuracy_di": ("share of items with dI > 0", lambda r: _won(r.delta_i_nats)),
    "same_side": (
        "share of items in which both say the same",
        lambda r: _won(r.verdict_nats * r.delta_i_nats),
    ),
    "yes": ("leaning to yes, log-odds, nats", lambda r: leaning_to_yes(r.log_odds_yes_nats)),
    "first": ("leaning to the first text, log-odds, nats", _first),
    "same_first": ("good against good: leaning to the first, nats", _same_first),
    "same_balanced": ("good against good: over both orders, nats", _same_balanced),
    "covered_mass": ("probability of some form of yes or no", lambda r: r.covered_mass),
    "covered_mass_null": ("the same of the null questions", lambda r: r.covered_mass_null),
}  # fmt: skip


def _notes(rows: RowsByModel[VerdictRow]) -> Iterator[str]:
    for adapter, held in rows.items():
        mass = float(np.mean([r.covered_mass for r in held]))
        if mass < LEAST_MASS:
            yield (
                f"{named(adapter or 'base')}: the forms of yes and no have {mass:.1%} of the "
                "probability, less than half: it mostly says something else, and its log-odds are "
                "of answers that it would not give"
            )
