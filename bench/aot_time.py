"""How long a launch takes on a card that is not here: arithmetic, never a measurement.

The longest of what it waits for decides: memory, the second cache, issue of instructions, loads
that nothing hides, matrix units. Every number that is not in a table of NVIDIA's is a share, named
here with where it is from; docs/gpu-model.md writes the model down.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from aot_compile import Compiled
from aot_launch import Execution


@dataclass(frozen=True)
class Card:
    """A card by NVIDIA's data sheet: the SXM form with 80 GB, or 141 GB of the H200."""

    name: str
    architecture: int
    multiprocessors: int
    clock_hz: float  # that of the table's peak: 312 TF/s = 108 · 2,048 · 1.41 GHz
    bytes_per_s: float
    bf16_flops_per_s: float
    large_product: float  # the share of that peak that the library's large products reach
    attention_flops_per_s: float  # of FlashAttention 2 at several hundred tokens
    triton_product: float  # the library's rate in a product's kernel over that of one in Triton


# large products: 790 TF/s on an H200 and 260 to 275 on an A100 are what is published;
# attention: the same, for causal segments of 700 tokens; products in Triton: vllm #49131 has the
# library 1.85 times as fast on an A100 at 2,048 rows, batch_invariant_ops #12 2.5 times on an H200
CARDS = {
    card.name: card
    for card in (
        Card("A100", 80, 108, 1.41e9, 2.039e12, 312e12, 0.86, 120e12, 1.85),
        Card("H100", 90, 132, 1.83e9, 3.35e12, 989e12, 0.80, 245e12, 2.5),
        Card("H200", 90, 132, 1.83e9, 4.8e12, 989e12, 0.80, 245e12, 2.5),
    )
}
COPY_SHARE = 0.90  # of the table's bandwidth: 4.3 TB/s of an H200 and 3.0 of an H100 are published
SHAPE_SHARE = 0.92  # of a large product's rate, for depths of 3.6k and 19k that are no power of two
CACHE_BYTES = 32  # of the second cache, a clock and multiprocessor: assumed, half of its ports
ISSUE = 0.55  # instructions a clock and scheduler of such kernels: assumed, 0.45 to 0.65
ISSUE_OF_ONE = (
    0.25  # the same of a single warp: assumed, two of three instructions wait for another
)
SCHEDULERS = 4  # of a multiprocessor
LATENCY, CACHE_LATENCY = 700, 300  # clocks of a load from memory, from the second cache: assumed
START_S = 1.5e-6  # from the end of a kernel to the first work of the next: assumed
HOST_S = 20e-6  # of a launch out of PyTorch, an op of autograd and its share of Python: assumed
TILES = ((128, 256), (256, 128), (128, 128))  # of the library's products


@dataclass(frozen=True)
class LaunchTime:
    """What a launch would take if it waited for one thing alone, in seconds, and in all."""

    memory_s: float
    cache_s: float
    issue_s: float
    latency_s: float
    products_s: float
    tail: float  # the share of work that an even spread over multiprocessors would take

    @property
    def seconds(self) -> float:
        """The time."""
        spread = max(self.memory_s, self.cache_s, self.issue_s, self.products_s) / self.tail
        return START_S + max(spread, self.latency_s)

    @property
    def limit(self) -> str:
        """What decides."""
        waits = {
            "memory": self.memory_s, "cache": self.cache_s, "issue": self.issue_s,
            "products": self.products_s, "latency": self.latency_s * self.tail,
        }  # fmt: skip
        most = max(waits, key=waits.__getitem__)
        return most if waits[most] / self.tail > START_S else "start"


def tail(programs: int, multiprocessors: int) -> float:
    """Return the mean multiprocessor's programs over those of the busiest."""
    return programs / (multiprocessors * -(-programs // multiprocessors))


def waves(compiled: Compiled, programs: int, multiprocessors: int) -> float:
    """Return how often a grid fills the card."""
    if not compiled.resident:
        return math.inf
    return programs / (multiprocessors * compiled.resident)


def launch_time(compiled: Compiled, execution: Execution, card: Card) -> LaunchTime:
    """Predict one launch."""
    programs, warps = execution.programs, execution.launch.warps
    work = compiled.program.work(execution.grid, dict(execution.integers))
    sizes = dict(execution.n_bytes)
    asked = {"read": work.read, "written": work.written}
    moved = sum(
        min(n * programs, sizes.get(name, math.inf))
        for kind in asked.values()
        for name, n in kind.items()
    )
    requested = programs * sum(sum(kind.values()) for kind in asked.values())
    instructions, waiting = compiled.per_program(work)
    busiest = -(-programs // card.multiprocessors)
    beside = min(compiled.resident, busiest) * warps / SCHEDULERS  # warps of a scheduler
    issue = min(ISSUE, ISSUE_OF_ONE * beside)
    rate = SCHEDULERS * issue * card.multiprocessors * card.clock_hz
    clocks = sum(
        trips * (CACHE_LATENCY if loop.asynchronous else LATENCY) for loop, trips in waiting
    )
    full = math.ceil(waves(compiled, programs, card.multiprocessors))
    library = card.bf16_flops_per_s * card.large_product * SHAPE_SHARE
    return LaunchTime(
        memory_s=moved / (card.bytes_per_s * COPY_SHARE),
        cache_s=requested / (CACHE_BYTES * card.multiprocessors * card.clock_hz),
        issue_s=programs * warps * instructions / rate,
        latency_s=full * clocks / card.clock_hz,
        products_s=programs * work.flops / (library / card.triton_product),
        tail=tail(programs, card.multiprocessors),
    )


def best_fill(rows: int, columns: int, multiprocessors: int) -> float:
    """Return the share of multiprocessors that work in a library's product, at its best tile."""
    counts = [-(-rows // high) * -(-columns // wide) for high, wide in TILES]
    return max(tail(count, multiprocessors) for count in counts)


def product_time(m: int, n: int, k: int, n_bytes: int, card: Card, *, wide: bool = False) -> float:
    """Predict a product of the library's, (m, k) by (k, n), in seconds.

    Args:
        m: Rows.
        n: Columns.
        k: Depth.
        n_bytes: Moved.
        card: Where.
        wide: Whether the factors are fp32, which the matrix units take as they are nowhere.
    """
    peak = card.bf16_flops_per_s * card.large_product * SHAPE_SHARE / (16 if wide else 1)
    flops = 2 * m * n * k / (peak * best_fill(m, n, card.multiprocessors))
    return START_S + max(flops, streaming_s(n_bytes, card))


def streaming_s(n_bytes: float, card: Card) -> float:
    """Return what bytes take to move, read and written."""
    return n_bytes / (card.bytes_per_s * COPY_SHARE)
