"""Two ways of doing one thing, timed turn about in one run: the ratio cancels the machine."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np


@dataclass(frozen=True, slots=True)
class Comparison:
    """How many times faster than the peer, as the median of paired ratios with a 95 % interval."""

    ratio: float
    low: float
    high: float
    ours_s: float
    peer_s: float
    n: int


def turn_about(ours: Callable[[], Any], peer: Callable[[], Any], n: int = 5) -> Comparison:
    """Time ours, peer, ours, peer … after one warm-up of each; bootstrap the median ratio."""
    for function in (ours, peer):
        function()
    times = np.array([[_seconds(ours), _seconds(peer)] for _ in range(n)])
    ratios = times[:, 1] / times[:, 0]
    draws = np.random.default_rng(0).choice(ratios, (2000, n))
    low, high = np.quantile(np.median(draws, axis=1), [0.025, 0.975])
    ours_s, peer_s = np.median(times, axis=0)
    return Comparison(float(np.median(ratios)), float(low), float(high), ours_s, peer_s, n)


def record(benchmark: Any, peer: str, comparison: Comparison) -> None:
    """Keep a comparison beside the benchmark's own numbers."""
    benchmark.extra_info[f"against_{peer}"] = asdict(comparison)


def _seconds(function: Callable[[], Any]) -> float:
    started = time.perf_counter()
    function()
    return time.perf_counter() - started
