"""The files of an adapter in PEFT's format."""

from __future__ import annotations

from pathlib import Path

from cqa.errors import ModelError
from cqa.model.digest import digest_files

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"


def is_adapter(folder: Path) -> bool:
    """Return whether a folder holds both files.

    Raises:
        ModelError: It may not be looked into.
    """
    try:
        return all(path.is_file() for path in adapter_files(folder))
    except OSError as error:
        raise ModelError(
            f"expected a folder that can be read, got: {error.strerror}", where=str(folder)
        ) from None


def adapter_files(folder: Path) -> list[Path]:
    """Return the files that make an adapter what it is: its config and its weights."""
    return [folder / CONFIG, folder / WEIGHTS]


def adapter_digest(folder: Path) -> str:
    """Return a sha256 over what an adapter is; see `digest_files`."""
    return digest_files(adapter_files(folder))
