"""How long calls take: interleaved where they are compared, with an interval of the median."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from cqa.schema.written import Result

Call = Callable[[], Any]
LEAST, MOST = 5, 1000  # rounds of a measurement
FLUSH_BYTES = 1 << 29  # more than any cache, and long enough to hide the launch of what follows


@dataclass(frozen=True, slots=True)
class Timing(Result):
    """Median of a call's times with its 95 % bootstrap interval."""

    median_s: float
    low_s: float
    high_s: float
    least_s: float
    n: int
    total_s: float

    @classmethod
    def of(cls, times: list[float]) -> Timing:
        """Summarise times."""
        low, high = median_interval(np.array(times))
        median, total = float(np.median(times)), float(np.sum(times))
        return cls(median, low, high, min(times), len(times), total)


def median_interval(values: np.ndarray[Any, Any]) -> tuple[float, float]:
    """Return the 95 % bootstrap interval of a median, always the same for the same values."""
    draws = np.random.default_rng(0).choice(values, (2000, len(values)))
    low, high = np.quantile(np.median(draws, axis=1), [0.025, 0.975])
    return float(low), float(high)


class Stopwatch:
    """Times calls on a device: by its events on CUDA, by the wall clock elsewhere."""

    def __init__(self, device: torch.device, *, flush: bool = False) -> None:
        """`flush` clears a GPU's cache before each call; for kernels, not for whole steps."""
        self.device = device
        cuda = device.type == "cuda"
        self._flushed: Tensor | None = (
            torch.empty(FLUSH_BYTES, dtype=torch.int8, device=device) if cuda and flush else None
        )

    def __call__(self, call: Call) -> float:
        """Return the seconds that a call takes, its work on the device included."""
        if self.device.type != "cuda":
            started = time.perf_counter()
            call()
            return time.perf_counter() - started
        start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda.synchronize(self.device)
        if self._flushed is not None:
            self._flushed.zero_()
        start.record()
        call()
        stop.record()
        torch.cuda.synchronize(self.device)
        return float(start.elapsed_time(stop)) / 1000

    def measure(
        self,
        calls: Mapping[str, Call],
        *,
        seconds: float,
        warm_ups: int = 2,
        least: int = LEAST,
        rounds: int | None = None,
    ) -> dict[str, Timing]:
        """Time calls interleaved, after a warm-up of each.

        Args:
            calls: What to time, by name.
            seconds: Time to spend on each.
            warm_ups: How often each is called before.
            least: The least number of rounds, whatever the time.
            rounds: Exactly so many instead.
        """
        for _ in range(warm_ups):
            for call in calls.values():
                call()
        times: dict[str, list[float]] = {name: [] for name in calls}
        spent, n = 0.0, 0
        while n < rounds if rounds else (n < least or (spent < seconds * len(calls) and n < MOST)):
            for name, call in calls.items():
                times[name].append(self(call))
                spent += times[name][-1]
            n += 1
        return {name: Timing.of(values) for name, values in times.items()}


@dataclass(frozen=True, slots=True)
class Comparison(Result):
    """How many times faster than the peer, as the median of paired ratios with a 95 % interval."""

    ratio: float
    low: float
    high: float
    ours_s: float
    peer_s: float
    n: int


def compare_interleaved(ours: Call, peer: Call, n: int = 5) -> Comparison:
    """Time ours, peer, ours, peer …, both warm already; bootstrap the median ratio.

    What a call returns may say itself how long it took, as a peer's reply does.
    """
    times = np.array([[_seconds(ours), _seconds(peer)] for _ in range(n)])
    ratios = times[:, 1] / times[:, 0]
    low, high = median_interval(ratios)
    ours_s, peer_s = np.median(times, axis=0)
    return Comparison(float(np.median(ratios)), low, high, float(ours_s), float(peer_s), n)


def _seconds(function: Call) -> float:
    started = time.perf_counter()
    answer = function()
    own = getattr(answer, "seconds", None)
    return time.perf_counter() - started if own is None else float(own)
