"""Whether the chance of drawing the good text moves with ddI, beyond what is built in.

    P(good) = 1 / (1 + exp(S(b | y) - S(g | y)))      of the two texts, exactly: nothing is drawn
    ddI     = d_cond - d_prior                        d of S(g) - S(b), adapter - base

P(good) is a function of S(g | y) - S(b | y), so its change goes with d_cond, and d_cond is a part
of ddI. The null control keeps that part: Spearman's correlation with d_prior dealt to other sources
at random. What exceeds its mean is what the change of the texts by themselves has to do with it.
The unit is the source: items of one are averaged.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import special, stats

from cqa.claims.claim import RowsByModel
from cqa.claims.duality.row import DualityRow
from cqa.claims.effects import described, findings
from cqa.schema.claims import Effect, Part, StudyFinding
from cqa.stats.clusters import Numbers, Values, source_numbers, sum_by_source
from cqa.stats.deciding import FEWEST_SOURCES, draws_for
from cqa.text import counted

SLACK = 1e-9  # by which two correlations that rounding alone tells apart differ
TOO_FEW = "{}, of {} that the test needs"


@dataclass(frozen=True, slots=True)
class Dealt:
    """A correlation, and the same with d_prior dealt at random."""

    rho: float
    drawn: Values  # (B,)

    @property
    def studentised(self) -> tuple[float, Values]:
        """Both, minus the mean of what was drawn, over its standard deviation."""
        mean, sd = self.drawn.mean(), self.drawn.std()
        return float((self.rho - mean) / sd), (self.drawn - mean) / sd


def transfer_outcome(
    rows: RowsByModel[DualityRow],
) -> tuple[list[Effect], list[StudyFinding]]:
    """Return the effects and the finding of each adapter."""
    base = rows[None]
    numbers = source_numbers([row.source_id for row in base])
    n_sources = int(numbers.max()) + 1
    found: list[Effect] = [
        described(
            "p_good", "P(good) of the two texts", adapter,
            float(np.mean(p_good(held))), len(held),
        )
        for adapter, held in rows.items()
    ]  # fmt: skip
    held = {a: _dealt(base, of_model, numbers) for a, of_model in rows.items() if a is not None}
    live = {a: one for a, one in held.items() if one is not None}
    p = _family(live) if n_sources >= FEWEST_SOURCES else {}
    for adapter, one in held.items():
        found += _effects(adapter, one, p.get(adapter), len(base), n_sources)
    return found, findings("transfer", found, "transfer_excess")


def p_good(rows: Sequence[DualityRow]) -> Values:
    """Return P(good) of each item: (N,)."""
    found: Values = special.expit([row.given_nats[0] - row.given_nats[1] for row in rows])
    return found


def _dealt(
    base: Sequence[DualityRow], rows: Sequence[DualityRow], numbers: Numbers
) -> Dealt | None:
    sizes = np.bincount(numbers)

    def by_source(values: Values) -> Values:
        return sum_by_source(values, numbers) / sizes

    moved = by_source(p_good(rows) - p_good(base))
    d_cond = by_source(_difference(rows, "given_nats") - _difference(base, "given_nats"))
    d_prior = by_source(_difference(rows, "null_nats") - _difference(base, "null_nats"))
    return dealt_correlations(moved, d_cond, d_prior)


def _difference(rows: Sequence[DualityRow], name: str) -> Values:
    return np.array([good - bad for good, bad in (getattr(row, name) for row in rows)])


def dealt_correlations(moved: Values, d_cond: Values, d_prior: Values) -> Dealt | None:
    """Correlate a change with d_cond - d_prior, and with d_prior dealt at random.

    None where a correlation does not exist, or dealing changes nothing.

    Args:
        moved: Of each source: (G,).
        d_cond: Likewise.
        d_prior: Likewise.
    """
    n = len(moved)
    if n < 3 or not np.ptp(moved) or not np.ptp(d_prior):
        return None
    rng, ranks = np.random.default_rng(0), stats.rankdata(moved)
    rho = _spearman(ranks, (d_cond - d_prior)[None])
    parts = []
    for left in range(draws_for(n), 0, -(size := max(1, 1_000_000 // n))):
        orders = rng.permuted(np.tile(np.arange(n), (min(left, size), 1)), axis=1)
        parts.append(_spearman(ranks, d_cond - d_prior[orders]))
    drawn = np.concatenate(parts)
    if not np.isfinite(rho).all() or not np.isfinite(drawn).all() or drawn.std() <= SLACK:
        return None
    return Dealt(float(rho[0]), drawn)


def _spearman(ranks: Values, others: Values) -> Values:
    """Return the correlation of ranks (G,) with the ranks of each of others (B, G): (B,)."""
    a = ranks - ranks.mean()
    b = stats.rankdata(others, axis=1)
    b -= b.mean(axis=1, keepdims=True)
    squares = (a**2).sum() * (b**2).sum(axis=1)
    found: Values = (b @ a) / np.sqrt(np.where(squares > 0, squares, np.nan))
    return found


def _family(held: dict[str, Dealt]) -> dict[str, tuple[float, float]]:
    """Return p of each adapter in both directions, corrected by the extremes over adapters.

    One dealing is the same for all of them. Source: Westfall & Young 1993, max-T.
    """
    if not held:
        return {}
    t = {adapter: one.studentised for adapter, one in held.items()}
    drawn = np.stack([of_drawn for _, of_drawn in t.values()])
    most, least = drawn.max(axis=0), drawn.min(axis=0)
    n = drawn.shape[1] + 1
    return {
        adapter: (
            float(1 + (most >= own - SLACK).sum()) / n,
            float(1 + (least <= own + SLACK).sum()) / n,
        )
        for adapter, (own, _) in t.items()
    }


def _effects(
    adapter: str, one: Dealt | None, p: tuple[float, float] | None, n: int, n_sources: int
) -> list[Effect]:
    untested = None
    if p is None:
        few = n_sources < FEWEST_SOURCES
        untested = TOO_FEW.format(counted(n_sources, "source"), FEWEST_SOURCES)
        untested = untested if few else "no spread over sources"
    mean = None if one is None else float(one.drawn.mean())
    rho = None if one is None else one.rho
    labels: tuple[tuple[str, str, Part, float | None], ...] = (
        ("transfer", "Spearman of the change of P(good) and ddI", "effect", rho),
        ("transfer_dealt", "the same, d_prior dealt: mean", "null", mean),
    )
    found = [
        Effect(
            name=name, label=label, part=part, adapter=adapter, group=None, value=value, ci95=None,
            p=None, p_against=None, n=n, n_sources=n_sources,
        )
        for name, label, part, value in labels
    ]  # fmt: skip
    excess = Effect(
        name="transfer_excess", label="Spearman beyond d_prior dealt", part="excess",
        adapter=adapter, group=None, value=None if rho is None or mean is None else rho - mean,
        ci95=None, p=p and p[0], p_against=p and p[1], n=n, n_sources=n_sources, untested=untested,
    )  # fmt: skip
    return [*found, excess]
