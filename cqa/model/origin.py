"""What an adapter was made of: `origin.json` beside its weights, which other tools do not read."""

from __future__ import annotations

import json
from pathlib import Path

from cqa.errors import ModelError
from cqa.reading import read_object

ORIGIN = "origin.json"
Origin = dict[
    str, str | None
]  # digests: model, tokenizer, template, data, recipe, code; seed, epoch


def write_origin(folder: Path, origin: Origin) -> None:
    """Write what an adapter was made of into its folder."""
    text = json.dumps(origin, indent=2, sort_keys=True) + "\n"
    (folder / ORIGIN).write_text(text, encoding="utf-8")


def read_origin(folder: Path) -> Origin | None:
    """Return what an adapter was made of; None where it does not say, as those of other tools.

    Raises:
        ModelError: The file is damaged.
    """
    path = folder / ORIGIN
    origin = read_object(path, ModelError)
    if origin is None:
        return None
    if not all(value is None or isinstance(value, str) for value in origin.values()):
        raise ModelError("expected a JSON object of digests", where=str(path))
    return origin


def check_origin(
    folder: Path,
    *,
    model_digest: str,
    tokenizer_digest: str | None = None,
    hint: str = "name the base that it was trained on; --other-base scores it all the same",
) -> None:
    """Refuse an adapter that says it was trained on another base or, if given, tokenizer.

    Raises:
        ModelError: A digest is not that of the model that is given.
    """
    origin = read_origin(folder) or {}
    present = {"model": model_digest, "tokenizer": tokenizer_digest}
    for part, digest in present.items():
        if digest is None:
            continue
        trained = origin.get(f"{part}_digest", digest)
        if trained != digest:
            raise ModelError(
                f"expected an adapter trained on this {part} ({digest[:12]}), got one trained on "
                f"another ({str(trained)[:12]})",
                where=str(folder),
                hint=hint,
            )
