"""What a report is made from: the files of a scoring run and, where known, of a training run."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cqa.data.hub import data_files, is_hub
from cqa.data.overlap import Overlap, TrainedTexts
from cqa.data.samples import read_samples
from cqa.errors import DataError
from cqa.family import Family, read_family
from cqa.files import read_json
from cqa.identity import digest_bytes
from cqa.model.adapter_files import adapter_digest, is_adapter
from cqa.run_folder import RUN, epoch_folders, read_losses
from cqa.schema.meta import Meta, ScoreSettings
from cqa.schema.provenance import Provenance
from cqa.schema.record import Record
from cqa.schema.row_forms import Block, WrittenRows, each_row
from cqa.schema.rows import CHOOSERS, ItemRow, ItemText
from cqa.schema.summary import NotInFamily
from cqa.score_folder import ITEMS, META, SCORES
from cqa.stats.config import AnalysisConfig
from cqa.stats.summary import Scores

Tap = Callable[[ItemRow | Block], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class DataSettings(Record):
    """What of a training run's settings says which texts were learned."""

    data: tuple[str, ...]
    validation: str | None
    columns: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class RunFacts(Record):
    """What a report says of run.json."""

    settings: dict[str, Any]
    n_train: int | None
    n_validation: int | None
    total_steps: int | None
    data_digest: str | None


@dataclass(frozen=True, slots=True)
class TrainingRun:
    """What run.json and log.jsonl say of the training."""

    folder: Path
    facts: RunFacts
    data: DataSettings
    loss_nats: dict[int, float]  # mean training loss by epoch
    eval_loss_nats: dict[int, float]
    scored: dict[str, int]  # epoch by the name of its adapter among the scores
    trained: TrainedTexts | None  # None where the file is not available as it was


@dataclass(slots=True)
class Source:
    """A folder of scores, read once; rows of single models are read again when they are needed."""

    family: Family
    settings: ScoreSettings
    scores: Scores
    n_rows: Mapping[str | None, int]  # by name of the model, copies left out
    adapters: list[str] = field(default_factory=list)
    run: TrainingRun | None = None
    run_missing: str | None = None  # why the run that scoring named is not used
    analysis: AnalysisConfig | None = None  # what the statistics were told

    @property
    def n_items(self) -> int:
        """How many items are reported."""
        return self.family.items.n_reported

    @property
    def made(self) -> dict[str, Provenance]:
        """What the adapters say of their training."""
        return self.family.made

    @property
    def meta(self) -> Meta:
        """What made the rows."""
        return self.family.meta

    @property
    def not_in_family(self) -> tuple[NotInFamily, ...]:
        """Adapters that were scored on these items in a way that does not compare."""
        return self.family.not_in_family

    def rows(
        self, *names: str | None, ids: Collection[str] | None = None
    ) -> Iterator[ItemRow | Block]:
        """Yield the rows that are reported of the base (None) and adapters, one after the other.

        Args:
            names: Of the models.
            ids: Of the items that are wanted, all of whose rows are yielded, and others as may be;
                by default all.
        """
        if self._come_once(names):
            yield from _of_reported(self.family.rows_again(names, ids), self.scores.copies)
            return
        for name in names:
            found = _of_reported(self.family.rows_again([name], ids), self.scores.copies)
            yield from {row.id: row for row in each_row(found)}.values()  # of two the last counts

    def came_as_rows(self, *names: str | None) -> bool:
        """Whether `tap` of `read_source` had the rows of all models as `rows` yields them."""
        return self._come_once(names) and self.family.came_in_turn(names)

    def _come_once(self, names: Sequence[str | None]) -> bool:
        return all(self.n_rows.get(name, 0) <= self.scores.n_items(name) for name in names)

    def texts(self, ids: Collection[str] | None = None) -> Iterator[ItemText]:
        """Yield the texts of the items that are reported, or of some of them."""
        return self.family.reported_texts(ids)

    def leaked(self) -> dict[str, Overlap] | None:
        """Return the items whose texts are trained on, whole or in part, if that is known."""
        if self.run is None or self.run.trained is None:
            return None
        trained = self.run.trained
        found = {item.id: trained.overlap((item.context, *item.options)) for item in self.texts()}
        return {item_id: overlap for item_id, overlap in found.items() if overlap is not None}


def read_source(folder: Path, run: Path | None = None, tap: Tap | None = None) -> Source:
    """Read a folder that `cqa-fast score` wrote.

    Args:
        folder: The folder.
        run: The training run whose adapters were scored; by default the one that scoring named.
        tap: Is given the rows that are reported, of all models, as they stand in the file.

    Raises:
        DataError: A file is missing or damaged, holds no scored item, or is of another run.
    """
    for name in (SCORES, ITEMS, META):
        if not (folder / name).is_file():
            got = "one without" if folder.is_dir() else "a file" if folder.exists() else "none"
            hint = "cqa-fast score writes it; a stopped run is finished by the same command"
            if (folder / RUN).is_file():
                got, hint = "a training run", "score it; --run names it beside its scores"
            raise DataError(
                f"expected a folder of scores with {name}, got {got}", where=str(folder), hint=hint
            )
    family = read_family(folder)
    settings = ScoreSettings.from_json(family.meta.settings, f"{folder / META}: settings")
    again = family.items.copies
    n_rows = Counter[str | None]()
    rows = _counted(family.rows(), again, n_rows)
    if tap is not None:
        rows = _shown(rows, again, tap)
    scores = Scores(rows, again, family.order)
    groups = (*scores.items.values(), scores.choosers)
    n_base = sum(len(models[None]) for models in groups if None in models)
    n_base += sum(scores.n_copies.values())
    n_base += sum(len(models.get(None, {})) for models in scores.texts.values())
    if n_base < family.n_items or not n_base:
        raise DataError(
            f"expected {family.n_items} items scored under the base, got {n_base}",
            where=str(folder),
            hint="scoring was stopped; the same cqa-fast score command continues it",
        )
    adapters = [name for name in family.keys if name is not None]
    source = Source(family, settings, scores, n_rows, adapters)
    if run is not None:
        source.run = read_run(run, family.digests)
    elif len(settings.run) == 1 and adapters:
        source.run, source.run_missing = _named_run(Path(settings.run[0]), family.digests)
    return source


def _counted(
    rows: Iterable[ItemRow | Block], copies: Collection[str], n_rows: Counter[str | None]
) -> Iterator[ItemRow | Block]:
    for found in rows:
        if isinstance(found, ItemRow):
            n_rows[found.adapter] += found.id not in copies
        else:
            n_rows[found.adapter] += sum(map(len, found.parts))
            if copies:
                ids = (name for part in found.parts for name in part.names("id"))
                n_rows[found.adapter] -= sum(name in copies for name in ids)
        yield found


def _shown(
    rows: Iterable[ItemRow | Block], copies: Collection[str], tap: Tap
) -> Iterator[ItemRow | Block]:
    for found in rows:
        for reported in _of_reported([found], copies):
            tap(reported)
        yield found


def _of_reported(
    rows: Iterable[ItemRow | Block], copies: Collection[str]
) -> Iterator[ItemRow | Block]:
    def are_reported(rows: WrittenRows) -> list[bool]:
        groups = rows.names("group")
        if not copies:
            return [group != CHOOSERS for group in groups]
        pairs = zip(rows.names("id"), groups, strict=True)
        return [name not in copies and group != CHOOSERS for name, group in pairs]

    for found in rows:
        if isinstance(found, ItemRow):
            if found.id not in copies and found.group != CHOOSERS:
                yield found
        elif (block := found.only(are_reported)) is not None:
            yield block


def _named_run(folder: Path, digests: Mapping[str, str]) -> tuple[TrainingRun | None, str | None]:
    """Return the run that scoring named, or why it is not used."""
    if not (folder / RUN).is_file():
        return None, f"{folder} is not there"
    try:
        return read_run(folder, digests), None
    except DataError as error:
        return None, str(error).partition("\n")[0]


def read_run(folder: Path, digests: Mapping[str, str]) -> TrainingRun:
    """Read a training run's settings and losses, and its texts where the file is available.

    Args:
        folder: The run.
        digests: Of the scored adapters, by their names; without any the run tells of its texts.

    Raises:
        DataError: run.json or log.jsonl is missing or damaged, or none of the adapters is its own.
    """
    path = folder / RUN
    facts = RunFacts.from_json(read_json(path), str(path))
    settings = facts.settings
    if isinstance(one := settings.get("data"), str):  # a run of an earlier version
        settings = settings | {"data": [one]}
    data = DataSettings.from_json(settings, f"{path}: settings")
    names = {digest: name for name, digest in digests.items()}
    scored = {
        names[digest]: epoch
        for epoch, paths in epoch_folders(folder).items()
        for adapter in paths
        if is_adapter(adapter) and (digest := adapter_digest(adapter)) in names
    }
    losses = read_losses(folder)
    if digests and not scored:
        raise DataError(
            "expected the run whose adapters were scored, got one that has none of them",
            where=str(folder),
            hint="name the run that score was given, or leave out --run",
        )
    trained = _trained(data, facts.data_digest)
    return TrainingRun(folder, facts, data, losses.training, losses.held_out, scored, trained)


def _trained(settings: DataSettings, digest: str | None) -> TrainedTexts | None:
    """Return the texts trained on; None where the file was moved or is another one by now."""
    data, held_out = [Path(path) for path in settings.data], Path(settings.validation or "")
    if any(path.exists() and not path.is_file() for path in data):  # a pipe would be waited for
        return None
    try:
        files = data_files(*data)
        if held_out.is_file() or is_hub(held_out):
            files += data_files(held_out)
        same = digest_bytes(files) == digest
        return TrainedTexts(read_samples(*data, columns=settings.columns)) if same else None
    except (DataError, OSError, ValueError):
        return None
