"""Token embedding, with NEFTune's noise in training.

    hidden[i] = table[id_i] + alpha / sqrt(L_i · D) · u,    u uniform in [-1, 1)

L_i is the unpadded length of row i's own sample, so packing does not change the law.
Source: NEFTune, arXiv:2310.05914, section 2.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from cqa.kernels.philox import NEFTUNE, row_words, stream_of


@dataclass(frozen=True, slots=True)
class Noise:
    """One step's NEFTune noise; `rows` as in `Dropout`."""

    alpha: float
    seed: int
    step: int
    rows: Tensor  # (M,) int64
    lengths: Tensor  # (M,) int64, the length of each row's own sample

    def uniform(self, n_cols: int) -> Tensor:
        """Return u, shape (M, n_cols), fp32: word j % 4 of index row · ceil(D / 4) + j // 4."""
        words = row_words(self.seed, self.step, stream_of(NEFTUNE), self.rows, -(-n_cols // 4))[
            :, :n_cols
        ]
        return torch.from_numpy((words >> np.uint32(8)).astype(np.float32)) * 2.0**-23 - 1


def embed(
    ids: Tensor,  # (M,) int64
    table: Tensor,  # (V, D)
    noise: Noise | None = None,
) -> Tensor:  # (M, D)
    """Look up embeddings and add noise; the table is frozen, so there is no gradient."""
    hidden = table[ids]
    if noise is None:
        return hidden
    n_cols = table.shape[1]
    u = noise.uniform(n_cols).to(hidden.device)
    magnitude = noise.alpha / torch.sqrt(noise.lengths.float() * n_cols)
    return (hidden.float() + magnitude[:, None].to(hidden.device) * u).to(hidden.dtype)
