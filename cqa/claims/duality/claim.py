"""Reading and writing as one thing (section 6.5), in its parts.

PMI both ways (`symmetry`), what is drawn and what is scored (`sampled`), and transfer: the chance
of drawing the good text beside ddI (`transfer`), and what is written freely (`nearness`); each
beside its own null control.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from matplotlib.figure import Figure

from cqa.claims.claim import Asked, RowsByModel, Task
from cqa.claims.duality.config import DualityConfig
from cqa.claims.duality.draws import CANDIDATES, LAWS, Drawing, draw
from cqa.claims.duality.nearness import PANEL, Choices, nearer_shares, nearness_outcome
from cqa.claims.duality.row import DualityRow
from cqa.claims.duality.sampled import NAMES, drawn_outcome
from cqa.claims.duality.symmetry import PANELS, BothWays, both_ways, symmetry_outcome
from cqa.claims.duality.transfer import transfer_outcome
from cqa.claims.items import dealt_among, good_and_bad, read_all
from cqa.claims.sequences import Pair, encode, n_fed, score_sequences
from cqa.data.items import Item
from cqa.data.tokenizer import Ids, Tokenizer
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
    "with top-p 0.95, which the same tests have to reject; of P(good) with ddI, d_prior dealt; of "
    "free texts, another item's pair"
)
CAUTION = (
    "That what is drawn is what is scored is true of any sampler that does what it says, of an "
    "untrained model too. PMI alike both ways says that two conditionals fit one joint, not that "
    "the joint is right. P(good) is of two given texts; of free texts, nearness is as the base "
    "reads them, which may take a repeated word for it."
)
OUTCOMES = (symmetry_outcome, drawn_outcome, transfer_outcome, nearness_outcome)


@dataclass(frozen=True, slots=True)
class Texts:
    """The sequences of an item."""

    own: BothWays
    other: BothWays  # the context with another item's good text
    bad: Pair
    bad_alone: Pair
    other_bad: Ids  # of that item

    @property
    def pairs(self) -> tuple[Pair, ...]:
        """All that is scored, but for the texts that are drawn."""
        return (*self.own.pairs, *self.other.pairs, self.bad, self.bad_alone)

    @property
    def context(self) -> Ids:
        """What texts are drawn after."""
        return self.own.forward[0]

    @property
    def choices(self) -> Choices:
        """What texts that are drawn may be nearer to."""
        own, other = (self.own.forward[1], self.bad[1]), (self.other.forward[1], self.other_bad)
        return Choices(self.context, own, other)


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
        items = read_all(config)
        for item in items:
            _check_pair(item)
        good = [good_and_bad(item)[0] for item in items]
        others = dealt_among(
            items, good, [len(tokenizer.encode_following(text)) for text in good], "good texts",
            "the null control needs them; take items of more sources, or give each its own text",
        )  # fmt: skip
        return [
            self._task(item, items[k], tokenizer, max_positions)
            for item, k in zip(items, others, strict=True)
        ]

    def _task(
        self, item: Item, donor: Item, tokenizer: Tokenizer, max_positions: int
    ) -> Task[Texts]:
        (good, bad), (other, other_bad) = good_and_bad(item), good_and_bad(donor)
        with_other = f"{item.where} (with a text of {donor.where})"
        of_bad = encode(tokenizer, item.context, bad, max_positions, item.where)
        texts = Texts(
            own=both_ways(tokenizer, item.context, good, max_positions, item.where),
            other=both_ways(tokenizer, item.context, other, max_positions, with_other),
            bad=of_bad,
            bad_alone=(tokenizer.null_ids, of_bad[1]),
            other_bad=encode(tokenizer, item.context, other_bad, max_positions, with_other)[1],
        )  # fmt: skip
        choices, drawing = texts.choices, self._drawing
        longest = max(map(len, (*choices.own, *choices.other)))
        n_tokens = len(texts.context) + drawing.max_tokens + longest
        if n_tokens > max_positions:
            raise DataError(
                f"expected at most {max_positions} tokens of context, drawn text and option, got "
                f"up to {n_tokens}",
                where=item.where, hint="give a smaller --max-tokens, or shorten the context",
            )  # fmt: skip
        n_fed_by_draws = drawing.n_fed(texts.context)
        n_fed_by_draws += choices.n_fed(drawing.n_samples, drawing.max_tokens)
        return Task(
            id=item.id,
            group=item.group,
            source_id=item.labels.get("source_id"),
            key=digest_json([full_key(item), other, other_bad]),
            n_tokens=n_fed(texts.pairs) + n_fed_by_draws,
            content=texts,
        )

    def compute(
        self, engine: DecoderEngine, tasks: Sequence[Task[Texts]], model: Asked
    ) -> list[DualityRow]:
        """Score each item's texts both ways; draw texts after each context, and score them."""
        found = score_sequences(engine, (pair for task in tasks for pair in task.content.pairs))
        drawn, free = draw(engine, [task.content.context for task in tasks], self._drawing)
        nearer = nearer_shares(engine, [task.content.choices for task in tasks], free)
        return [
            DualityRow(
                **task.labels(model),
                **scored(task.content, found),
                nearer_shares=shares,
                context_key=digest_json(task.content.context),
                n_texts=self._drawing.n_samples,
                n_tokens=task.n_tokens,
                **asdict(drawn[task.content.context]),
            )
            for task, shares in zip(tasks, nearer, strict=True)
        ]

    def result(self, rows: RowsByModel[DualityRow]) -> StudyResult:
        """Test each part against its null control."""
        base = rows[None]
        parts = [part(rows) for part in OUTCOMES]
        return StudyResult(
            study=self.name, claim=CLAIM, null_control=NULL, caution=CAUTION, n_items=len(base),
            n_tokens=sum(row.n_tokens for row in base),
            effects=tuple(effect for found, _ in parts for effect in found),
            findings=tuple(one for _, said in parts for one in said), notes=_notes(rows),
            panels=(*PANELS, NAMES, PANEL),
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


def _notes(rows: RowsByModel[DualityRow]) -> tuple[str, ...]:
    if len(rows) > 1:
        return ()
    return ("Without an adapter nothing moves: transfer is not asked.",)
