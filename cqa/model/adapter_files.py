"""The files of an adapter in PEFT's format."""

from __future__ import annotations

from pathlib import Path

from cqa.model.digest import digest_files

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"


def is_adapter(folder: Path) -> bool:
    """Return whether a folder holds both files."""
    return (folder / CONFIG).is_file() and (folder / WEIGHTS).is_file()


def adapter_files(folder: Path) -> list[Path]:
    """Return the files that make an adapter what it is: its config and its weights."""
    return [folder / CONFIG, folder / WEIGHTS]


def adapter_digest(folder: Path) -> str:
    """Return a sha256 over what an adapter is; see `digest_files`."""
    return digest_files(adapter_files(folder))
