"""shard.json of a folder: written before the first row, and the same from then on."""

from __future__ import annotations

from pathlib import Path

from cqa.errors import ConfigError
from cqa.files import inside, read_json, write_json
from cqa.output_folder import Kind
from cqa.schema.shard import ShardItems
from cqa.score.encoded import Items
from cqa.score.shard import read_shard
from cqa.score_folder import SHARD


def shard_items(items: Items, of: Kind) -> ShardItems:
    """Return what a shard holds, once its items are checked."""
    assert items.config.shard is not None
    assert of in ("scores", "prescreen")
    return ShardItems(
        of=of,
        shard=str(read_shard(items.config.shard)),
        given_digest=items.digest or "",
        places=tuple(items.part.places),
        left_out=tuple(items.part.left_out),
        rejected=tuple(items.part.rejected.unscored),
    )


def read_shard_items(folder: Path) -> ShardItems:
    """Read what a shard holds.

    Raises:
        DataError: The file is missing or damaged.
    """
    path = inside(folder, SHARD)
    return ShardItems.from_json(read_json(path), str(path))


def check_same_shard(out: Path, shard: ShardItems) -> None:
    """Refuse a folder of another shard, or of other items.

    Raises:
        ConfigError: It is one.
    """
    if not inside(out, SHARD).exists():
        return
    held = read_shard_items(out)
    if held == shard:
        return
    if (held.of, held.shard) != (shard.of, shard.shard):
        got = f"shard {held.shard} of {held.of}"
    else:
        got = "that shard of other items"
    raise ConfigError(
        f"expected a new folder or one of shard {shard.shard} of {shard.of}, got {got}",
        where=str(out),
        hint="name another --out; each shard has a folder of its own",
    )


def write_shard(out: Path, shard: ShardItems) -> None:
    """Write shard.json, if it is not there."""
    if not inside(out, SHARD).exists():
        write_json(inside(out, SHARD), shard.to_json())
