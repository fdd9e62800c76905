"""A folder of scores is of one base with one tokenizer, template and engine, or is refused."""

from __future__ import annotations

from pathlib import Path

from cqa.errors import ConfigError
from cqa.files import inside, read_json
from cqa.schema.meta import KnownModels, ScoredModel, ScoredWith
from cqa.score_folder import META

NAMES = {
    "model": "base model", "tokenizer": "tokenizer", "template": "--template", "engine": "--engine",
}  # fmt: skip


def check_same_base(out: Path, base: ScoredModel) -> None:
    """Refuse to score into a folder of another base, tokenizer, template or engine.

    meta.json and summary.json are of one of them, and would be replaced.

    Args:
        out: The folder.
        base: The base that is to be scored.

    Raises:
        ConfigError: The folder is of another.
    """
    path = inside(out, META)
    if not path.exists():
        return
    for held in KnownModels.from_json(read_json(path), str(path)).models[:1]:
        before = ScoredWith.from_json(held, str(path))
        for name, what in NAMES.items():
            if name in held and getattr(before, name) != getattr(base, name):
                raise ConfigError(
                    f"expected the {what} whose scores this folder holds, got another",
                    where=str(out),
                    hint="name another --out; its summary would take the place of this one's",
                )
