"""The shards that are to be merged: opened, and checked against each other."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cqa.config import command_line, given_settings, resolve
from cqa.data.jsonl import parse_object
from cqa.errors import ConfigError, DataError, ModelError
from cqa.files import inside, read_json
from cqa.schema.meta import Meta
from cqa.schema.rows import RejectedItem
from cqa.schema.shard import ShardItems
from cqa.score.config import PrescreenConfig, ScoreConfig
from cqa.score.server_engine import read_capabilities
from cqa.score.shard import Shard, read_shard
from cqa.score.shard_folder import read_shard_items
from cqa.score_folder import META, REJECTED, SHARD, whole_lines
from cqa.server.handshake import MOST_DRIFT_NATS

RANKING = "prescreen.json"  # of a shard of prescreen: its settings, written when all is scored
OF_ONE_SHARD = (  # the settings in which the shards of a job may differ
    "out", "shard", "shard-base", "server", "server-key-env", "concurrency",
)  # fmt: skip
OF_THE_JOB = ("given_digest", "max_positions", "plan", "conversion")  # of meta.json, as the next
OF_THE_MACHINE = ("device", "versions")  # on others a score may have other bits
NAMED = 5  # shards that a message names


@dataclass(frozen=True, slots=True)
class OpenShard:
    """A folder that `--shard` filled."""

    folder: Path
    items: ShardItems
    shard: Shard
    meta: Meta
    settings: dict[str, Any]  # of the command that filled it

    def unfinished(self, got: str) -> DataError:
        """Return the error of a shard that is not complete, with the command that completes it."""
        cls = PrescreenConfig if self.items.of == "prescreen" else ScoreConfig
        name = "prescreen" if self.items.of == "prescreen" else "score"
        hint, command = f"the cqa-fast {name} command that began it continues it", None
        try:
            config = resolve(cls, self.settings, {"out": self.folder})
            hint, command = "continue with", command_line(cls, name, given_settings(config))
        except ConfigError:  # settings of another version
            pass
        return DataError(
            f"expected shard {self.shard} to be complete, got {got}",
            where=str(self.folder), hint=hint, command=command,
        )  # fmt: skip


def open_shards(folders: Sequence[Path]) -> list[OpenShard]:
    """Return shards in the order of their numbers: all K of one job, each once and finished.

    Raises:
        ConfigError: A shard is missing, comes twice, or is of another number of shards.
        DataError: A folder holds no shard, is damaged or unfinished, or is of other items.
        ModelError: A shard was scored with other models, settings, or on another kind of machine.
    """
    shards = [_open(folder) for folder in folders]
    _check_numbers(shards)
    shards.sort(key=lambda shard: shard.shard.number)
    first, *others = shards
    for other in others:
        _check_same_job(first, other)
    return shards


def _open(folder: Path) -> OpenShard:
    if not inside(folder, SHARD).exists():
        raise DataError(
            f"expected a folder that --shard filled, got one without {SHARD}"
            if folder.is_dir()
            else "expected a folder that --shard filled, got no such folder",
            where=str(folder),
        )
    items = read_shard_items(folder)
    path = inside(folder, META)
    if not path.exists():
        raise DataError(
            f"expected shard {items.shard} to be complete, got one of which nothing is scored",
            where=str(folder), hint="the command that began it continues it",
        )  # fmt: skip
    meta = Meta.from_json(read_json(path), str(path))
    opened = OpenShard(folder, items, read_shard(items.shard), meta, meta.settings)
    for model in meta.models:
        if model.seconds is None or model.n_tokens is None:
            raise opened.unfinished("one that was stopped, or goes on")
    if meta.unscored:
        first, why = next(iter(meta.unscored.items()))
        n = len(meta.unscored)
        raise opened.unfinished(f"{n} of its items unscored; `{first}`: {why.reason}")
    left_out = {item.id for item in items.left_out}
    if left_out != meta.too_long.keys() or len(items.rejected) != meta.n_rejected:
        raise DataError(
            f"expected {SHARD} and {META} of one command, got different items left out",
            where=str(folder), hint="a file is damaged; score this shard anew",
        )  # fmt: skip
    if meta.earlier_models:
        raise DataError(
            "expected the rows of one command, got those of models that only an earlier one names",
            where=str(folder),
            hint="give score all adapters in one command, for which nothing is computed again; "
            "after a change of version or settings, score into a new folder",
        )
    if items.of == "prescreen":
        ranking = inside(folder, RANKING)
        settings = read_json(ranking).get("settings") if ranking.exists() else None
        if not isinstance(settings, dict):
            raise opened.unfinished("one that was stopped before its end")
        return OpenShard(folder, items, opened.shard, meta, settings)
    return opened


def _check_numbers(shards: Sequence[OpenShard]) -> None:
    first = shards[0]
    found: dict[int, OpenShard] = {}
    for held in shards:
        if held.shard.count != first.shard.count:
            raise ConfigError(
                f"expected shards of {first.shard.count}, as {first.folder} is, got {held.shard}",
                where=str(held.folder),
            )
        if (twin := found.setdefault(held.shard.number, held)) is not held:
            raise ConfigError(
                f"expected each shard once, got {held.shard} in {twin.folder} too",
                where=str(held.folder),
            )
    count = first.shard.count
    if missing := [str(Shard(n, count)) for n in range(1, count + 1) if n not in found]:
        names = ", ".join(missing[:NAMED]) + (", …" if len(missing) > NAMED else "")
        raise ConfigError(
            f"expected all {count} shards, got {len(found)}, without {names}",
            hint="score the missing ones, and name all folders",
        )


def _check_same_job(first: OpenShard, other: OpenShard) -> None:
    for where, what, hint in _differences(first, other):
        raise ModelError(
            f"expected {what} as in {first.folder}, got another", where=where, hint=hint
        )


def _differences(first: OpenShard, other: OpenShard) -> Iterator[tuple[str, str, str]]:
    """Yield where two shards differ, what in, and what to do about it."""
    where = str(other.folder)
    anew = "score this shard anew with the command of the others, in another folder"
    if first.items.of != other.items.of:
        yield where, f"a shard of {first.items.of}", anew
    for key in OF_THE_JOB:
        if getattr(first.meta, key) != getattr(other.meta, key):
            yield where, {"given_digest": "the items of the job"}.get(key, key), anew
    for key in OF_THE_MACHINE:
        if getattr(first.meta, key) != getattr(other.meta, key):
            yield where, key, f"{anew}, on the kind of machine of the others"
    names = [[m.adapter for m in shard.meta.models] for shard in (first, other)]
    if names[0] != names[1]:
        yield where, "the models", "give the command again with the adapters of the others"
    found = [read_capabilities(shard.folder) for shard in (first, other)]
    if found[0] is not None and found[1] is not None:
        moved = found[1].moved_from(found[0])
        if moved is None or moved > MOST_DRIFT_NATS:
            by = "" if moved is None else f" (a probe moves by {moved:.3g} nats a token)"
            yield (
                where,
                f"the numbers of the server{by}",
                f"{anew}, at a server of the same weights",
            )
    for ours, theirs in zip(first.meta.models, other.meta.models, strict=False):
        if ours.model_key != theirs.model_key:
            differing = ", ".join(ours.differs_from(theirs)) or "bytes"
            yield where, f"{ours.adapter or 'the base'} ({differing})", anew
    again = "give the command again with the settings of the others; nothing is computed again"
    for settings, theirs_too in (
        (first.meta.settings, other.meta.settings),
        (first.settings, other.settings),
    ):
        for key in sorted({*settings, *theirs_too} - {*OF_ONE_SHARD}):
            if settings.get(key) != theirs_too.get(key):
                yield where, f"--{key}", again


def read_rejected(held: OpenShard) -> list[tuple[bytes, RejectedItem]]:
    """Return the lines of a shard's rejected.jsonl, and what they say.

    Raises:
        DataError: They are not those that shard.json counts.
    """
    if not held.items.rejected:
        return []
    path = inside(held.folder, REJECTED)
    rows = [
        (line, RejectedItem.from_json(parse_object(line, where), where))
        for where, line in whole_lines(path)
    ]
    if [row.id for _, row in rows] != [item.id for item in held.items.rejected]:
        raise DataError(
            f"expected the {len(held.items.rejected)} rejected items of shard {held.shard}, got "
            "others",
            where=str(path), hint="score the shard anew",
        )  # fmt: skip
    return rows
