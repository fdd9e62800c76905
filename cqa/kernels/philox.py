"""Philox4x32-10, the one random generator of the project: counter-based, the same on every backend.

A word is a pure function of (seed, step, stream, index): a mask can be made again wherever it is
needed, and a resumed run needs only its seed and step. From forward to backward Triton's kernels
keep it as bits, since drawing it again costs more.

    key      = (seed low 32 bits, seed high 32 bits)
    counter  = (index low, index high, stream, step)       four words out per counter
    stream   = kind << 24 | number                         kinds below; number e.g. of a module

Dropout of module m, row i (counted within the global batch), column j of K:
    lane  = 16 bits: words of index i * ceil(K / 8) + j // 8; lane l = j % 8 is word l // 2,
            low half if l is even, high half if l is odd
    keep  = lane >= round(65536 p);   scale = 65536 / (65536 - round(65536 p))

Uniforms take the top 24 bits of a word: u = (word >> 8) * 2^-24, exact in fp32, in [0, 1). What a
token is drawn by has 53 bits, of two words: u = ((w0 >> 5) * 2^26 + (w1 >> 6)) * 2^-53.

Source: Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3"; Triton's `tl.philox`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import triton
import triton.language as tl
from torch import Tensor

from cqa.kernels.backend import native_problem

Words32 = npt.NDArray[np.uint32]
Words64 = npt.NDArray[np.uint64]

DROPOUT, NEFTUNE, INIT, ORDER, SPLIT, DEAL, DRAW = range(7)  # kinds of streams

_MASK = 0xFFFFFFFF
_MUL0, _MUL2 = np.uint64(0xD2511F53), np.uint64(0xCD9E8D57)
_ADD0, _ADD1 = 0x9E3779B9, 0xBB67AE85
_SHIFT, _LOW = np.uint64(32), np.uint64(_MASK)
_CHUNK = 8192  # counters at a time: six uint64 arrays of this length stay in the cache


def philox_words_ref(seed: int, step: int, stream: int, index: Words64) -> Words32:
    """Return the four words of each counter, shape (len(index), 4)."""
    words = np.empty((len(index), 4), dtype=np.uint32)
    for start in range(0, len(index), _CHUNK):
        part = index[start : start + _CHUNK]
        counter = [part & _LOW, part >> _SHIFT]
        counter += [np.full_like(part, word & _MASK) for word in (stream, step)]
        for lane, word in enumerate(_ten_rounds(counter, seed)):
            words[start : start + _CHUNK, lane] = word
    return words


def row_words_ref(seed: int, step: int, stream: int, rows: Tensor, calls: int) -> Words32:
    """Return the words of `calls` counters a row, shape (len(rows), 4 * calls)."""
    first = rows.cpu().numpy().astype(np.uint64) * np.uint64(calls)
    index = np.add.outer(first, np.arange(calls, dtype=np.uint64)).reshape(-1)
    return philox_words_ref(seed, step, stream, index).reshape(len(rows), 4 * calls)


def row_words(seed: int, step: int, stream: int, rows: Tensor, calls: int) -> Words32:
    """As `row_words_ref`, by the native op where it is there: the words are the same."""
    if native_problem() is not None:
        return row_words_ref(seed, step, stream, rows, calls)
    out = torch.empty(rows.shape[0], 4 * calls, dtype=torch.int32, device="cpu")
    torch.ops.cqa.philox_words(signed64(seed), step, stream, rows.cpu().contiguous(), out)
    return out.numpy().view(np.uint32)


def _ten_rounds(counter: list[Words64], seed: int) -> list[Words64]:
    """Run the rounds in place, 32-bit words held in uint64 so that products are exact."""
    c0, c1, c2, c3 = counter
    spare0, spare2 = np.empty_like(c0), np.empty_like(c0)
    k0, k1 = seed & _MASK, seed >> 32 & _MASK
    for _ in range(10):
        np.multiply(c0, _MUL0, out=spare0)
        np.multiply(c2, _MUL2, out=spare2)
        c1 ^= np.uint64(k0)
        c3 ^= np.uint64(k1)
        np.right_shift(spare2, _SHIFT, out=c0)
        np.right_shift(spare0, _SHIFT, out=c2)
        c0 ^= c1
        c2 ^= c3
        spare2 &= _LOW
        spare0 &= _LOW
        c1, c3, spare2, spare0 = spare2, spare0, c1, c3
        k0, k1 = (k0 + _ADD0) & _MASK, (k1 + _ADD1) & _MASK
    return [c0, c1, c2, c3]


@triton.jit
def philox_words(key, stream, index):
    """The four words of each counter; key points at (seed, step), index is int64 of any shape."""
    low = index.to(tl.uint32)
    high = (index >> 32).to(tl.uint32)
    streams = tl.zeros_like(low) + stream.to(tl.uint32)
    steps = tl.zeros_like(low) + tl.load(key + 1).to(tl.uint32)
    return tl.philox(tl.load(key), low, high, streams, steps)


def kept_bytes(n_cols: int) -> int:
    """Return the bytes of a row's mask as bits: those of whole tiles, aligned for loads."""
    return -(-n_cols // 128) * 16


def signed64(word: int) -> int:
    """Return the signed number with the same low 64 bits, as an op's integer argument holds it."""
    low = word & 2**64 - 1
    return low - (low >> 63 << 64)


def stream_of(kind: int, number: int = 0) -> int:
    """Combine a kind of stream and a number below 2^24."""
    return kind << 24 | number


def uniforms(seed: int, step: int, stream: int, count: int) -> npt.NDArray[np.float32]:
    """Return `count` fp32 uniforms in [0, 1), exact multiples of 2^-24."""
    index = np.arange(-(-count // 4), dtype=np.uint64)
    words = philox_words_ref(seed, step, stream, index).reshape(-1)[:count]
    return (words >> np.uint32(8)).astype(np.float32) * np.float32(2.0**-24)


def wide_uniforms(seed: int, step: int, stream: int, index: Words64) -> npt.NDArray[np.float64]:
    """Return an fp64 uniform in [0, 1) of each counter, an exact multiple of 2^-53."""
    words = philox_words_ref(seed, step, stream, index).astype(np.uint64)
    high, low = words[:, 0] >> np.uint64(5), words[:, 1] >> np.uint64(6)
    return (high << np.uint64(26) | low).astype(np.float64) * 2.0**-53


def permutation(seed: int, step: int, stream: int, count: int) -> list[int]:
    """Return a random order of range(count): the stable sort of one 64-bit key per element."""
    index = np.arange(count, dtype=np.uint64)
    words = philox_words_ref(seed, step, stream, index).astype(np.uint64)
    keys = words[:, 0] << _SHIFT | words[:, 1]
    return [int(i) for i in np.argsort(keys, kind="stable")]


def device_key(seed: int, step: int, device: torch.device) -> Tensor:
    """Return what Triton's kernels read (seed, step) from, shape (2,) int64."""
    return torch.tensor([signed64(seed), step], device="cpu").to(device, non_blocking=True)


class Keyed:
    """What one step draws for some rows; its key is made where they are, unless it is given."""

    __slots__ = ()
    seed: int
    step: int
    rows: Tensor
    key: Tensor | None

    def __post_init__(self) -> None:
        if self.key is None:
            key = device_key(self.seed, self.step, self.rows.device)
            object.__setattr__(self, "key", key)


@dataclass(frozen=True, slots=True)
class Dropout(Keyed):
    """One step's dropout: every module draws its own mask from (seed, step, module, row, column).

    `rows` are the pass's rows as numbered in the whole global batch, shape (M,) int64, so
    that neither packing nor pruning changes a mask.
    """

    p: float
    seed: int
    step: int
    rows: Tensor
    key: Tensor | None = None  # (seed, step) where the rows are, for Triton's kernels

    @property
    def threshold(self) -> int:
        """Lanes below this are dropped."""
        return round(65536 * self.p)

    @property
    def scale(self) -> float:
        """What a kept element is multiplied by."""
        return 65536 / (65536 - self.threshold)

    def select(self, kept: Tensor) -> Dropout:
        """Return the dropout of some of the rows, by index."""
        return replace(self, rows=self.rows[kept])

    def keep(self, module: int, n_cols: int) -> Tensor:
        """Return the mask of module number `module`: True is kept, shape (M, n_cols), bool."""
        stream = stream_of(DROPOUT, module)
        words = row_words(self.seed, self.step, stream, self.rows, -(-n_cols // 8))
        lanes = words.view("<u2")[:, :n_cols]
        return torch.from_numpy(lanes >= self.threshold)

    def kept(self, modules: tuple[int, ...], n_cols: int) -> Tensor:
        """Return the masks of some modules as bits, (G, M, kept_bytes(n_cols)) uint8.

        A byte holds eight neighbouring columns, the first in its lowest bit.
        """
        bits = np.zeros((len(modules), self.rows.shape[0], kept_bytes(n_cols)), dtype=np.uint8)
        for part, module in zip(bits, modules, strict=True):
            packed = np.packbits(self.keep(module, n_cols).numpy(), axis=1, bitorder="little")
            part[:, : packed.shape[1]] = packed
        return torch.from_numpy(bits).to(self.rows.device)


@dataclass(frozen=True, slots=True)
class GroupDropout:
    """The dropout of the members of a group as Triton kernels take it; all None and 0 without."""

    rows: Tensor | None
    key: Tensor | None
    streams: Tensor | None
    threshold: int
    kept: Tensor | None = None  # (G, M, bytes) uint8: see dropout_tile.py

    @classmethod
    def of(
        cls, dropout: Dropout | None, modules: tuple[int, ...], kept: Tensor | None = None
    ) -> GroupDropout:
        """Return the dropout of these modules."""
        if dropout is None or dropout.threshold == 0:
            return NO_DROPOUT
        streams = dropout_streams(modules, dropout.rows.device)
        return cls(dropout.rows, dropout.key, streams, dropout.threshold, kept)

    @property
    def noted(self) -> dict[str, Any]:
        """Arguments that every kernel that reads or notes what is kept takes by these names."""
        return {
            "kept": self.kept,
            "kept_stride": 0 if self.kept is None else self.kept.shape[2],
            "DROPOUT": self.threshold > 0,
        }

    @property
    def drawing(self) -> dict[str, Any]:
        """The same of a kernel that draws what it notes."""
        return {
            **self.noted,
            "key": self.key,
            "streams": self.streams,
            "batch_rows": self.rows,
            "threshold": self.threshold,
        }


NO_DROPOUT = GroupDropout(None, None, None, 0)


@cache
def dropout_streams(modules: tuple[int, ...], device: torch.device) -> Tensor:
    """Return the stream numbers of some modules' dropout, shape (G,) int64."""
    return torch.tensor([signed64(stream_of(DROPOUT, m)) for m in modules], device="cpu").to(device)
