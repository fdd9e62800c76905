"""Models read from their folders of scores, each under a name of its own."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from cqa.errors import ConfigError, DataError
from cqa.family import Family, read_family
from cqa.files import read_json
from cqa.schema.compared import System
from cqa.schema.letters import LettersMeta
from cqa.schema.meta import ScoredModel, ScoreSettings
from cqa.schema.row_forms import each_row
from cqa.schema.rows import CHOOSERS, ItemRow
from cqa.score_folder import LETTERS, LETTERS_META, META, read_letters
from cqa.stats.information import BIT, place_of_largest, softmax
from cqa.text import listed, named, own_parts

OF_LOGP = ("sum", "byte", "pmi")
BASE = "base"


@dataclass(frozen=True, slots=True)
class ItemValues:
    """One item under one model."""

    group: str
    source_id: str | None
    answer: int | None  # None for a continuation
    logp_nats: tuple[float, ...]  # S(x|y) of every option; empty of a choice, as are the next two
    n_tokens: tuple[int, ...]
    n_bytes: tuple[int, ...]
    shares: dict[str, tuple[float, ...]]  # softmax over the options, by reading

    @property
    def right(self) -> int:
        """The place of the right option; of a continuation that of its one text."""
        return self.answer or 0

    @property
    def is_first(self) -> dict[str, bool]:
        """Whether the right option has the largest share, the earliest among equals."""
        return {
            reading: place_of_largest(shares) == self.answer
            for reading, shares in self.shares.items()
        }


@dataclass(frozen=True, slots=True)
class Scored:
    """A model, its items by their key, and why it lacks others."""

    system: System
    adapter_digest: str | None
    items: dict[str, ItemValues]
    ids: dict[str, str]  # by key
    left_out: dict[str, str]  # reason by id


def read_systems(folders: Sequence[Path], models: Collection[str] = ()) -> list[Scored]:
    """Read models from folders of scores, in the order of the folders and of their models.

    Args:
        folders: What `cqa-fast score` or `cqa-fast letters` wrote.
        models: Names of the models to take of each folder, `base` for the base; all if empty.

    Raises:
        ConfigError: A folder comes twice, or no model is of such a name.
        DataError: A folder is damaged.
    """
    # unlike `Path.resolve`, of links that loop too
    resolved = [Path(os.path.realpath(folder)) for folder in folders]
    for folder, path in zip(folders, resolved, strict=True):
        if resolved.count(path) > 1:
            raise ConfigError("expected each folder once, got it twice", where=str(folder))
    found = [
        scored
        for folder, path in zip(folders, resolved, strict=True)
        for scored in _systems_of(folder, str(Path(*next(own_parts(path, resolved)))))
    ]
    known = {scored.system.adapter or BASE for scored in found}
    for name in models:
        if name not in known:
            raise ConfigError(
                f"expected models that a folder has scored, got: {name}",
                hint=f"they have {listed(sorted(known))}",
            )
    return [s for s in found if not models or (s.system.adapter or BASE) in models]


def _systems_of(folder: Path, name: str) -> Iterator[Scored]:
    if (folder / LETTERS_META).is_file():
        yield _chat(folder, name)
        return
    if not (folder / META).is_file():
        missing = f"one without {META}" if folder.is_dir() else "no such folder"
        raise DataError(
            f"expected a folder of scores or of letters, got {missing}",
            where=str(folder),
            hint="cqa-fast score writes the one, cqa-fast letters the other",
        )
    family = read_family(folder)
    items: dict[str | None, dict[str, ItemValues]] = {}
    ids: dict[str, str] = {}
    for row in each_row(family.rows()):
        if row.id not in family.items.copies and row.group != CHOOSERS:
            items.setdefault(row.adapter, {})[row.full_key] = item_values(row)
            ids[row.full_key] = row.id
    too_long = dict.fromkeys(family.meta.too_long, "longer than the model's positions")
    unscored = {key: why.reason for key, why in family.meta.unscored.items()}
    for called, model in family.models.items():
        if called not in items:
            continue
        yield Scored(
            _system(folder, name, called, model, family),
            model.adapter_digest,
            items[called],
            ids,
            too_long | unscored,
        )


def _system(
    folder: Path, name: str, adapter: str | None, model: ScoredModel, family: Family
) -> System:
    settings = ScoreSettings.from_json(family.meta.settings, str(folder / META))
    return System(
        name=named(name if adapter is None else f"{name}/{adapter}"),
        folder=str(folder),
        model=settings.model,
        adapter=adapter,
        engine=model.engine,
        dtype=model.dtype,
        batch_invariant=model.batch_invariant,
        model_digest=model.model,
        tokenizer_digest=model.tokenizer,
        template_digest=model.template,
        null_ids=model.null_ids,
        readings=OF_LOGP,
    )


def _chat(folder: Path, name: str) -> Scored:
    """Read what a chat server chose."""
    path = folder / LETTERS_META
    meta = LettersMeta.from_json(read_json(path), str(path))
    items, ids, left_out = {}, {}, {}
    for row in read_letters(folder / LETTERS):
        if row.key != meta.key:
            continue
        if row.unscored is not None:
            left_out[row.id] = row.unscored
            continue
        ids[row.full_key] = row.id
        items[row.full_key] = ItemValues(
            row.group, row.source_id, row.answer, (), (), (), {"letter": row.shares}
        )
    system = System(
        name=named(name), folder=str(folder), model=meta.model, adapter=None, engine="chat",
        dtype="n/a", batch_invariant=False, model_digest=None, tokenizer_digest=None,
        template_digest=None, null_ids=None, readings=("letter",),
    )  # fmt: skip
    return Scored(system, None, items, ids, left_out)


def item_values(row: ItemRow) -> ItemValues:
    """Reduce a row of scores.jsonl to what a comparison needs."""
    given = [option.logp_given_context_nats for option in row.options]
    n_bytes = tuple(option.n_bytes for option in row.options)
    of_reading = {
        "sum": given,
        "byte": [s / n for s, n in zip(given, n_bytes, strict=True)],
        "pmi": [option.pmi_nats for option in row.options],
    }
    is_choice = row.answer is not None
    return ItemValues(
        group=row.group,
        source_id=row.source_id,
        answer=row.answer,
        logp_nats=tuple(given),
        n_tokens=tuple(option.n_tokens for option in row.options),
        n_bytes=n_bytes,
        shares={name: tuple(softmax(v)) for name, v in of_reading.items()} if is_choice else {},
    )


def bits_per_byte(items: Sequence[ItemValues]) -> float | None:
    """Return the bits a byte of the right options or the texts; None of what a chat chose."""
    if not all(item.logp_nats for item in items):
        return None
    bits = -sum(item.logp_nats[item.right] for item in items) / BIT
    return bits / sum(item.n_bytes[item.right] for item in items)


def require_two(systems: Sequence[Scored]) -> None:
    """Refuse what is no comparison.

    Raises:
        DataError: There are fewer than two models.
    """
    if len(systems) < 2:
        raise DataError(
            f"expected two models or more to compare, got {len(systems)}",
            hint="name several folders of scores, or one with adapters",
        )
