"""One pair under one model: dI, and the answers to all questions of it."""

from __future__ import annotations

from dataclasses import dataclass

from cqa.schema.claims import StudyRow


@dataclass(frozen=True, slots=True, kw_only=True)
class VerdictRow(StudyRow):
    """Log-odds are ln P(yes) - ln P(no), each summed over its surface forms."""

    lang: str  # that of the question
    delta_i_nats: float  # as in scores.jsonl
    verdict_nats: float  # log-odds that the good text is better, over orders and polarities
    verdict_other_nats: float  # the same of this pair under another item's context
    # Good first and of the first text, good first and of the second, bad first and of the first,
    # bad first and of the second:
    log_odds_yes_nats: tuple[float, ...]
    log_odds_yes_other_nats: tuple[float, ...]
    log_odds_yes_same_nats: tuple[float, ...]  # good against good: of the first, of the second
    covered_mass: float  # P(yes) + P(no), mean over the item's own questions
    covered_mass_null: float  # and over the other six
    n_bytes_good: int
    n_bytes_bad: int
    n_tokens: int  # fed
