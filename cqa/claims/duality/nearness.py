"""Whether what a model writes freely is nearer the good text than the bad, as the base reads it.

    n(s) = [S₀(g | y s) - S₀(g | y)] - [S₀(b | y s) - S₀(b | y)]      nats, S₀ of the base

A text s that is drawn after y at T = 1 is nearer the good text if n(s) > 0: read after s, the base
takes the good text for likelier, compared with the bad one, than before. The null control is the
same texts by another item's pair. Under an adapter the base is the adapter made to add nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from cqa.claims.claim import RowsByModel
from cqa.claims.duality.row import DualityRow
from cqa.claims.effects import Measured, change_of, effects, findings
from cqa.claims.sequences import Pair, score_sequences
from cqa.data.tokenizer import Ids
from cqa.schema.claims import Effect, StudyFinding
from cqa.score.decoder_engine import DecoderEngine
from cqa.score.engine import SequenceScores

PANEL = ("nearer", "other_nearer", "excess_nearer")


@dataclass(frozen=True, slots=True)
class Choices:
    """A context, the two texts of its item, and those of another."""

    context: Ids
    own: tuple[Ids, Ids]  # good, bad
    other: tuple[Ids, Ids]

    def n_fed(self, n_samples: int, max_tokens: int) -> int:
        """Return how many tokens reading texts of so many tokens feeds at most."""
        options = sum(len(option) - 1 for option in (*self.own, *self.other))
        once = len(self.context) + options
        return once + n_samples * (once + max_tokens)

    def pairs(self, texts: Sequence[Ids]) -> list[Pair]:
        """Return all that is scored."""
        contexts = [self.context, *(self.context + text for text in texts)]
        return [(c, option) for c in contexts for option in (*self.own, *self.other)]


def nearer_shares(
    engine: DecoderEngine, choices: Sequence[Choices], texts: Mapping[Ids, Sequence[Ids]]
) -> list[tuple[float, float]]:
    """Return the share of texts that are nearer the good one: of the item's pair, of another's.

    Args:
        engine: Whose decoder reads, without its adapter.
        choices: Of each item.
        texts: Ids of what was drawn after each context, without end tokens.
    """
    with engine.base.decoder.silenced_adapter():
        found = score_sequences(
            engine, (pair for one in choices for pair in one.pairs(texts[one.context]))
        )
    return [
        (
            _share(one.context, one.own, texts[one.context], found),
            _share(one.context, one.other, texts[one.context], found),
        )
        for one in choices
    ]


def _share(
    context: Ids, options: tuple[Ids, Ids], texts: Sequence[Ids], found: SequenceScores
) -> float:
    """Return the share, of which a text that tells neither from the other is a half."""

    def ahead(before: Ids) -> float:
        return found[before, options[0]].total - found[before, options[1]].total

    signs = [np.sign(ahead(context + text) - ahead(context)) for text in texts]
    return float((1 + np.mean(signs)) / 2)


def nearness_outcome(
    rows: RowsByModel[DualityRow],
) -> tuple[list[Effect], list[StudyFinding]]:
    """Return the effects and the findings of each model."""
    base = rows[None]

    def of(index: int) -> dict[str | None, list[float]]:
        return {a: [row.nearer_shares[index] for row in held] for a, held in rows.items()}

    excess = Measured(
        "excess_nearer", "share of free texts nearer the good, own − another's", "excess",
        {a: [r.nearer_shares[0] - r.nearer_shares[1] for r in held] for a, held in rows.items()},
    )  # fmt: skip
    found = effects(
        [
            Measured("nearer", "share of free texts nearer the good", "effect", of(0)),
            Measured("other_nearer", "the same of another item's pair", "null", of(1)),
            excess,
            change_of(excess, "change_nearer", "adapter − base of that, own − another's"),
        ],
        [row.group for row in base], [row.source_id for row in base],
    )  # fmt: skip
    shares = ("nearer", "other_nearer")  # against 0 nothing is asked of them
    found = [replace(e, p=None, p_against=None) if e.name in shares else e for e in found]
    said = findings("free texts nearer", found, "excess_nearer")
    return found, said + findings("more of them nearer", found, "change_nearer")
