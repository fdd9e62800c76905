"""The files of an adapter in PEFT's format."""

from __future__ import annotations

from pathlib import Path

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"


def is_adapter(folder: Path) -> bool:
    """Return whether a folder holds both files."""
    return (folder / CONFIG).is_file() and (folder / WEIGHTS).is_file()
