"""Works and their readers: I(x; y_a) of works and described audiences (section 6.4).

    I(x; y_a) = S(x | y_a, context) - S(x | context)      nats, of each wording of the audience a

A description raises every work or none, and a work is moved by every description or by few. What is
left when both are taken away is the fit of this work to this reader: the residual. Whether it is
the reader's, or only a wording's, is what the wordings dealt to other audiences tell.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from matplotlib.figure import Figure

from cqa.claims.claim import Asked, RowsByModel, Task
from cqa.claims.effects import findings
from cqa.claims.fit.config import FitConfig
from cqa.claims.fit.figure import draw_residuals
from cqa.claims.fit.inputs import Audience, Work, read_audiences, read_works
from cqa.claims.fit.measures import FitResult, FitRow, found_in, notes_of, placed_in
from cqa.claims.sequences import SEPARATOR, Pair, conditioned, encode, n_fed, score_sequences
from cqa.data.jsonl import check_columns
from cqa.data.tokenizer import Tokenizer
from cqa.schema.claims import StudyResult
from cqa.score.decoder_engine import DecoderEngine
from cqa.score_folder import digest_json

PANELS = (("information", "nobody", "reader"), ("reader_change",))
CLAIM = "Works fit some readers better than others, beyond what each work and each description adds"
NULL = (
    "wordings dealt to other audiences; and a description of nobody of near length, or the words "
    "of each wording shuffled where no audience is nobody"
)
CAUTION = (
    "A residual is no reader: wordings of one audience that share a subject with some works have "
    "one too. It is of these works and wordings; three wordings drawn anew give intervals of ranks "
    "that are too narrow. Per byte decides, as in sums a long work answers every wording more. A "
    "change of fit has no direction: works move by the audience, not toward it."
)


@dataclass(frozen=True, slots=True)
class Meeting:
    """A work and all audiences."""

    work: Work
    audiences: tuple[Audience, ...]


class Fit:
    """See the module."""

    name = "fit"
    row = FitRow
    code = ("claims/fit", "claims/sequences.py", "claims/dealing.py")
    _tokenizer: Tokenizer
    _max_positions: int

    def __init__(self, config: FitConfig) -> None:
        self._config = config

    def inputs(self) -> Mapping[str, Any]:
        """Return what decides a row besides its task."""
        return {"separator": SEPARATOR}

    def tasks(self, tokenizer: Tokenizer, max_positions: int) -> list[Task[Meeting]]:
        """Read works and audiences, and give every wording a description of nobody."""
        self._tokenizer, self._max_positions = tokenizer, max_positions
        files = (*self._config.works, *self._config.audiences)
        check_columns(files, self._config.columns)
        works = read_works(self._config.works, self._config.columns)
        audiences = read_audiences(self._config.audiences, self._config.columns, tokenizer)
        described = [[a.id, a.wordings, a.nobody] for a in audiences]
        tasks = []
        for work in works:
            meeting = Meeting(work, tuple(audiences))
            tasks.append(
                Task(
                    id=work.id,
                    group=work.group,
                    source_id=work.labels.get("source_id"),
                    key=digest_json([work.id, work.text, work.context, work.labels, described]),
                    n_tokens=n_fed(self._pairs(meeting).values()),
                    content=meeting,
                )
            )
        return tasks

    def _pairs(self, meeting: Meeting) -> dict[str | None, Pair]:
        """Encode a work after every description, and after none, its key None.

        Again for every model: of many works and wordings they would be too many to keep.
        """
        work = meeting.work
        found: dict[str | None, Pair] = {}
        for audience in meeting.audiences:
            for text in (*audience.wordings, *audience.nobody):
                self._tokenizer.refuse_special(text, audience.where)
                where = f"{work.where} (after {audience.where})"
                found[text] = self._encoded(conditioned([text], work.context), work.text, where)
        _, text_ids = next(iter(found.values()))
        found[None] = (
            self._encoded(work.context, work.text, work.where)
            if work.context
            else (self._tokenizer.null_ids, text_ids)
        )
        return found

    def _encoded(self, context: str, text: str, where: str) -> Pair:
        return encode(self._tokenizer, context, text, self._max_positions, where)

    def compute(
        self, engine: DecoderEngine, tasks: Sequence[Task[Meeting]], model: Asked
    ) -> list[FitRow]:
        """Score each work after every description."""
        pairs = [self._pairs(task.content) for task in tasks]
        found = score_sequences(engine, (pair for held in pairs for pair in held.values()))
        rows = []
        for task, held in zip(tasks, pairs, strict=True):
            logp = {text: found[pair].total for text, pair in held.items()}
            audiences = task.content.audiences
            rows.append(
                FitRow(
                    **task.labels(model),
                    logp_nats=logp[None],
                    information_nats={
                        a.id: tuple(logp[text] - logp[None] for text in a.wordings)
                        for a in audiences
                    },
                    nobody_nats={
                        a.id: tuple(logp[text] - logp[None] for text in a.nobody) for a in audiences
                    },
                    nobody_is_shuffled=audiences[0].is_shuffled,
                    n_bytes=len(task.content.work.text.encode()),
                    n_tokens=task.n_tokens,
                )
            )
        return rows

    def result(self, rows: RowsByModel[FitRow]) -> FitResult:
        """Test the residual against wordings dealt to others, readers against nobody."""
        base = rows[None]
        found = found_in(rows)
        return FitResult(
            study=self.name, claim=CLAIM, null_control=NULL, caution=CAUTION, n_items=len(base),
            n_tokens=sum(row.n_tokens for row in base), effects=tuple(found),
            findings=tuple(
                findings("fit", found, "fit") + findings("fit_changed", found, "fit_change")
                + findings("reader", found, "reader")
                + findings("reader_changed", found, "reader_change")
            ),
            notes=notes_of(rows), panels=PANELS, placed=tuple(placed_in(rows)),
        )  # fmt: skip

    def draw(self, rows: RowsByModel[FitRow], result: StudyResult) -> Figure:
        """Draw the residual of every work and audience."""
        assert isinstance(result, FitResult)
        return draw_residuals(result.placed)
