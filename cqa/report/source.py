"""What a report is made from: the files of a scoring run and, where given, of a training run."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from cqa.data.hub import data_files, is_hub
from cqa.data.overlap import Overlap, TrainedTexts
from cqa.data.samples import read_samples
from cqa.errors import DataError
from cqa.files import read_json
from cqa.identity import digest_bytes
from cqa.run_folder import RUN, read_losses
from cqa.schema.provenance import Provenance, provenance
from cqa.schema.rows import CHOOSERS, ItemRow, ItemText
from cqa.score_folder import ITEMS, META, SCORES, copies, read_rows, read_texts
from cqa.stats.config import AnalysisConfig
from cqa.stats.summary import Scores

Row = dict[str, Any]


@dataclass(slots=True)
class TrainingRun:
    """What run.json and log.jsonl say of the training."""

    folder: Path
    settings: Row
    facts: Row
    loss_nats: dict[int, float]  # mean training loss by epoch
    eval_loss_nats: dict[int, float]
    trained: TrainedTexts | None = None  # None where the file is not available as it was


@dataclass(slots=True)
class Source:
    """A folder of scores, read once; rows of single models are read again when they are needed."""

    folder: Path
    meta: Row
    items: dict[str, ItemText]
    scores: Scores
    adapters: list[str] = field(default_factory=list)
    run: TrainingRun | None = None
    analysis: AnalysisConfig | None = None  # what the statistics were told

    @property
    def made(self) -> dict[str, Provenance]:
        """What the adapters say of their training."""
        return {
            model["adapter"]: provenance(model.get("adapter_origin"))
            for model in self.meta["models"]
            if model["adapter"] is not None
        }

    def rows(self, adapter: str | None) -> Iterator[ItemRow]:
        """Yield the rows of the base (None) or of one adapter, those that are reported."""
        names = {k: name for k, name in _names(self.meta).items() if name == adapter}
        found = _rows(self.folder / SCORES, names)
        return (r for r in found if r.group != CHOOSERS and r.id not in self.scores.copies)

    def leaked(self) -> dict[str, Overlap] | None:
        """Return the items whose texts are trained on, whole or in part, if that is known."""
        if self.run is None or self.run.trained is None:
            return None
        trained = self.run.trained
        found = {
            item_id: trained.overlap((item.context, *item.options))
            for item_id, item in self.items.items()
        }
        return {item_id: overlap for item_id, overlap in found.items() if overlap is not None}


def read_source(folder: Path, run: Path | None = None) -> Source:
    """Read a folder that `cqa-fast score` wrote.

    Raises:
        DataError: A file is missing or damaged, or holds no scored item.
    """
    for name in (SCORES, ITEMS, META):
        if not (folder / name).is_file():
            raise DataError(
                f"expected a folder of scores with {name}, got one without",
                where=str(folder),
                hint="cqa-fast score writes it; a stopped run is finished by the same command",
            )
    meta = read_json(folder / META)
    names = _adapters(meta, folder / META)
    texts = list(read_texts(folder / ITEMS))
    scores = Scores(_rows(folder / SCORES, _names(meta)), again := copies(texts))
    items = {t.id: t for t in texts if t.group != CHOOSERS and t.id not in again}
    models_of = [set(m) for m in scores.items.values()] + [set(m) for m in scores.texts.values()]
    if not models_of or any(None not in found for found in models_of):
        raise DataError("expected items scored under the base, got none", where=str(folder))
    source = Source(folder, meta, items, scores, [name for name in names if name is not None])
    source.run = read_run(run) if run else None
    return source


def _names(meta: Row) -> dict[str, str | None]:
    """Return what the last command called each model, by model key."""
    return {model["model_key"]: model["adapter"] for model in meta["models"]}


def _rows(path: Path, names: Mapping[str, str | None]) -> Iterator[ItemRow]:
    """Yield the rows of some models under these names: an earlier command may have used others."""
    for row in read_rows(path):
        if row.model_key in names:
            yield replace(row, adapter=names[row.model_key])


def _adapters(meta: Row, path: Path) -> list[str | None]:
    """Return what the models of meta.json are called, the base None, all that is used checked."""
    settings = _of(meta, "settings", dict, path)
    names: list[str | None] = []
    for model in _of(meta, "models", list, path):
        if not isinstance(model, dict):
            raise DataError("expected models to be objects, got another", where=str(path))
        _of(model, "model_key", str, path)
        names.append(_of(model, "adapter", str | None, path))
        if "adapter_origin" in model:
            _of(model, "adapter_origin", dict | None, path)
    if None not in names:
        raise DataError("expected the base among the models, got none", where=str(path))
    _of(meta, "versions", dict, path)
    if "too_long" in meta:
        left_out = _of(meta, "too_long", dict, path)
        if not all(isinstance(group, str) for group in left_out.values()):
            raise DataError("expected `too_long` to give the group of each item", where=str(path))
        _of(meta, "max_positions", int, path)
    for key in ("n_contexts_ending_in_space", "n_options_lacking_space"):
        if key in meta:
            _of(meta, key, int, path)
    for key, kind in (
        ("model", str),
        ("cutoff", str | None),
        ("margin", int | float | None),
        ("choose", str),
    ):
        if key in settings:
            _of(settings, key, kind, path)
    return names


def _of(record: Row, key: str, kind: Any, where: Path | str) -> Any:
    """Return a field that must be there and of a type."""
    if key not in record:
        raise DataError(f"expected `{key}`, got none", where=str(where))
    if not isinstance(record[key], kind):
        raise DataError(f"expected another `{key}`, got: {record[key]!r:.80}", where=str(where))
    return record[key]


def read_run(folder: Path) -> TrainingRun:
    """Read a training run's settings and losses, and its texts where the file is available.

    Raises:
        DataError: run.json or log.jsonl is missing or damaged.
    """
    facts = read_json(folder / RUN)
    settings = _of(facts, "settings", dict, folder / RUN)
    data = Path(_of(settings, "data", str, folder / RUN))
    losses, trained = read_losses(folder), _trained(data, settings, facts)
    return TrainingRun(folder, settings, facts, losses.training, losses.held_out, trained)


def _trained(data: Path, settings: Row, facts: Row) -> TrainedTexts | None:
    """Return the texts trained on; None where the file was moved or is another one by now."""
    held_out = Path(str(settings.get("validation", "")))
    try:
        files = data_files(data)
        if held_out.is_file() or is_hub(held_out):
            files += data_files(held_out)
        same = digest_bytes(files) == facts.get("data_digest")
        return TrainedTexts(read_samples(data, settings.get("columns") or ())) if same else None
    except (DataError, OSError, ValueError):
        return None
