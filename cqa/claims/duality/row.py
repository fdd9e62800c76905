"""What the study of duality keeps of an item under a model."""

from __future__ import annotations

from dataclasses import dataclass

from cqa.schema.claims import StudyRow


@dataclass(frozen=True, slots=True, kw_only=True)
class DualityRow(StudyRow):
    """One item under one model; laws are in the order of `draws.LAWS`."""

    given_nats: tuple[float, float]  # S(g | y), S(b | y)
    null_nats: tuple[float, float]  # S(g | ∅), S(b | ∅)
    reverse_nats: float  # PMI of the context given the good text
    other_forward_nats: float  # PMI of another item's good text given the context
    other_reverse_nats: float  # and of the context given that
    nearer_shares: tuple[float, float]  # of free texts, the good of the item's pair and another's
    context_key: (
        str  # digest of the context's ids: two items with one context have one set of texts
    )
    drawn_tokens: tuple[int, ...]  # of each law, all texts together
    surplus_nats: tuple[float, ...]  # Σ(-ln p - H) over them
    varentropy_nats2: tuple[float, ...]  # Σ of the variance of -ln p
    log_gap_nats: float  # most by which the sampler's own ln p of a token differs from its score
    candidate_p: tuple[float, ...]  # of the most probable first tokens, falling
    candidate_counts: tuple[tuple[int, ...], ...]  # of each law, how often each was drawn
    n_texts: int  # of each law
    n_tokens: int  # fed at most

    @property
    def forward_nats(self) -> float:
        """PMI of the good text given the context."""
        return self.given_nats[0] - self.null_nats[0]
