"""Reading and writing as one thing: is what is drawn what is scored (section 6.5)?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from matplotlib.figure import Figure

from cqa.claims.claim import Asked, RowsByModel, Task
from cqa.claims.duality.config import DualityConfig
from cqa.claims.duality.draws import CANDIDATES, LAWS, Drawing, draw
from cqa.claims.duality.row import DualityRow
from cqa.claims.duality.sampled import NAMES, drawn_outcome
from cqa.claims.sequences import encode
from cqa.data.items import Item, read_items
from cqa.data.tokenizer import Ids, Tokenizer
from cqa.data.unique import each_once, file_line_id
from cqa.errors import DataError
from cqa.model.checkpoint import locate
from cqa.report.effect_figure import draw_effects
from cqa.schema.claims import StudyResult
from cqa.score.decoder_engine import DecoderEngine
from cqa.score.generated import end_ids
from cqa.score_folder import digest_json, full_key

CLAIM = "Understanding a text and producing it are one thing: what a model draws is what it scores"
NULL = "texts drawn at T = 0.9 and with top-p 0.95, which the same tests have to reject"
CAUTION = (
    "That what is drawn is what is scored is true of every sampler that does what it says, trained "
    "or not: it says nothing of how good a text is."
)


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

    def tasks(self, tokenizer: Tokenizer, max_positions: int) -> list[Task[Ids]]:
        """Read the items."""
        config = self._config
        self._drawing = Drawing(
            config.samples, config.max_tokens, config.seed,
            end_ids(locate(config.model), tokenizer),
        )  # fmt: skip
        records = read_items(config.pairs, columns=config.columns)
        items = list(each_once(records, name=file_line_id, columns=config.columns))
        return [self._task(item, tokenizer, max_positions) for item in items]

    def _task(self, item: Item, tokenizer: Tokenizer, max_positions: int) -> Task[Ids]:
        if len(item.options) != 2:
            raise DataError(
                f"expected one good and one bad text, got {len(item.options)} texts",
                where=item.where, hint="write one line for each bad text",
            )  # fmt: skip
        good = item.options[item.answer or 0]
        context, _ = encode(tokenizer, item.context, good, max_positions, item.where)
        return Task(
            id=item.id,
            group=item.group,
            source_id=item.labels.get("source_id"),
            key=digest_json([full_key(item)]),
            n_tokens=self._drawing.n_fed(context),
            content=context,
        )

    def compute(
        self, engine: DecoderEngine, tasks: Sequence[Task[Ids]], model: Asked
    ) -> list[DualityRow]:
        """Draw texts after each context, and score them."""
        drawn = draw(engine, [task.content for task in tasks], self._drawing)
        return [
            DualityRow(
                **task.labels(model),
                context_key=digest_json(task.content),
                n_texts=self._drawing.n_samples,
                n_tokens=task.n_tokens,
                **asdict(drawn[task.content]),
            )
            for task in tasks
        ]

    def result(self, rows: RowsByModel[DualityRow]) -> StudyResult:
        """Test draws against scores."""
        base = rows[None]
        found, said = drawn_outcome(rows)
        return StudyResult(
            study=self.name, claim=CLAIM, null_control=NULL, caution=CAUTION, n_items=len(base),
            n_tokens=sum(row.n_tokens for row in base), effects=tuple(found),
            findings=tuple(said), notes=(), panels=(NAMES,),
        )  # fmt: skip

    def draw(self, rows: RowsByModel[DualityRow], result: StudyResult) -> Figure:
        """Draw the surplus of surprise under the three laws."""
        return draw_effects(result)
