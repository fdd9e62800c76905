"""H(X|y,z) beside H(X|y), for the z of an item and for that of another (section 2.1).

    dH(z) = Σ_t H(X_t | z, y, x_<t) - H(X_t | y, x_<t)      nats, over the tokens of the good option
    dS(z) = S(x | z, y) - S(x | y)

Conditioning reduces entropy on average under one joint distribution. A model is such a joint for
nobody; what a text before the context does to it may as well be the text's length or its style. So
the claim is of z matched against z of another item, and against z's own words shuffled.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from cqa.claims.claim import Asked, RowsByModel, Task
from cqa.claims.conditioning.config import ConditioningConfig
from cqa.claims.dealing import shuffled
from cqa.claims.effects import Measured, change_of, described, effects, findings
from cqa.claims.items import dealt_among, read_all
from cqa.claims.sequences import SEPARATOR, Pair, conditioned, encode, n_fed, score_sequences
from cqa.data.items import Item
from cqa.data.jsonl import take_words
from cqa.data.tokenizer import Tokenizer
from cqa.report.effect_figure import draw_effects
from cqa.schema.claims import StudyResult, StudyRow
from cqa.score.decoder_engine import DecoderEngine
from cqa.score_folder import digest_json, full_key

FORMS = ("alone", "matched", "mismatched", "shuffled")
CLAIM = "A condition z makes the text x that follows a context y more certain"
NULL = "z of another item of near length, and the words of z shuffled"
CAUTION = (
    "Conditioning reduces entropy on average under one joint distribution, which a model is not. "
    "The entropies are those at the tokens of one text, not of all that could follow; and a lower "
    "one says that the model is more certain, not that it is right: S tells that."
)
Conditions = tuple[Pair, Pair, Pair, Pair]  # in the order of FORMS


@dataclass(frozen=True, slots=True, kw_only=True)
class ConditioningRow(StudyRow):
    """One item under one model, its good option after the four forms of the context."""

    entropy_nats: tuple[float, ...]  # sums over the tokens of x, in the order of FORMS
    logp_nats: tuple[float, ...]
    n_tokens: int


class Conditioning:
    """See the module."""

    name = "conditioning"
    row = ConditioningRow
    code = ("claims/conditioning", "claims/sequences.py", "claims/dealing.py")

    def __init__(self, config: ConditioningConfig) -> None:
        self._config = config

    def inputs(self) -> Mapping[str, Any]:
        """Return what decides a row besides its task."""
        return {"separator": SEPARATOR}

    def tasks(self, tokenizer: Tokenizer, max_positions: int) -> list[Task[Conditions]]:
        """Read the items, and deal every condition to another one."""
        items = read_all(self._config)
        own = [take_words(item.extra, "condition", item.where) for item in items]
        lengths = [len(tokenizer.encode_following(text)) for text in own]
        others = dealt_among(
            items, own, lengths, "conditions",
            "the null control needs them; take items of more sources, or give each its own "
            "condition",
        )  # fmt: skip
        return [
            _task(item, z, own[k], tokenizer, max_positions)
            for item, z, k in zip(items, own, others, strict=True)
        ]

    def compute(
        self, engine: DecoderEngine, tasks: Sequence[Task[Conditions]], model: Asked
    ) -> list[ConditioningRow]:
        """Score the good option of each item after the four forms of its context."""
        found = score_sequences(engine, (pair for task in tasks for pair in task.content))
        rows = []
        for task in tasks:
            stats = [found[pair] for pair in task.content]
            rows.append(
                ConditioningRow(
                    **task.labels(model),
                    entropy_nats=tuple(s.total_entropy or 0.0 for s in stats),
                    logp_nats=tuple(s.total for s in stats),
                    n_tokens=len(task.content[0][1]),
                )
            )
        return rows

    def result(self, rows: RowsByModel[ConditioningRow]) -> StudyResult:
        """Test matched against mismatched and shuffled conditions, under every model."""
        base = rows[None]
        measured = _measured(rows)
        found = effects(measured, [r.group for r in base], [r.source_id for r in base])
        for adapter, held in rows.items():
            rises = np.mean([_moved(r.entropy_nats, "matched") > 0 for r in held])
            found.append(
                described("rises", "share of items whose entropy rises with z", adapter,
                          float(rises), len(held))
            )  # fmt: skip
        return StudyResult(
            study=self.name, claim=CLAIM, null_control=NULL, caution=CAUTION, n_items=len(base),
            n_tokens=sum(r.n_tokens for r in base), effects=tuple(found),
            findings=tuple(
                findings("certain", found, "excess") + findings("predicted", found, "excess_s")
                + findings("changed", found, "change")
            ),
            notes=(),
        )  # fmt: skip

    def draw(self, rows: RowsByModel[ConditioningRow], result: StudyResult) -> Figure:
        """Draw the change of entropy and of S by z matched, of another item, and shuffled."""
        return draw_effects(
            result, [("matched", "mismatched", "shuffled", "excess"), ("excess_s",)]
        )


def _task(
    item: Item, own: str, other: str, tokenizer: Tokenizer, max_positions: int
) -> Task[Conditions]:
    text = item.options[item.answer or 0]
    forms = (own, other, shuffled(own, item.id))
    contexts = [item.context, *(conditioned([z], item.context) for z in forms)]
    pairs = [encode(tokenizer, context, text, max_positions, item.where) for context in contexts]
    return Task(
        id=item.id,
        group=item.group,
        source_id=item.labels.get("source_id"),
        key=digest_json([full_key(item), own, other]),
        n_tokens=n_fed(pairs),
        content=(pairs[0], pairs[1], pairs[2], pairs[3]),
    )


def _moved(values: Sequence[float], form: str) -> float:
    """Return the sum with a condition minus that without."""
    return values[FORMS.index(form)] - values[0]


def _measured(rows: RowsByModel[ConditioningRow]) -> list[Measured]:
    def of(form: str, *, less: str | None = None) -> dict[str | None, list[float]]:
        return {
            adapter: [
                _moved(r.entropy_nats, form) - (_moved(r.entropy_nats, less) if less else 0.0)
                for r in held
            ]
            for adapter, held in rows.items()
        }

    excess = Measured(
        "excess", "dH matched − mismatched, nats", "excess", of("matched", less="mismatched"),
        "less",
    )  # fmt: skip
    predicted = {
        adapter: [_moved(r.logp_nats, "matched") - _moved(r.logp_nats, "mismatched") for r in held]
        for adapter, held in rows.items()
    }
    return [
        Measured("matched", "dH matched, nats", "effect", of("matched"), "less"),
        Measured("mismatched", "dH of another's z, nats", "null", of("mismatched"), "less"),
        Measured("shuffled", "dH of z's words shuffled, nats", "null", of("shuffled"), "less"),
        excess,
        Measured(
            "excess_order", "dH matched − shuffled, nats", "excess", of("matched", less="shuffled"),
            "less",
        ),
        Measured("excess_s", "dS matched − mismatched, nats", "excess", predicted),
        change_of(excess, "change", "adapter − base of dH matched − mismatched, nats"),
    ]  # fmt: skip
