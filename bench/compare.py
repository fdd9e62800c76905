"""What pytest-benchmark keeps of a comparison; how one is made is in cqa.bench."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import pytest

from cqa.bench.timing import Comparison

N_SHORT = 25  # calls of what takes less than seconds, whose times scatter


def record(benchmark: Any, peer: str, comparison: Comparison, **extra: Any) -> None:
    """Keep a comparison beside the benchmark's own numbers."""
    benchmark.extra_info[f"against_{peer}"] = {**asdict(comparison), **extra}


def assert_same_step(ours: Any, peer: Any) -> None:
    """Compare (loss, gradient norm) of two trainers; torch adds up a norm in fp32."""
    (loss, norm), (peer_loss, peer_norm) = ours.value, peer.value
    assert loss == pytest.approx(peer_loss, rel=1e-5)
    assert norm == pytest.approx(peer_norm, rel=2e-4)
