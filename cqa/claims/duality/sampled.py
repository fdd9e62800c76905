"""Whether what is drawn at T = 1 is what is scored, and whether the test could tell otherwise.

Two tests over all texts of a model: z of the summed -ln p - H, and chi-square of the first tokens,
counted by their rank in the model's own law, pooled over contexts. p of both is two-sided and
corrected for the number of models. `shown` takes that T = 1 is not rejected, and that two laws that
are not the model's are, by the same tests on as many texts.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import special, stats

from cqa.claims.claim import RowsByModel
from cqa.claims.duality.draws import LAW_NAMES
from cqa.claims.duality.row import DualityRow
from cqa.claims.effects import described
from cqa.schema.claims import Effect, Part, StudyFinding
from cqa.schema.verdict import Mark
from cqa.stats.clusters import Values
from cqa.stats.tests import ALPHA
from cqa.text import listed, p_value, signed

FEWEST_TOKENS = 500  # below, the sum is not yet normal
FEWEST_EXPECTED = 5.0  # of a cell of the chi-square; Cochran 1954
LOG_GAP = "most between the sampler's ln p of a token and its score, nats"
NAMES = ("drawn", "drawn_cool", "drawn_nucleus")  # in the order of the laws


@dataclass(frozen=True, slots=True)
class LawTest:
    """Both tests of one law under one model; None where they cannot be made."""

    n_tokens: int
    n_texts: int
    mean_nats: float | None  # of -ln p - H over tokens
    error_nats: float | None
    z: float | None
    p_z: float | None
    chi2: float | None
    df: int
    p_chi2: float | None

    @property
    def p(self) -> float | None:
        """The smaller p, corrected for there being two."""
        held = [p for p in (self.p_z, self.p_chi2) if p is not None]
        return None if self.p_z is None else min(1.0, len(held) * min(held))


def law_test(rows: Sequence[DualityRow], law: int, n_models: int) -> LawTest:
    """Test one law over the distinct contexts of rows of one model."""
    held = list({row.context_key: row for row in rows}.values())
    n_tokens = sum(row.drawn_tokens[law] for row in held)
    surplus = math.fsum(row.surplus_nats[law] for row in held)
    variance = math.fsum(row.varentropy_nats2[law] for row in held)
    n_texts = sum(row.n_texts for row in held)
    chi2, df = _chi_square(held, law)
    p_chi2 = min(1.0, n_models * float(stats.chi2.sf(chi2, df))) if chi2 is not None else None
    if n_tokens < FEWEST_TOKENS or variance <= 0:
        return LawTest(n_tokens, n_texts, None, None, None, None, chi2, df, p_chi2)
    error = math.sqrt(variance)
    z = surplus / error
    p_z = min(1.0, n_models * float(2 * special.ndtr(-abs(z))))
    mean = surplus / n_tokens
    return LawTest(n_tokens, n_texts, mean, error / n_tokens, z, p_z, chi2, df, p_chi2)


def _chi_square(rows: Sequence[DualityRow], law: int) -> tuple[float | None, int]:
    """Return the statistic and its degrees of freedom.

    Counts of a rank over contexts are sums of multinomials with laws of their own, whose covariance
    is known: (O - E)' V⁻¹ (O - E). Ranks that are too rarely expected go to all others.
    """
    p = np.array([row.candidate_p for row in rows], dtype=np.float64)
    n = np.array([row.n_texts for row in rows], dtype=np.float64)
    counts = np.sum([row.candidate_counts[law] for row in rows], axis=0)
    df = _cells(n @ p, float(n.sum()))
    if df == 0:
        return None, 0
    p = p[:, :df]
    covariance: Values = np.diag(n @ p) - (p * n[:, None]).T @ p
    beyond = counts[:df] - n @ p
    return float(beyond @ np.linalg.solve(covariance, beyond)), df


def _cells(expected: Values, n: float) -> int:
    """Return how many ranks have a cell of their own; what is expected falls with the rank."""
    k = int((expected >= FEWEST_EXPECTED).cumprod().sum())
    while k and n - expected[:k].sum() < FEWEST_EXPECTED:
        k -= 1
    return k


def drawn_outcome(
    rows: RowsByModel[DualityRow],
) -> tuple[list[Effect], list[StudyFinding]]:
    """Return the effects and the finding of each model."""
    tests = {
        adapter: [law_test(held, law, len(rows)) for law in range(len(LAW_NAMES))]
        for adapter, held in rows.items()
    }
    found = [
        _mean_effect(law, of_laws[law], adapter, len(rows))
        for law in range(len(LAW_NAMES))
        for adapter, of_laws in tests.items()
    ]
    found += [
        _first_effect(law, of_laws[law], adapter)
        for law in range(len(LAW_NAMES))
        for adapter, of_laws in tests.items()
    ]
    for adapter, held in rows.items():
        most = max(row.log_gap_nats for row in held)
        found.append(described("log_gap", LOG_GAP, adapter, most, len(held)))
    return found, [_finding(adapter, of_laws) for adapter, of_laws in tests.items()]


def _mean_effect(law: int, test: LawTest, adapter: str | None, n_models: int) -> Effect:
    mean, ci95 = test.mean_nats, None
    if mean is not None and test.error_nats is not None:
        half = test.error_nats * float(special.ndtri(1 - ALPHA / n_models / 2))
        ci95 = (mean - half, mean + half)
    return Effect(
        name=NAMES[law], label=f"{LAW_NAMES[law]}: −ln p − H a token, nats, p two-sided",
        part=_part(law), adapter=adapter, group=None, value=mean, ci95=ci95, p=test.p_z,
        p_against=None, n=test.n_tokens, n_sources=None,
    )  # fmt: skip


def _first_effect(law: int, test: LawTest, adapter: str | None) -> Effect:
    label = f"{LAW_NAMES[law]}: chi-square of first tokens, df {test.df}"
    return Effect(
        name=f"{NAMES[law]}_first", label=label,
        part=_part(law), adapter=adapter, group=None, value=test.chi2, ci95=None, p=test.p_chi2,
        p_against=None, n=test.n_texts, n_sources=None,
    )  # fmt: skip


def _part(law: int) -> Part:
    return "null" if law else "effect"


def _finding(adapter: str | None, tests: Sequence[LawTest]) -> StudyFinding:
    """Say whether drawing is scoring: only where the same tests tell other laws from it."""
    own, *others = tests
    mark: Mark = "n/a"
    reason = f"{own.n_tokens:,} tokens, of {FEWEST_TOKENS} that the test needs"
    if own.p is not None and all(test.p is not None for test in others):
        told = [test.p is not None and test.p < ALPHA for test in others]
        mark = "against" if own.p < ALPHA else "shown" if all(told) else "not shown"
        reason = f"{_said(LAW_NAMES[0], own)} over {own.n_tokens:,} tokens; "
        reason += listed(_said(n, t) for n, t in zip(LAW_NAMES[1:], others, strict=True))
        if mark == "not shown":
            reason += ": too few tokens to tell them from T = 1"
        elif mark == "against":
            reason += "; of sound samplers one in twenty is rejected: another --seed tells"
    return StudyFinding(name="drawn", adapter=adapter, mark=mark, reason=reason)


def _said(name: str, test: LawTest) -> str:
    p = p_value(test.p if test.p is not None else 1.0)
    return f"{name}: z {signed(test.z)}, p = {p}".replace("= <", "<")
