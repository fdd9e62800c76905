"""What pytest-benchmark keeps of a comparison; how one is made is in cqa.study.bench."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from cqa.study.bench.timing import Comparison


def record(benchmark: Any, peer: str, comparison: Comparison, **extra: Any) -> None:
    """Keep a comparison beside the benchmark's own numbers."""
    benchmark.extra_info[f"against_{peer}"] = {**asdict(comparison), **extra}
