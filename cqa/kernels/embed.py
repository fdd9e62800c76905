"""Token embedding, with NEFTune's noise in training.

    hidden[i] = scale · table[id_i] + alpha / sqrt(L_i · D) · u,    u uniform in [-1, 1)

L_i is the unpadded length of row i's own sample, so packing does not change the law.
Source: NEFTune, arXiv:2310.05914, section 2.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import triton
import triton.language as tl
from torch import Tensor

from cqa.kernels.backend import Backend, choose, compute_dtype
from cqa.kernels.launch import launch
from cqa.kernels.philox import NEFTUNE, Keyed, philox_words, row_words, stream_of


@dataclass(frozen=True, slots=True)
class Noise(Keyed):
    """One step's NEFTune noise; `rows` as in `Dropout`."""

    alpha: float
    seed: int
    step: int
    rows: Tensor  # (M,) int64
    lengths: Tensor  # (M,) int64, the length of each row's own sample
    key: Tensor | None = None  # (seed, step) where the rows are, for Triton's kernels

    def uniform(self, n_cols: int) -> Tensor:
        """Return u, shape (M, n_cols), fp32: word j % 4 of index row · ceil(D / 4) + j // 4."""
        words = row_words(self.seed, self.step, stream_of(NEFTUNE), self.rows, -(-n_cols // 4))[
            :, :n_cols
        ]
        return torch.from_numpy((words >> np.uint32(8)).astype(np.float32)) * 2.0**-23 - 1


def add_noise_ref(hidden: Tensor, noise: Noise) -> Tensor:
    """The definition: embeddings (M, D) to (M, D)."""
    n_cols = hidden.shape[1]
    u = noise.uniform(n_cols).to(hidden.device)
    magnitude = noise.alpha / torch.sqrt(noise.lengths.float() * n_cols)
    return (hidden.float() + magnitude[:, None].to(hidden.device) * u).to(hidden.dtype)


@triton.jit
def _embed_noisy_kernel(  # a program: a row
    ids,  # (M,)
    table,  # (V, D)
    out,  # (M, D), written
    key,
    batch_rows,  # (M,)
    lengths,  # (M,)
    stream,
    n_cols,
    alpha,
    scale,
    WIDTH: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    magnitude = alpha / tl.sqrt_rn((tl.load(lengths + row) * n_cols).to(tl.float32))
    calls = tl.cdiv(n_cols, 4)
    first_call = tl.load(batch_rows + row) * calls
    source = table + tl.load(ids + row) * n_cols
    for start in range(0, n_cols, WIDTH):
        index = first_call + start // 4 + tl.arange(0, WIDTH // 4)
        w0, w1, w2, w3 = philox_words(key, stream, index)
        words = tl.reshape(tl.join(tl.join(w0, w2), tl.join(w1, w3)), (WIDTH,))
        u = (words >> 8).to(tl.float32) * 1.1920928955078125e-07 - 1.0  # 2^-23
        cols = start + tl.arange(0, WIDTH)
        hidden = tl.load(source + cols, mask=cols < n_cols, other=0.0).to(tl.float32) * scale
        hidden = hidden.to(out.dtype.element_ty).to(tl.float32)
        tl.store(out + row * n_cols + cols, hidden + magnitude * u, mask=cols < n_cols)


def _embed_noisy_triton(ids: Tensor, table: Tensor, noise: Noise, scale: float) -> Tensor:
    out = table.new_empty(ids.shape[0], table.shape[1])
    launch(
        _embed_noisy_kernel,
        (ids.shape[0],),
        ids=ids,
        table=table,
        out=out,
        key=noise.key,
        batch_rows=noise.rows,
        lengths=noise.lengths,
        stream=stream_of(NEFTUNE),
        n_cols=table.shape[1],
        alpha=noise.alpha,
        scale=scale,
        WIDTH=1024,
    )
    return out


def embed(
    ids: Tensor,  # (M,) int64
    table: Tensor,  # (V, D)
    noise: Noise | None = None,
    *,
    scale: float = 1.0,
    backend: Backend | None = None,
) -> Tensor:  # (M, D)
    """Look up embeddings, scale them and add noise; the table is frozen: there is no gradient.

    Args:
        ids: Tokens, shape (M,), int64.
        table: Embeddings, shape (V, D).
        noise: NEFTune noise, on what is scaled already.
        scale: A factor that the table's dtype holds exactly; the product is rounded to that dtype.
        backend: See cqa.kernels.backend.
    """
    backend = choose(backend, table.device, table.dtype)
    if noise is not None and backend == "triton":
        return _embed_noisy_triton(ids, table, noise, scale)
    hidden = table[ids].to(compute_dtype(backend, table.dtype))
    if scale != 1.0:
        hidden = hidden * scale
    return hidden if noise is None else add_noise_ref(hidden, noise)
