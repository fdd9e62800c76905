"""What a model folder was converted from: `conversion.json` beside its weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from cqa.errors import ModelError
from cqa.reading import read_object

CONVERSION = "conversion.json"


def read_conversion(folder: Path) -> dict[str, Any] | None:
    """Return what `cqa-fast convert` wrote of a model's source; None where it made no such model.

    Raises:
        ModelError: The file is damaged.
    """
    return read_object(folder / CONVERSION, ModelError)


def conversion_text(conversion: dict[str, Any]) -> str:
    """Say in a line what a model was converted from."""
    counts = conversion.get("tensors_by_type")
    kinds = counts.items() if isinstance(counts, dict) else ()
    stored = ", ".join(f"{n} {kind}" for kind, n in kinds)
    return f"{conversion.get('file')} (tensors: {stored}), sha256 {conversion.get('sha256')}"
