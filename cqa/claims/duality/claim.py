"""Reading and writing as one thing (section 6.5), in three parts.

PMI both ways (`symmetry`), what is drawn and what is scored (`sampled`), and the chance of drawing
the good text beside ddI (`transfer`); each beside its own null control.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from matplotlib.figure import Figure

from cqa.claims.claim import Asked, RowsByModel, Task
from cqa.claims.dealing import dealt
from cqa.claims.duality.config import DualityConfig
from cqa.claims.duality.draws import CANDIDATES, LAWS, Drawing, draw
from cqa.claims.duality.row import DualityRow
from cqa.claims.duality.sampled import NAMES, drawn_outcome
from cqa.claims.duality.symmetry import PANELS, BothWays, both_ways, symmetry_outcome
from cqa.claims.duality.transfer import transfer_outcome
from cqa.claims.sequences import Pair, encode, n_fed, score_sequences
from cqa.data.items import Item, read_items
from cqa.data.tokenizer import Ids, Tokenizer
from cqa.data.unique import each_once, file_line_id
from cqa.errors import DataError
from cqa.model.checkpoint import locate
from cqa.report.effect_figure import draw_effects
from cqa.schema.claims import StudyResult
from cqa.score.decoder_engine import DecoderEngine
from cqa.score.engine import SequenceScores
from cqa.score.generated import end_ids
from cqa.score_folder import digest_json, full_key

CLAIM = "Understanding a text and producing it are one thing"
NULL = (
    "of PMI both ways, another item's text of near length; of draws at T = 1, draws at T = 0.9 and "
    "with top-p 0.95, which the same tests have to reject; of P(good) with ddI, d_prior dealt"
)
CAUTION = (
    "That what is drawn is what is scored is true of any sampler that does what it says, of an "
    "untrained model too. PMI alike both ways says that two conditionals fit one joint, not that "
    "the joint is right. P(good) is of two given texts: of what is written freely it says nothing."
)


@dataclass(frozen=True, slots=True)
class Texts:
    """The sequences of an item."""

    own: BothWays
    other: BothWays  # the context with another item's good text
    bad: Pair
    bad_alone: Pair

    @property
    def pairs(self) -> tuple[Pair, ...]:
        """All that is scored, but for the texts that are drawn."""
        return (*self.own.pairs, *self.other.pairs, self.bad, self.bad_alone)

    @property
    def context(self) -> Ids:
        """What texts are drawn after."""
        return self.own.forward[0]


class Duality:
    """See the module."""

    name = "duality"
    row = DualityRow
    code = (
        "claims/duality", "claims/sequences.py", "claims/dealing.py", "score/sampling.py",
        "score/draws.py", "score/generated.py",
    )  # fmt: skip

    def __init__(self, config: DualityConfig) -> None:
        self._config = config
        self._drawing = Drawing(config.samples, config.max_tokens, config.seed, frozenset())

    def inputs(self) -> Mapping[str, Any]:
        """Return what decides a row besides its task."""
        drawing = self._drawing
        return {
            "n_samples": drawing.n_samples, "max_tokens": drawing.max_tokens, "seed": drawing.seed,
            "end_ids": sorted(drawing.end_ids), "laws": [asdict(law) for law in LAWS],
            "n_candidates": CANDIDATES,
        }  # fmt: skip

    def tasks(self, tokenizer: Tokenizer, max_positions: int) -> list[Task[Texts]]:
        """Read the items."""
        config = self._config
        self._drawing = Drawing(
            config.samples, config.max_tokens, config.seed,
            end_ids(locate(config.model), tokenizer),
        )  # fmt: skip
        records = read_items(config.pairs, columns=config.columns)
        items = list(each_once(records, name=file_line_id, columns=config.columns))
        for item in items:
            _check_pair(item)
        good = [_good_and_bad(item)[0] for item in items]
        sources = [item.labels.get("source_id") for item in items]
        others = dealt(good, sources, [len(tokenizer.encode_following(text)) for text in good])
        if others is None:
            raise DataError(
                "expected good texts that can be dealt to items of other sources, got too many of "
                "one source or of one text",
                where=items[0].where,
                hint="the null control needs them; take items of more sources, or give each its "
                "own text",
            )
        return [
            self._task(item, good[k], items[k].where, tokenizer, max_positions)
            for item, k in zip(items, others, strict=True)
        ]

    def _task(
        self, item: Item, other: str, other_where: str, tokenizer: Tokenizer, max_positions: int
    ) -> Task[Texts]:
        good, bad = _good_and_bad(item)
        of_bad = encode(tokenizer, item.context, bad, max_positions, item.where)
        texts = Texts(
            own=both_ways(tokenizer, item.context, good, max_positions, item.where),
            other=both_ways(
                tokenizer, item.context, other, max_positions,
                f"{item.where} (with the text of {other_where})",
            ),
            bad=of_bad,
            bad_alone=(tokenizer.null_ids, of_bad[1]),
        )  # fmt: skip
        return Task(
            id=item.id,
            group=item.group,
            source_id=item.labels.get("source_id"),
            key=digest_json([full_key(item), other]),
            n_tokens=n_fed(texts.pairs) + self._drawing.n_fed(texts.context),
            content=texts,
        )

    def compute(
        self, engine: DecoderEngine, tasks: Sequence[Task[Texts]], model: Asked
    ) -> list[DualityRow]:
        """Score each item's texts both ways; draw texts after each context, and score them."""
        found = score_sequences(engine, (pair for task in tasks for pair in task.content.pairs))
        drawn = draw(engine, [task.content.context for task in tasks], self._drawing)
        return [
            DualityRow(
                **task.labels(model),
                **scored(task.content, found),
                context_key=digest_json(task.content.context),
                n_texts=self._drawing.n_samples,
                n_tokens=task.n_tokens,
                **asdict(drawn[task.content.context]),
            )
            for task in tasks
        ]

    def result(self, rows: RowsByModel[DualityRow]) -> StudyResult:
        """Test each part against its null control."""
        base = rows[None]
        parts = [part(rows) for part in (symmetry_outcome, drawn_outcome, transfer_outcome)]
        return StudyResult(
            study=self.name, claim=CLAIM, null_control=NULL, caution=CAUTION, n_items=len(base),
            n_tokens=sum(row.n_tokens for row in base),
            effects=tuple(effect for found, _ in parts for effect in found),
            findings=tuple(one for _, said in parts for one in said), notes=_notes(rows),
            panels=(*PANELS, NAMES),
        )  # fmt: skip

    def draw(self, rows: RowsByModel[DualityRow], result: StudyResult) -> Figure:
        """Draw PMI both ways, its concordance, and the surplus of surprise under three laws."""
        return draw_effects(result)


def scored(texts: Texts, found: SequenceScores) -> dict[str, Any]:
    """Return the fields of a row that need no text to be drawn."""
    good, bad = texts.own, (texts.bad, texts.bad_alone)
    other_forward, other_reverse = texts.other.pmi(found)
    return {
        "given_nats": (found[good.forward].total, found[bad[0]].total),
        "null_nats": (found[good.text_alone].total, found[bad[1]].total),
        "reverse_nats": good.pmi(found)[1],
        "other_forward_nats": other_forward,
        "other_reverse_nats": other_reverse,
    }


def _check_pair(item: Item) -> None:
    if len(item.options) != 2:
        raise DataError(
            f"expected one good and one bad text, got {len(item.options)} texts",
            where=item.where, hint="write one line for each bad text",
        )  # fmt: skip


def _good_and_bad(item: Item) -> tuple[str, str]:
    answer = item.answer or 0
    return item.options[answer], item.options[1 - answer]


def _notes(rows: RowsByModel[DualityRow]) -> tuple[str, ...]:
    if len(rows) > 1:
        return ()
    return ("Without an adapter nothing moves: transfer is not asked.",)
