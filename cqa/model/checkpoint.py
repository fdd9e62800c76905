"""Safetensors checkpoints: which file holds which tensor, read one tensor at a time."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor

from cqa.errors import ModelError

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt")


def locate(model: str) -> Path:
    """Return the local folder of `--model`: the folder itself, or a snapshot of a hub id.

    Raises:
        ModelError: There is no such folder, and the hub id is neither cached nor reachable.
    """
    folder = Path(model)
    if folder.is_dir():
        return folder
    if folder.exists() or model.startswith((".", "/", "~")) or model.count("/") != 1:
        raise ModelError("expected a model folder or a hub id, got no such folder", where=model)
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError

    wanted = ["*.json", "*.safetensors", "*.model", "*.txt", "*.jinja"]
    try:
        return Path(snapshot_download(model, allow_patterns=wanted))
    except (OSError, ValueError, HFValidationError) as error:
        raise ModelError(
            f"expected a model folder or a hub id, got neither: {str(error).splitlines()[0]}",
            where=model,
            hint="download it first, or unset HF_HUB_OFFLINE to allow a download",
        ) from None


def tensor_files(folder: Path) -> dict[str, Path]:
    """Map each tensor name of a model folder to its safetensors file.

    Raises:
        ModelError: There is no safetensors checkpoint, or its index is malformed.
    """
    index = folder / INDEX
    if index.is_file():
        return _from_index(index)
    single = folder / SINGLE
    if single.is_file():
        with opened(single) as file:
            return dict.fromkeys(file.keys(), single)
    pickles = [path.name for pattern in PICKLES for path in sorted(folder.glob(pattern))]
    if pickles:
        raise ModelError(
            f"expected safetensors weights, got a pickle: {pickles[0]}", where=str(folder),
            hint="a pickle can run code; convert it with a tool you trust",
        )  # fmt: skip
    raise ModelError(f"expected {SINGLE} or {INDEX}, got neither", where=str(folder))


def _from_index(index: Path) -> dict[str, Path]:
    try:
        names = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        items = list(names.items())
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ModelError(
            f"expected an index with a weight_map, got: {error!r}", where=str(index)
        ) from None
    files = {}
    for name, file in items:
        if (
            not isinstance(file, str)
            or Path(file).name != file
            or not (index.parent / file).is_file()
        ):
            raise ModelError(f"expected a file beside the index, got: {file!r}", where=str(index))
        files[name] = index.parent / file
    return files


@contextmanager
def opened(path: Path) -> Iterator[Any]:
    """Open a safetensors file, naming it when it is malformed."""
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            yield file
    except (SafetensorError, OSError) as error:
        raise ModelError(f"expected a safetensors file, got: {error}", where=str(path)) from error


def stream(files: Mapping[str, Path]) -> Iterator[tuple[str, Tensor]]:
    """Yield every tensor once, file by file; only the one in hand is in memory."""
    for path in sorted(set(files.values())):
        with opened(path) as file:
            held = set(file.keys())
            for name in sorted(n for n, f in files.items() if f == path):
                if name not in held:
                    raise ModelError(
                        f"expected tensor {name} as the index says, got none", where=str(path)
                    )
                yield name, file.get_tensor(name)


def digest_files(paths: list[Path]) -> str:
    """Return one sha256 over the names and bytes of files."""
    total = hashlib.sha256()
    for path in sorted(paths):
        with path.open("rb") as file:
            total.update(path.name.encode() + b"\0" + hashlib.file_digest(file, "sha256").digest())
    return total.hexdigest()
