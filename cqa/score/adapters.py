"""The adapters of a scoring run: found, named, and checked to be distinct and to have an effect."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch

from cqa.errors import ModelError
from cqa.model.adapter import adapter_folder, read_spec
from cqa.model.adapter_files import adapter_digest, adapter_files, is_adapter
from cqa.model.digest import MOST_THREADS, Stamps, settled_stamps
from cqa.model.lora import Adapter, PlacedAdapter, widest
from cqa.model.memory import free_bytes
from cqa.run_folder import epoch_folders
from cqa.text import own_parts

# of all adapters on the device, from their check to their turn; the rest is read again
KEPT_BYTES = 4 << 30
_KEPT_SHARE = 8  # what part of the memory that is free on the device, where that is less


@dataclass(slots=True)
class AdapterFolder:
    """An adapter to score, by the name it has in the results."""

    name: str
    folder: Path
    kept: Adapter | PlacedAdapter | None = None  # its tensors for our decoder, once they are read
    _hashed: Stamps | None = None  # of the files when they were hashed

    def digest(self) -> str:
        """Hash the files.

        Raises:
            ModelError: One cannot be read, or is being written to.
        """
        self._hashed = settled_stamps(adapter_files(self.folder))
        return adapter_digest(self.folder)

    def check_unchanged(self, digest: str | None) -> None:
        """Check that the files have the digest that they had when the run began.

        They are hashed again only where their times and sizes do not tell that nobody wrote to
        them.

        Raises:
            ModelError: They have other bytes by now.
        """
        if self._hashed and self._hashed == settled_stamps(adapter_files(self.folder)):
            return
        if adapter_digest(self.folder) != digest:
            raise ModelError(
                "expected the adapter as it was at the start, got other bytes",
                where=str(self.folder),
                hint="it was written anew during the run; give the same command again",
            )


def digests_of(adapters: Sequence[AdapterFolder]) -> list[str]:
    """Hash the files of adapters side by side; see `AdapterFolder.digest`."""
    with ThreadPoolExecutor(max_workers=MOST_THREADS) as pool:
        return list(pool.map(AdapterFolder.digest, adapters))


def columns_of(adapters: Sequence[AdapterFolder]) -> dict[str, int]:
    """Return the most LoRA columns of each module that any of some adapters needs."""
    return widest([read_spec(adapter.folder) for adapter in adapters])


def wider_for(adapter: AdapterFolder, held: Mapping[str, int]) -> dict[str, int] | None:
    """Return the columns that an adapter needs beside those held; None where these are enough."""
    needed = columns_of([adapter])
    columns = {name: max(held.get(name, 0), n) for name, n in needed.items()}
    return columns if columns != {name: held.get(name, 0) for name in columns} else None


@dataclass(slots=True)
class Room:
    """The memory of a device that adapters may take while they wait for their turn."""

    free: int

    @classmethod
    def on(cls, device: torch.device) -> Room:
        """Return what there is to begin with, once the base is loaded: a part of what is free."""
        return cls(min(KEPT_BYTES, free_bytes(device) // _KEPT_SHARE))

    def keep(self, adapter: AdapterFolder) -> None:
        """Let an adapter's tensors stay where they are, or, where they do not fit, go."""
        if adapter.kept is not None:
            self.free -= adapter.kept.n_bytes
            adapter.kept = adapter.kept if self.free >= 0 else None


class NamesAdapters(Protocol):
    """Settings that name adapters: folders, and runs with their epochs."""

    @property
    def adapter(self) -> tuple[Path, ...]: ...

    @property
    def run(self) -> tuple[Path, ...]: ...

    @property
    def epochs(self) -> tuple[int, ...]: ...


def find_adapters(config: NamesAdapters) -> list[AdapterFolder]:
    """Return the adapters that the settings name, each under a name of its own.

    Raises:
        ModelError: An adapter folder is missing or malformed, or --run holds no such epoch.
    """
    folders = list(config.adapter)
    for run in config.run:
        folders += _epoch_folders(run, config.epochs)
    return named_adapters(folders)


def named_adapters(folders: Sequence[Path]) -> list[AdapterFolder]:
    """Return adapters, each under as much of its path as tells it from the others.

    Raises:
        ModelError: A folder is missing, or comes twice.
    """
    resolved = [Path(os.path.realpath(folder)) for folder in folders]  # of a loop of links too
    found = [adapter_folder(folder) for folder in folders]
    return [
        AdapterFolder(_own_name(path, resolved), folder)
        for path, folder in zip(resolved, found, strict=True)
    ]


def _own_name(path: Path, others: list[Path]) -> str:
    """Return as many last parts of a path as tell it from the others."""
    for parts in own_parts(path, others):
        if (name := "/".join(parts)) != "base":
            return name
    raise ModelError("expected each adapter once, got one twice", where=str(path))


def _epoch_folders(run: Path, epochs: tuple[int, ...]) -> list[Path]:
    held = epoch_folders(run)
    if not held:
        raise ModelError(
            f"expected a training run with epoch folders, got {_instead(run)}",
            where=str(run),
            hint="--adapter takes it" if is_adapter(run) else "cqa-fast train writes one",
        )
    for epoch, (first, *more) in held.items():
        if more:
            raise ModelError(
                f"expected epoch {epoch} once, got {first.name} and {more[0].name}", where=str(run)
            )
    for epoch in epochs:
        if epoch not in held:
            names = ", ".join(map(str, held))
            raise ModelError(f"expected epoch {epoch}, got epochs {names}", where=str(run))
    return [held[epoch][0] for epoch in epochs or held]


def _instead(run: Path) -> str:
    """Say what stands in the place of a training run."""
    if is_adapter(run):
        return "an adapter"
    if not run.exists():
        return "no such folder"
    return "a folder without" if run.is_dir() else "a file"


def check_distinct(folders: Sequence[Path], digests: Sequence[str]) -> None:
    """Check that no two folders hold the same adapter, whose rows would stand under one name.

    Raises:
        ModelError: Two adapters have the same bytes.
    """
    first: dict[str, Path] = {}
    for folder, digest in zip(folders, digests, strict=True):
        if digest in first:
            raise ModelError(
                f"expected each adapter once, got the same bytes as in {first[digest]}",
                where=str(folder),
            )
        first[digest] = folder
