"""States of items on disk: a file of an item under a model, written before its row.

All layers of a model's states are some hundred kilobytes an item, too much for a line of
rows.jsonl, and probes need all items of one layer at a time. So each item has a file
`states/MODEL_KEY/TASK_KEY.safetensors`: `states`, fp32 (n_layers + 1, 2, hidden_size), the good
option's minus the bad one's. It takes its name when it is whole, and its row, which comes after it,
holds its digest. A row so always has its file, and a stopped study goes on from its rows as any
other does. Of many items one layer is in memory, never all.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from cqa.claims.probe.row import POSITIONS, ProbeRow
from cqa.errors import DataError
from cqa.files import inside, new_file, reported
from cqa.stats.clusters import Values

FOLDER, _NAME = "states", "states"
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
    with new_file(inside(folder, f"{task_key}.safetensors")) as temporary:
        temporary.write_bytes(save({_NAME: np.ascontiguousarray(states)}))


def check_states(out: Path, rows: Sequence[ProbeRow]) -> tuple[int, int]:
    """Hold every item's states to its row.

    Returns:
        n_layers + 1 and hidden_size.

    Raises:
        DataError: A file is gone, or is another than its row was written with.
    """
    shape: tuple[int, ...] | None = None
    for row in rows:
        states = _read(out, row)
        if (
            states is None
            or digest(states) != row.states_sha256
            or states.shape != (shape or states.shape)  # the digest is of the numbers alone
        ):
            raise DataError(
                f"expected the states that item `{row.id}` was written with, got "
                f"{'no such file' if states is None else 'another file'}",
                where=str(_path(out, row)),
                hint=f"remove the line in rows.jsonl whose states_sha256 is {row.states_sha256}; "
                "the same command computes it again",
            )
        shape = states.shape
    assert shape is not None, "a study has items"
    return shape[0], shape[2]


def layers(out: Path, rows: Sequence[ProbeRow], n_layers: int) -> Iterator[list[Values]]:
    """Yield the states of all items, layer by layer: (n, hidden_size) for each position."""
    for layer in range(n_layers):
        held = np.stack([_layer(out, row, layer) for row in rows]).astype(np.float64)
        yield [held[:, place] for place in range(len(POSITIONS))]


def _path(out: Path, row: ProbeRow) -> Path:
    return out / FOLDER / row.model_key / f"{row.task_key}.safetensors"


def _layer(out: Path, row: ProbeRow, layer: int) -> States:
    """Return one layer of an item's states, of a file that was checked: (2, hidden_size)."""
    with safe_open(_path(out, row), framework="numpy") as file:
        found: States = file.get_slice(_NAME)[layer]
    return found


def _read(out: Path, row: ProbeRow) -> States | None:
    """Return a file's states; None where it is gone or holds no such array."""
    path = inside(inside(inside(out, FOLDER), row.model_key), _path(out, row).name)
    try:
        with safe_open(path, framework="numpy") as file:
            if file.get_slice(_NAME).get_dtype() != "F32":  # NumPy has not all that a file may hold
                return None
            states: States = file.get_tensor(_NAME)
    except (OSError, SafetensorError):
        return None
    if states.ndim != 3 or states.shape[1] != len(POSITIONS):
        return None
    return states
