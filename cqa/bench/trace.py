"""What a GPU does during a call: how long it waits for launches, and which kernels take long."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

import torch

from cqa.bench.timing import Call
from cqa.schema.written import Result

MOST_KERNELS = 20


@dataclass(frozen=True, slots=True)
class Gaps(Result):
    """The share of time in which a device had nothing to do, and what it did in the rest."""

    idle_share: float
    busy_s: float
    span_s: float
    n_kernels: int
    kernels: dict[str, float]  # share of busy time by name


def launch_gaps(call: Call, device: torch.device, n: int = 3) -> Gaps | None:
    """Profile n calls together; None without a GPU. The profiler lengthens the gaps a little."""
    if device.type != "cuda":
        return None
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as profiler:
        for _ in range(n):
            call()
        torch.cuda.synchronize(device)
    spans = [
        (event.name, event.time_range.start / 1e6, event.time_range.end / 1e6)
        for event in profiler.events()
        if event.device_type.name == "CUDA"
    ]
    return summarise_spans(spans)


def summarise_spans(spans: Iterable[tuple[str, float, float]]) -> Gaps | None:
    """Summarise (name, start, stop) of what ran on a device, in seconds; None if nothing did."""
    ordered = sorted(spans, key=lambda span: span[1])
    if not ordered:
        return None
    busy, reached = 0.0, ordered[0][1]
    by_name: Counter[str] = Counter()
    for name, start, stop in ordered:
        busy += max(0.0, stop - max(start, reached))
        reached = max(reached, stop)
        by_name[name] += stop - start  # type: ignore[assignment]
    total = reached - ordered[0][1]
    longest = by_name.most_common(MOST_KERNELS)
    return Gaps(
        idle_share=1 - busy / total if total else 0.0,
        busy_s=busy,
        span_s=total,
        n_kernels=len(ordered),
        kernels={name: seconds / sum(by_name.values()) for name, seconds in longest},
    )
