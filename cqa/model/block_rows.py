"""How many rows of a scoring pass go through a layer at once, always the same number on a device.

Products round as their height decides, so rows are computed in blocks of one height: then a row's
bits do not depend on what else is in the pass. On a GPU the last block is padded, and its height
decides how many of the multiprocessors work in the last wave of tiles.
"""

from __future__ import annotations

import torch

from cqa.kernels.backend import Backend

BLOCK_ROWS = {  # weights are read once a block
    "native": 2048,
    "triton": 2048,  # of the interpreter; a GPU has `fullest`
    "reference": 256,  # padded, so not too high
}
PASS_ROWS = 4096  # of a pass of scoring
LARGE_PASS_ROWS = 32_768  # the same where passes are padded, at the most
TILE_ROWS, TILE_COLUMNS = 128, 256  # of the library's products in bf16
LEAST, MOST = 1024, 2048  # lower ones read the weights too often, higher ones pad too much


def block_rows(backend: Backend, device: torch.device, hidden_size: int) -> int:
    """Return the height of a block.

    Args:
        backend: What computes.
        device: Where.
        hidden_size: Columns of the layer's narrowest products, which have the fewest tiles.
    """
    if backend == "triton" and device.type == "cuda":
        n = torch.cuda.get_device_properties(device).multi_processor_count
        return fullest(hidden_size, n)
    return BLOCK_ROWS[backend]


def pass_rows(backend: Backend, device: torch.device, hidden_size: int) -> int:
    """Return how many rows a pass of scoring has at most where nobody asks for another number.

    On a GPU, where the last block is padded, that is many whole blocks. Arguments: `block_rows`.
    """
    if device.type != "cuda":
        return PASS_ROWS
    height = block_rows(backend, device, hidden_size)
    return LARGE_PASS_ROWS // height * height


def fullest(columns: int, multiprocessors: int) -> int:
    """Return the height whose tiles fill the waves of a GPU best, the lowest among equals."""
    heights = range(LEAST, MOST + 1, TILE_ROWS)
    return max(heights, key=lambda height: (wave_fill(height, columns, multiprocessors), -height))


def wave_fill(rows: int, columns: int, multiprocessors: int) -> float:
    """Return the share of multiprocessors that work, over all waves of a product's tiles."""
    tiles = -(-rows // TILE_ROWS) * -(-columns // TILE_COLUMNS)
    return tiles / (-(-tiles // multiprocessors) * multiprocessors)
