"""States of items on disk: a file of an item under a model, written before its row.

All layers of a model's states are some hundred kilobytes an item, too much for a line of
rows.jsonl, and probes need all items of one layer at a time. So each item has a file
`states/MODEL_KEY/TASK_KEY.npy`: fp32 (n_layers + 1, 2, hidden_size), the good option's minus the
bad one's. It takes its name when it is whole, and its row, which comes after it, holds its digest.
A row so always has its file, and a stopped study goes on from its rows as any other does. Of many
items one layer is in memory, never all.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from cqa.claims.probe.row import POSITIONS, ProbeRow
from cqa.errors import DataError
from cqa.files import inside, new_file, reported
from cqa.stats.clusters import Values

FOLDER = "states"
States = npt.NDArray[np.float32]


def digest(states: States) -> str:
    """Return the sha256 of an item's states."""
    return hashlib.sha256(np.ascontiguousarray(states).tobytes()).hexdigest()


def write_states(out: Path, model_key: str, task_key: str, states: States) -> None:
    """Write an item's states under a model.

    Raises:
        ResourceError: The disk is full, or cannot be written to.
    """
    folder = inside(inside(out, FOLDER), model_key)
    with reported(folder):
        folder.mkdir(parents=True, exist_ok=True)
    with new_file(inside(folder, f"{task_key}.npy")) as temporary, temporary.open("wb") as file:
        np.save(file, states, allow_pickle=False)


def check_states(out: Path, rows: Sequence[ProbeRow]) -> tuple[int, int]:
    """Hold every item's states to its row.

    Returns:
        n_layers + 1 and hidden_size.

    Raises:
        DataError: A file is gone, or is another than its row was written with.
    """
    shape = (0, 0)
    for row in rows:
        states = _open(out, row)
        if states is None or digest(states) != row.states_sha256:
            raise DataError(
                f"expected the states that item `{row.id}` was written with, got "
                f"{'no such file' if states is None else 'another file'}",
                where=str(_path(out, row)),
                hint=f"remove the line in rows.jsonl whose states_sha256 is {row.states_sha256}; "
                "the same command computes it again",
            )
        shape = (states.shape[0], states.shape[2])
    return shape


def layers(out: Path, rows: Sequence[ProbeRow], n_layers: int) -> Iterator[list[Values]]:
    """Yield the states of all items, layer by layer: (n, hidden_size) for each position."""
    for layer in range(n_layers):
        held = np.stack([_opened(out, row)[layer] for row in rows]).astype(np.float64)
        yield [held[:, place] for place in range(len(POSITIONS))]


def _path(out: Path, row: ProbeRow) -> Path:
    return out / FOLDER / row.model_key / f"{row.task_key}.npy"


def _opened(out: Path, row: ProbeRow) -> States:
    states = _open(out, row)
    assert states is not None, "its file was there when it was checked"
    return states


def _open(out: Path, row: ProbeRow) -> States | None:
    """Return a file's states without reading them; None where it is gone or no such array."""
    path = inside(inside(inside(out, FOLDER), row.model_key), f"{row.task_key}.npy")
    try:
        states = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError):
        return None
    if not isinstance(states, np.ndarray) or states.dtype != np.float32 or states.ndim != 3:
        return None
    return states
