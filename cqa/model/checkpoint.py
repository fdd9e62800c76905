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
    try:
        if folder.is_dir():
            return folder
        is_file = folder.exists()
    except OSError as error:
        raise ModelError(f"expected a model folder, got: {error.strerror}", where=model) from None
    if is_file or model.startswith((".", "/", "~")) or model.count("/") != 1:
        raise ModelError("expected a model folder or a hub id, got no such folder", where=model)
    from huggingface_hub import constants, snapshot_download
    from huggingface_hub.errors import HFValidationError

    wanted = ["*.json", "*.safetensors", "*.model", "*.txt", "*.jinja"]
    try:
        return Path(snapshot_download(model, allow_patterns=wanted))
    except (OSError, ValueError, HFValidationError) as error:
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise ModelError(
            f"expected a model folder or a hub id, got neither: {reason}",
            where=model,
            hint="unset HF_HUB_OFFLINE to allow a download"
            if constants.HF_HUB_OFFLINE
            else "check its spelling and the network, or give a folder",
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
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ModelError(
            f"expected an index with a weight_map, got: {error!r}", where=str(index)
        ) from None
    files = {}
    for name, file in items:
        if not isinstance(file, str) or not _is_beside(index, file):
            raise ModelError(
                f"expected a file beside the index, got: {file!r:.200}", where=str(index)
            )
        files[name] = index.parent / file
    return files


def _is_beside(index: Path, name: str) -> bool:
    try:
        return Path(name).name == name and (index.parent / name).is_file()
    except OSError:  # no file can have such a name
        return False


@contextmanager
def opened(path: Path) -> Iterator[Any]:
    """Open a safetensors file, naming it when it is malformed."""
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            yield file
    except (SafetensorError, OSError) as error:
        raise ModelError(f"expected a safetensors file, got: {error}", where=str(path)) from error


def headers(files: Mapping[str, Path]) -> Iterator[tuple[str, tuple[int, ...], str]]:
    """Yield each tensor's name, shape and dtype, as the files' headers have them."""
    for file, name in _by_file(files):
        part = file.get_slice(name)
        yield name, tuple(part.get_shape()), str(part.get_dtype())


def stream(files: Mapping[str, Path]) -> Iterator[tuple[str, Tensor]]:
    """Yield every tensor once, file by file; only the one in hand is in memory."""
    return ((name, file.get_tensor(name)) for file, name in _by_file(files))


def _by_file(files: Mapping[str, Path]) -> Iterator[tuple[Any, str]]:
    """Yield (open file, name) of each tensor, file by file."""
    for path in sorted(set(files.values())):
        with opened(path) as file:
            held = set(file.keys())
            for name in sorted(n for n, f in files.items() if f == path):
                if name not in held:
                    raise ModelError(
                        f"expected tensor {name} as the index says, got none", where=str(path)
                    )
                yield file, name


def digest_files(paths: list[Path]) -> str:
    """Return one sha256 over the names and bytes of files."""
    total = hashlib.sha256()
    for path in sorted(paths):
        with path.open("rb") as file:
            total.update(path.name.encode() + b"\0" + hashlib.file_digest(file, "sha256").digest())
    return total.hexdigest()
