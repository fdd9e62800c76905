"""Safetensors checkpoints: which file holds which tensor, read one tensor at a time."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor

from cqa.errors import ModelError
from cqa.reading import read_object, refuse_special

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
ENDINGS = (".safetensors", ".safetensors.index.json")
PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt")
WANTED = ("*.json", "*.safetensors", "*.model", "*.txt", "*.jinja")  # of a repository
UNWANTED = ("consolidated*", "original/*")  # the weights once more, in the maker's own format


def locate(model: str, *, weights: bool = True) -> Path:
    """Return the local folder of `--model`: the folder itself, or a snapshot of a hub id.

    Args:
        model: A folder or a hub id.
        weights: Whether a snapshot has to have the weights too.

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

    unwanted = UNWANTED if weights else (*UNWANTED, "*.safetensors")
    patterns = {"allow_patterns": list(WANTED), "ignore_patterns": list(unwanted)}
    try:
        return Path(snapshot_download(model, **patterns))
    except (OSError, ValueError, HFValidationError) as error:
        reason = (str(error) or type(error).__name__).splitlines()[0].removeprefix("Got: ")
        raise ModelError(
            f"expected a model folder or a hub id, got neither: {reason}",
            where=model,
            hint="unset HF_HUB_OFFLINE to allow a download"
            if constants.HF_HUB_OFFLINE
            else "check its spelling and the network, or give a folder",
        ) from None


def tensor_files(folder: Path, named: object = None) -> dict[str, Path]:
    """Map each tensor name of a model folder to its safetensors file.

    Args:
        folder: The model folder.
        named: What its config.json calls `transformers_weights`, the file to read, if anything.

    Raises:
        ModelError: There is no safetensors checkpoint, there are two, or an index does not tell
            what its files hold.
    """
    if named is not None:
        return _named(folder, named)
    single, index = folder / SINGLE, folder / INDEX
    if single.exists() and index.exists():
        files = _from_index(index)
        if set(files.values()) != {single}:
            raise ModelError(
                f"expected one set of weights, got {SINGLE} and {INDEX}, which names other files",
                where=str(folder),
                hint="programs differ in which they read; move one of them elsewhere",
            )
        return files
    if index.exists():
        return _from_index(index)
    if single.exists():
        return dict.fromkeys(_held(single), single)
    pickles = [path.name for pattern in PICKLES for path in sorted(folder.glob(pattern))]
    if pickles:
        raise ModelError(
            f"expected safetensors weights, got a pickle: {pickles[0]}", where=str(folder),
            hint="a pickle can run code; convert it with a tool you trust",
        )  # fmt: skip
    raise ModelError(f"expected {SINGLE} or {INDEX}, got neither", where=str(folder))


def _named(folder: Path, named: object) -> dict[str, Path]:
    """Map the tensors of the file or index that config.json names."""
    if not isinstance(named, str) or not named.endswith(ENDINGS) or not _is_in(folder, named):
        raise ModelError(
            f"expected transformers_weights to name a safetensors file or index of the folder, "
            f"got: {named!r:.200}",
            where=str(folder / "config.json"),
        )
    if named.endswith(".json"):
        return _from_index(folder / named)
    return dict.fromkeys(_held(folder / named), folder / named)


def _held(path: Path) -> set[str]:
    with opened(path) as file:
        return set(file.keys())


def _from_index(index: Path) -> dict[str, Path]:
    """Map the tensors of the files that an index names: all that they hold, as transformers does.

    Raises:
        ModelError: The index is malformed, or says otherwise than the files.
    """
    raw = read_object(index, ModelError) or {}
    names = raw.get("weight_map")
    if not isinstance(names, dict) or not names:
        raise ModelError("expected an index with a weight_map, got none", where=str(index))
    for file in names.values():
        if not isinstance(file, str) or not _is_in(index.parent, file):
            raise ModelError(
                f"expected a file beside the index, got: {file!r:.200}", where=str(index)
            )
    files: dict[str, Path] = {}
    for path in (index.parent / file for file in sorted(set(names.values()))):
        for name in sorted(_held(path)):
            if name in files:
                raise ModelError(
                    f"expected each tensor once, got {name} in {files[name].name} and {path.name}",
                    where=str(index),
                )
            files[name] = path
    for name, file in names.items():
        if name not in files or files[name].name != file:
            raise ModelError(
                f"expected tensor {name} as the index says, got none",
                where=str(index.parent / file),
            )
    return files


def _is_in(folder: Path, name: str) -> bool:
    try:
        return Path(name).name == name and (folder / name).is_file()
    except OSError:  # no file can have such a name
        return False


def copy_file(source: Path, target: Path) -> None:
    """Copy a file of a model or an adapter; one that cannot be read is no fault of the disk.

    Raises:
        ModelError: It cannot be read.
        OSError: The copy cannot be written.
    """
    try:
        refuse_special(source, ModelError)
        file = source.open("rb")
    except OSError as error:
        raise ModelError(
            f"expected a file that can be read, got: {error.strerror}", where=str(source)
        ) from None
    with file, target.open("xb") as copy:
        shutil.copyfileobj(file, copy)


@contextmanager
def opened(path: Path) -> Iterator[Any]:
    """Open a safetensors file, naming it when it is malformed."""
    try:
        refuse_special(path, ModelError)
        path.open("rb").close()  # of what may not be read, safetensors says that it is not there
        with safe_open(path, framework="pt", device="cpu") as file:
            yield file
    except (SafetensorError, OSError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise ModelError(f"expected a safetensors file, got: {reason}", where=str(path)) from error


def headers(files: Mapping[str, Path]) -> Iterator[tuple[str, tuple[int, ...], str]]:
    """Yield each tensor's name, shape and dtype, as the files' headers have them."""
    for file, name in _by_file(files):
        part = file.get_slice(name)
        yield name, tuple(part.get_shape()), str(part.get_dtype())


def stream(files: Mapping[str, Path]) -> Iterator[tuple[str, Tensor]]:
    """Yield every tensor once, file by file; a file is mapped anew for each of its tensors.

    So only those in hand are in memory: what was read of a mapping stays until it goes.
    """
    for name, path in sorted(files.items(), key=lambda item: (item[1], item[0])):
        with opened(path) as file:
            yield name, file.get_tensor(name)


def _by_file(files: Mapping[str, Path]) -> Iterator[tuple[Any, str]]:
    """Yield (open file, name) of each tensor, file by file."""
    for path in sorted(set(files.values())):
        with opened(path) as file:
            for name in sorted(n for n, f in files.items() if f == path):
                yield file, name
