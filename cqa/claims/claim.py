"""What a study is: tasks from its files, rows from a model, and a result from the rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar

from matplotlib.figure import Figure

from cqa.data.tokenizer import Tokenizer
from cqa.schema.claims import StudyResult, StudyRow
from cqa.score.decoder_engine import DecoderEngine

Content = TypeVar("Content")
Row = TypeVar("Row", bound=StudyRow)
Row_co = TypeVar("Row_co", bound=StudyRow, covariant=True)
RowsByModel = Mapping[str | None, Sequence[Row]]  # the base (None) first; items in their order


@dataclass(frozen=True, slots=True)
class Asked:
    """The base (None) or an adapter, as rows name it."""

    model_key: str
    adapter: str | None


@dataclass(frozen=True, slots=True)
class Task(Generic[Content]):
    """What one row of a model takes."""

    id: str
    group: str
    source_id: str | None
    key: str  # digest of all that the input says of it
    n_tokens: int  # fed for one model, for the cost
    content: Content

    def labels(self, model: Asked) -> dict[str, Any]:
        """Return the fields that every row begins with."""
        return {
            "id": self.id, "group": self.group, "source_id": self.source_id,
            "task_key": self.key, "model_key": model.model_key, "adapter": model.adapter,
        }  # fmt: skip


class Claim(Protocol[Content, Row]):
    """One of the paper's claims with its null control.

    Attributes:
        name: Of the command.
        row: The class of its rows.
        code: Files of the package whose change makes earlier rows another study's.
    """

    name: str
    row: type[Row]
    code: tuple[str, ...]

    def inputs(self) -> Mapping[str, Any]:
        """Return the settings that decide a row besides its task; part of every `model_key`."""

    def tasks(self, tokenizer: Tokenizer, max_positions: int) -> list[Task[Content]]:
        """Read and check all input.

        Raises:
            DataError: A line is malformed or too long.
        """

    def compute(
        self, engine: DecoderEngine, tasks: Sequence[Task[Content]], model: Asked
    ) -> list[Row]:
        """Return the row of each task under the model that the engine has in use."""

    def result(self, rows: RowsByModel[Row]) -> StudyResult:
        """Return what the rows come to."""

    def draw(self, rows: RowsByModel[Row], result: StudyResult) -> Figure:
        """Draw the study's figure."""
