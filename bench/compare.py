"""Two ways of doing one thing, timed turn about in one run: the ratio cancels the machine."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any, Self

import numpy as np

PEERS = Path(__file__).parent / "peers"


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
    """Time ours, peer, ours, peer …, both warm already; bootstrap the median ratio."""
    times = np.array([[_seconds(ours), _seconds(peer)] for _ in range(n)])
    ratios = times[:, 1] / times[:, 0]
    draws = np.random.default_rng(0).choice(ratios, (2000, n))
    low, high = np.quantile(np.median(draws, axis=1), [0.025, 0.975])
    ours_s, peer_s = np.median(times, axis=0)
    return Comparison(float(np.median(ratios)), float(low), float(high), ours_s, peer_s, n)


def record(benchmark: Any, peer: str, comparison: Comparison, **extra: Any) -> None:
    """Keep a comparison beside the benchmark's own numbers."""
    benchmark.extra_info[f"against_{peer}"] = {**asdict(comparison), **extra}


def _seconds(function: Callable[[], Any]) -> float:
    started = time.perf_counter()
    answer = function()
    own = getattr(answer, "seconds", None)
    return time.perf_counter() - started if own is None else own


@dataclass(frozen=True, slots=True)
class Turn:
    """What a contestant answered."""

    seconds: float
    value: Any


class Contestant:
    """A script of bench/peers in a process of its own, which works when it has its turn."""

    def __init__(self, script: str, settings: dict[str, Any], python: str = sys.executable) -> None:
        """Start it and wait until it is ready."""
        self.peak_bytes = 0
        self._log = TemporaryFile("w+")  # noqa: SIM115
        self._process = subprocess.Popen(
            [python, str(PEERS / f"{script}.py"), json.dumps(settings)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._log, text=True,
        )  # fmt: skip
        self._answer()

    def __call__(self, **arguments: Any) -> Turn:
        """Take a turn."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(arguments) + "\n")
        self._process.stdin.flush()
        answer = self._answer()
        return Turn(answer["seconds"], answer["value"])

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            self._log.seek(0)
            raise RuntimeError(self._log.read()[-2000:])
        answer: dict[str, Any] = json.loads(line)
        self.peak_bytes = answer["peak_bytes"]
        return answer

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        """End it."""
        self._process.kill()
        self._process.communicate()
        self._log.close()
