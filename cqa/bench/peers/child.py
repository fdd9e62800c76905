"""The peer's side of a comparison: one call for each line on standard input.

A peer gets its settings as JSON in the first line of standard input, and answers every line
after it (JSON arguments of the call) with one: {"seconds", "value", "peak_bytes"}. This module
imports nothing of the package, so that programs in an environment of their own can use it too.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from typing import Any

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"

_answers = os.fdopen(os.dup(1), "w")
os.dup2(2, 1)  # what libraries print goes to standard error

settings: dict[str, Any] = json.loads(sys.stdin.readline())


def serve(function: Callable[..., Any]) -> None:
    """Answer until standard input ends; a call includes its work on the device."""
    answer({"ready": True})
    for line in sys.stdin:
        _wait()
        started = time.perf_counter()
        value = function(**json.loads(line))
        _wait()
        answer({"seconds": time.perf_counter() - started, "value": value})


def answer(message: dict[str, Any]) -> None:
    """Write one line, with the most memory this process has held so far."""
    print(json.dumps({**message, "peak_bytes": peak_bytes()}), file=_answers, flush=True)


def _wait() -> None:
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized():
        torch.cuda.synchronize()


def peak_bytes() -> int:
    """Return the most memory held: allocated on the GPU if there is one in use, else resident.

    getrusage would count the parent's too.
    """
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized():
        return int(torch.cuda.max_memory_allocated())
    with open("/proc/self/status", encoding="ascii") as status:
        line = next(line for line in status if line.startswith("VmHWM"))
    return int(line.split()[1]) * 1024
