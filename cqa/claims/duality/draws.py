"""Texts that are drawn, scored as any text is.

    Σ_t (-ln p(x_t) - H_t)      mean 0 and variance Σ_t Var_t if x_t is drawn from p at T = 1

H_t and Var_t are the entropy and varentropy of the model's law at each token. The terms are
martingale differences, so texts may end where they like. All three numbers are of the scorer, in a
pass of its own over the drawn texts; the sampler gives nothing but their ids.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from cqa.claims.sequences import Pair, score_sequences
from cqa.data.tokenizer import Ids
from cqa.score.decoder_engine import DecoderEngine
from cqa.score.draws import Law
from cqa.score.engine import SequenceStats
from cqa.score.sampling import Sample, most_probable, sample

# What is claimed, and two laws that are not the model's, which the same test has to tell from it.
LAWS = (Law(), Law(temperature=0.9), Law(top_p=0.95))
LAW_NAMES = ("T = 1", "T = 0.9", "top-p 0.95")
CANDIDATES = 4  # first tokens that are counted, beside all others


@dataclass(frozen=True, slots=True)
class Drawing:
    """How texts are drawn."""

    n_samples: int
    max_tokens: int
    seed: int
    end_ids: frozenset[int]

    def n_fed(self, context: Ids) -> int:
        """Return how many tokens drawing and scoring feed at most."""
        n_laws = len(LAWS)
        texts = n_laws * self.n_samples * (self.max_tokens - 1)  # nothing follows a last token
        return (2 + n_laws) * len(context) + 2 * texts


@dataclass(frozen=True, slots=True)
class Drawn:
    """What is kept of the texts after one context; see the fields of the row."""

    drawn_tokens: tuple[int, ...]
    surplus_nats: tuple[float, ...]
    varentropy_nats2: tuple[float, ...]
    log_gap_nats: float
    candidate_p: tuple[float, ...]
    candidate_counts: tuple[tuple[int, ...], ...]


def draw(
    engine: DecoderEngine, contexts: Sequence[Ids], drawing: Drawing
) -> tuple[dict[Ids, Drawn], dict[Ids, list[Ids]]]:
    """Draw texts after each context under every law, and score them under the model in use.

    Args:
        engine: Whose decoder draws, and scores.
        contexts: Ids of each; the same ids are drawn after once.
        drawing: How.

    Returns:
        The numbers of each context; and the ids of its texts at T = 1, without end tokens.
    """
    distinct = list(dict.fromkeys(contexts))
    decoder = engine.base.decoder
    candidates = most_probable(decoder, distinct, CANDIDATES)
    by_law = [
        sample(
            decoder, distinct, n_samples=drawing.n_samples, max_tokens=drawing.max_tokens,
            temperature=law.temperature, top_p=law.top_p, seed=drawing.seed,
            end_ids=drawing.end_ids,
        )
        for law in LAWS
    ]  # fmt: skip
    texts = {c: [of_law[k] for of_law in by_law] for k, c in enumerate(distinct)}
    known = dict(zip(distinct, candidates, strict=True))
    found = score_sequences(engine, _pairs(texts, known), varentropy=True)
    numbers = {c: _drawn(c, of_laws, known[c], found) for c, of_laws in texts.items()}
    return numbers, {c: [_ids(one) for one in of_laws[0]] for c, of_laws in texts.items()}


def _ids(one: Sample) -> Ids:
    return one.token_ids[:-1] if one.stop == "end" else one.token_ids


def _pairs(texts: dict[Ids, list[list[Sample]]], candidates: dict[Ids, Ids]) -> Iterator[Pair]:
    for context, of_laws in texts.items():
        yield from ((context, (token,)) for token in candidates[context])
        yield from ((context, one.token_ids) for samples in of_laws for one in samples)


def _drawn(
    context: Ids, texts: list[list[Sample]], candidates: Ids, found: dict[Pair, SequenceStats]
) -> Drawn:
    stats = [[found[context, one.token_ids] for one in samples] for samples in texts]
    gaps = [
        abs(own - scored)
        for samples, of_law in zip(texts, stats, strict=True)
        for one, s in zip(samples, of_law, strict=True)
        for own, scored in zip(one.logp_nats, s.logp, strict=True)
    ]
    return Drawn(
        drawn_tokens=tuple(sum(len(s.logp) for s in of_law) for of_law in stats),
        surplus_nats=tuple(
            -math.fsum(v for s in of_law for v in (*s.logp, *(s.entropy or ()))) for of_law in stats
        ),
        varentropy_nats2=tuple(
            math.fsum(v for s in of_law for v in s.varentropy or ()) for of_law in stats
        ),
        log_gap_nats=max(gaps),
        candidate_p=tuple(math.exp(found[context, (token,)].total) for token in candidates),
        candidate_counts=tuple(
            tuple(sum(one.token_ids[0] == token for one in samples) for token in candidates)
            for samples in texts
        ),
    )
