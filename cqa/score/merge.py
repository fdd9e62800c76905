"""Shards to one folder: the bytes that one run over all items would have written.

The rows of every model follow the places of their items among all that were given. meta.json is
that of the shards, with their counts, tokens and seconds added up. That the shards are disjoint and
complete follows from the digest over all items in their order, which each shard took when it began.

What is kept in memory is 20 bytes an item and 8 bytes a row, and 16 bytes an item more of the shard
that is being read; no text and no row.
"""

from __future__ import annotations

import hashlib
import json
from array import array
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from cqa.config import resolve
from cqa.data.items import read_items
from cqa.data.unique import fingerprint
from cqa.errors import ConfigError, DataError
from cqa.files import discard, inside, new_file, read_json, write_json
from cqa.output_folder import check_output, filled
from cqa.schema.meta import Meta
from cqa.schema.prescreen import PrescreenSummary
from cqa.score.config import PrescreenConfig, ScoreConfig
from cqa.score.items import add_key_to_digest, add_to_digest
from cqa.score.lines import Lines
from cqa.score.merge_input import OpenShard, open_shards, read_rejected
from cqa.score.prescreen import rank_points
from cqa.score.rejected import none_scored, write_rejected
from cqa.score.run import ScoreResult
from cqa.score.server_engine import read_capabilities
from cqa.score.summary import statistics_digest, write_summary
from cqa.score_folder import (
    CAPABILITIES,
    ITEMS,
    META,
    REJECTED,
    SCORES,
    ItemsDigest,
    placed_names,
    placed_texts,
)
from cqa.text import listed

_NO_ROW = (1 << 64) - 1
_NOBODY, _UNSCORED = -1, -2


@dataclass(frozen=True, slots=True)
class Merged:
    """What shards were merged to: scores, or a prescreening, whose summary it then has."""

    scores: ScoreResult
    points: PrescreenSummary | None


def merge(out: Path, folders: Sequence[Path]) -> Merged:
    """Make one folder of the shards of a job, as `score` or `prescreen` had written it.

    Args:
        out: A new folder, or one that an earlier call made of the same shards.
        folders: All shards, in any order; they stay as they are.

    Raises:
        CqaError: Shards are missing, come twice, are of another job, unfinished or damaged; or
            `out` holds something else.
    """
    shards = open_shards(folders)
    kind = shards[0].items.of
    check_output(out, kind, [("SHARD", folder) for folder in folders])
    whole = {"out": str(out), "shard": None}
    config = resolve(ScoreConfig, shards[0].meta.settings, whole)
    ranking = None
    if kind == "prescreen":
        ranking = resolve(PrescreenConfig, shards[0].settings, whole)
        _check_files(ranking, shards[0])
    owners = _owners(shards)
    found = [_Found(held) for held in shards]
    meta = _merged_meta(shards, _checked_items(shards, owners, found), whole)
    rejected = _rejected_lines(shards)
    _check_own(out, meta)
    with filled(out, kind):
        by_model = [[held.rows[m] for held in found] for m in range(len(meta.models))]
        _write(out, SCORES, shards, owners, by_model)
        _write(out, ITEMS, shards, owners, [[held.items for held in found]])
        discard(inside(out, REJECTED))
        if rejected:
            write_rejected(out, rejected)
        _write_capabilities(out, shards)
        write_json(inside(out, META), meta.to_json())
        summary = write_summary(out, config) if config.summary else None
        points = None if ranking is None else rank_points(ranking)
    n_items = sum(len(held.items.places) for held in shards)
    return Merged(ScoreResult(n_items, len(meta.models), summary), points)


def _write_capabilities(out: Path, shards: Sequence[OpenShard]) -> None:
    """Write what the servers of all shards were found to give, with the largest drift of each.

    Each shard has probed its own, and all gave the same numbers.
    """
    found = [c for held in shards if (c := read_capabilities(held.folder)) is not None]
    if not found:
        return
    whole = replace(
        found[0],
        max_model_tokens=min(
            (c.max_model_tokens for c in found if c.max_model_tokens), default=None
        ),
        drift_repeat_nats=max(c.drift_repeat_nats for c in found),
        drift_prefix_nats=max(c.drift_prefix_nats for c in found),
        drift_temperature_nats=max(c.drift_temperature_nats for c in found),
        change_nats=min(c.change_nats for c in found),
    )
    write_json(inside(out, CAPABILITIES), whole.to_json())


def _check_files(config: PrescreenConfig, held: OpenShard) -> None:
    """Check that the files of the points, which ranking reads again, are still there as given."""
    total = hashlib.sha256()
    for item in read_items(config.pairs, columns=config.columns):
        add_to_digest(total, item)
    if total.hexdigest() != held.meta.given_digest:
        raise DataError(
            "expected the points of the shards, got others",
            where=listed(config.pairs),
            hint="a file was changed since; its lines are needed for selected.jsonl",
        )


def _owners(shards: Sequence[OpenShard]) -> array[int]:
    """Return which of the shards has scored the item at each place."""
    n_places = sum(
        len(held.items.places) + len(held.items.left_out) + len(held.items.rejected)
        for held in shards
    )
    owners = array("i", [_NOBODY]) * n_places
    for k, held in enumerate(shards):
        unscored = [item.place for item in (*held.items.left_out, *held.items.rejected)]
        for places, owner in ((held.items.places, k), (unscored, _UNSCORED)):
            for place in places:
                if place >= n_places or owners[place] != _NOBODY:
                    raise _other_items(held)
                owners[place] = owner
    return owners


def _other_items(held: OpenShard) -> DataError:
    return DataError(
        f"expected the items of shard {held.shard} of the job, got others",
        where=str(held.folder), hint="a file of it is damaged; score it anew",
    )  # fmt: skip


class _Found:
    """Where the lines of one shard begin: of its items, and of the rows of every model."""

    def __init__(self, held: OpenShard) -> None:
        """Read items and rows, each checked against its digest.

        Raises:
            DataError: A line is damaged, an item is not of this shard, or a row is missing.
        """
        self.items = array("Q")
        keys = array("Q")
        for start, text in placed_texts(held.folder / ITEMS):
            if not held.shard.holds(text.id):
                raise _other_items(held)
            self.items.append(start)
            keys.append(fingerprint(text.full_key))
        if len(keys) != len(held.items.places):
            raise _other_items(held)
        self.rows = [array("Q", [_NO_ROW]) * len(keys) for _ in held.meta.models]
        self._find_rows(held, keys)
        for model, starts in zip(held.meta.models, self.rows, strict=True):
            if n_missing := starts.count(_NO_ROW):
                got = f"{len(keys) - n_missing} of {len(keys)} rows under"
                raise held.unfinished(f"{got} {model.adapter or 'the base'}")

    def _find_rows(self, held: OpenShard, keys: array[int]) -> None:
        order = sorted(range(len(keys)), key=keys.__getitem__)
        ascending = array("Q", (keys[i] for i in order))
        numbers = {model.model_key: k for k, model in enumerate(held.meta.models)}
        tokens_wanted = held.meta.settings.get("tokens")
        for start, row in placed_names(held.folder / SCORES):
            key = fingerprint(row.full_key)
            at = bisect_left(ascending, key)
            known = at < len(ascending) and ascending[at] == key and row.model_key in numbers
            if not known:
                raise DataError(
                    f"expected rows of the shard's items and models, got another one, `{row.id}`",
                    where=str(held.folder / SCORES),
                )
            if not tokens_wanted or row.with_tokens:
                self.rows[numbers[row.model_key]][order[at]] = start  # of two rows the later counts


def _checked_items(shards: Sequence[OpenShard], owners: array[int], found: Sequence[_Found]) -> str:
    """Check that the items are those given to every shard, in their order; return their digest.

    Raises:
        DataError: They are not, or none fits the model.
    """
    given, scored = hashlib.sha256(), ItemsDigest()
    starts = [iter(held.items) for held in found]
    unscored = {
        item.place: item for held in shards for item in (*held.items.left_out, *held.items.rejected)
    }
    with Lines([held.folder / ITEMS for held in shards]) as lines:
        for place, owner in enumerate(owners):
            if owner == _UNSCORED:
                item = unscored[place]
                if item.id is not None and item.item_key is not None:
                    add_key_to_digest(given, item.id, item.item_key)
            else:
                text = json.loads(lines.read(owner, next(starts[owner])))
                add_key_to_digest(given, text["id"], text["item_key"])
                scored.add(text["item_key"] + text["id"])
    if given.hexdigest() != shards[0].meta.given_digest:
        raise DataError(
            "expected shards that make up the items of the job, got others",
            where=", ".join(str(held.folder) for held in shards),
            hint="a file of one is damaged; score that shard anew",
        )
    if len(unscored) == len(owners):
        first = next((row for held in shards for _, row in read_rejected(held)), None)
        raise none_scored(shards[0].meta.max_positions, str(shards[0].folder), first)
    return scored.hexdigest()


def _merged_meta(
    shards: Sequence[OpenShard], items_digest: str, whole: Mapping[str, str | None]
) -> Meta:
    """Return meta.json of the whole job."""
    first, metas = shards[0].meta, [held.meta for held in shards]
    models = tuple(
        replace(
            same[0],
            n_tokens=sum(model.n_tokens or 0 for model in same),
            seconds=round(sum(model.seconds or 0.0 for model in same), 6),
        )
        for same in zip(*(meta.models for meta in metas), strict=True)
    )
    left_out = sorted(
        (item.place, item.id, held.meta.too_long[item.id])
        for held in shards
        for item in held.items.left_out
        if item.id is not None
    )
    settings = {**first.settings, **whole}
    return replace(
        first,
        settings=settings,
        digest=statistics_digest(settings, items_digest, models),
        items_digest=items_digest,
        item_lines=((1, sum(len(held.items.places) for held in shards)),),
        n_options=sum(meta.n_options for meta in metas),
        n_boundary_merges=sum(meta.n_boundary_merges for meta in metas),
        n_contexts_ending_in_space=sum(meta.n_contexts_ending_in_space for meta in metas),
        n_options_lacking_space=sum(meta.n_options_lacking_space for meta in metas),
        too_long={item_id: group for _, item_id, group in left_out},
        n_rejected=sum(meta.n_rejected for meta in metas),
        models=models,
        planned_first=all(meta.planned_first for meta in metas),
        capabilities=None,  # each shard asked for itself
    )


def _check_own(out: Path, meta: Meta) -> None:
    """Refuse a folder with scores that are not these: rows of a command would be lost.

    Raises:
        ConfigError: It holds some.
    """
    path = inside(out, META)
    if path.exists() and read_json(path) != json.loads(json.dumps(meta.to_json())):
        raise ConfigError(
            "expected a new folder, or one that these shards were merged to, got other scores",
            where=str(out), hint="name another OUT",
        )  # fmt: skip


def _write(
    out: Path,
    name: str,
    shards: Sequence[OpenShard],
    owners: array[int],
    parts: Sequence[Sequence[array[int]]],
) -> None:
    """Write a file of all shards' lines, by place.

    Args:
        out: The folder.
        name: What the file is called, here and in every shard.
        shards: The shards.
        owners: The shard of the item at each place.
        parts: Of each part of the file, and each shard, where the lines begin, in their order.
    """
    with (
        new_file(inside(out, name)) as temporary,
        temporary.open("wb") as file,
        Lines([held.folder / name for held in shards]) as lines,
    ):
        for part in parts:
            starts = [iter(found) for found in part]
            for owner in owners:
                if owner != _UNSCORED:
                    file.write(lines.read(owner, next(starts[owner])))


def _rejected_lines(shards: Sequence[OpenShard]) -> list[bytes]:
    """Return the lines of the shards' rejected.jsonl, by place."""
    rows = sorted(
        (item.place, line)
        for held in shards
        for item, (line, _) in zip(held.items.rejected, read_rejected(held), strict=True)
    )
    return [line for _, line in rows]
