"""What stands for the bytes of model and adapter files."""

from __future__ import annotations

import hashlib
from pathlib import Path


def digest_files(paths: list[Path]) -> str:
    """Return one sha256 over the names and bytes of files."""
    total = hashlib.sha256()
    for path in sorted(paths):
        with path.open("rb") as file:
            total.update(path.name.encode() + b"\0" + hashlib.file_digest(file, "sha256").digest())
    return total.hexdigest()
