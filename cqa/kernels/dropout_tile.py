"""What dropout keeps of a tile in a Triton kernel: drawn in forward, and noted for backward.

A byte holds eight neighbouring columns, the first in its lowest bit, 1 is kept: one counter of
Philox decides them. The bytes of a group lie in one tensor (G, M, kept_bytes(K)): see philox.py.
"""

from __future__ import annotations

import triton
import triton.language as tl

from cqa.kernels.philox import philox_words


@triton.jit
def _two_lanes(word, threshold):
    return ((word & 0xFFFF) >= threshold).to(tl.uint32) | (
        ((word >> 16) >= threshold).to(tl.uint32) << 1
    )


@triton.jit
def dropout_bits(key, stream, threshold, rows, first, n_cols, WIDTH: tl.constexpr):
    """What dropout keeps of columns [first, first + WIDTH) of some rows, multiples of 8.

    `rows` (M,) are numbers within the global batch; the result is (M, WIDTH // 8) uint8.
    """
    calls = tl.cdiv(n_cols, 8)
    index = rows[:, None].to(tl.int64) * calls + (first // 8 + tl.arange(0, WIDTH // 8))[None, :]
    w0, w1, w2, w3 = philox_words(key, stream, index)
    bits = _two_lanes(w0, threshold) | _two_lanes(w1, threshold) << 2
    bits |= _two_lanes(w2, threshold) << 4 | _two_lanes(w3, threshold) << 6
    return bits.to(tl.uint8)


@triton.jit
def keep_of(bits, WIDTH: tl.constexpr, DRAWN: tl.constexpr = False):
    """The mask of bytes of `dropout_bits`: (M, WIDTH // 8) to (M, WIDTH), True is kept.

    The bits are spread as costs least where they were just drawn, or where they were loaded.
    """
    bits = bits.to(tl.int32)
    if DRAWN:  # bit 4 * b2 + 2 * b1 + b0: what is joined first varies slowest
        lanes = tl.join(bits, bits >> 4)
        lanes = tl.join(lanes, lanes >> 2)
        lanes = tl.join(lanes, lanes >> 1)
    else:
        lanes = bits[:, :, None] >> tl.arange(0, 8)[None, None, :]
    return (tl.reshape(lanes, (bits.shape[0], WIDTH)) & 1) != 0


@triton.jit
def kept_at(  # where the bytes of columns [start, start + WIDTH) are, (ROWS, WIDTH // 8)
    kept,  # (G, M, kept_stride) uint8
    kept_stride,
    member,
    rows,  # (ROWS,) int64
    m,
    start,
    WIDTH: tl.constexpr,
):
    first = tl.multiple_of(start // 8, WIDTH // 8)
    return kept + (member * m + rows)[:, None] * kept_stride + (first + tl.arange(0, WIDTH // 8))


@triton.jit
def drop_tile(  # columns [start, start + WIDTH) of X as a member drops them, noted for backward
    x,  # (ROWS, WIDTH)
    kept,  # (G, M, kept_stride) uint8, written
    kept_stride,
    member,
    first_rank,
    start,
    rows,  # (ROWS,) int64
    in_range,  # (ROWS,)
    numbers,  # (ROWS,) of the rows within the global batch
    m,
    k,
    key,
    streams,
    threshold,
    WIDTH: tl.constexpr,
):
    bits = dropout_bits(key, tl.load(streams + member), threshold, numbers, start, k, WIDTH)
    if first_rank == 0:  # of the programs that share the member's ranks
        at = kept_at(kept, kept_stride, member, rows, m, start, WIDTH)
        tl.store(at, bits, mask=in_range[:, None])
    return tl.where(keep_of(bits, WIDTH, True), x, 0.0)


@triton.jit
def kept_tile(  # the mask of columns [start, start + WIDTH), as it was noted in forward
    kept,  # (G, M, kept_stride) uint8
    kept_stride,
    member,
    rows,  # (ROWS,) int64
    in_range,  # (ROWS,)
    m,
    start,
    WIDTH: tl.constexpr,
):
    at = kept_at(kept, kept_stride, member, rows, m, start, WIDTH)
    return keep_of(tl.load(at, mask=in_range[:, None], other=0), WIDTH)
