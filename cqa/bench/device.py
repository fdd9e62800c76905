"""The device: what it is, and what it can do at best in this very run."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from cqa.bench.timing import Call, Stopwatch
from cqa.identity import code_digest, versions
from cqa.kernels.backend import native_problem
from cqa.kernels.matmul import mm
from cqa.model.memory import free_bytes
from cqa.schema.written import Result

PACKAGES = ("triton", "peft", "liger_kernel", "unsloth", "lm_eval", "flash_attn")
QUERY = "driver_version,clocks.sm,clocks.mem,power.limit,temperature.gpu"
GEMM_SIZE = {"cuda": 8192, "cpu": 1536}
COPY_BYTES = {"cuda": 1 << 31, "cpu": 1 << 27}


def describe_device(device: torch.device) -> dict[str, Any]:
    """Return what a result must name: device, driver, versions, flags."""
    found = {name: _version(name) for name in PACKAGES}
    facts: dict[str, Any] = {
        "type": device.type,
        "name": _processor(),
        "versions": {**versions(), **found, "cuda": torch.version.cuda},
        "code": code_digest(),
        "platform": platform.platform(),
        "cpu_threads": torch.get_num_threads(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "free_memory_bytes": free_bytes(device),
    }
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        facts |= {
            "name": properties.name,
            "capability": f"{properties.major}.{properties.minor}",
            "multiprocessors": properties.multi_processor_count,
            "memory_bytes": properties.total_memory,
            **_asked_of_driver(),
        }
    return facts | {"flags": _flags()}


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    for line in info.read_text().splitlines() if info.exists() else ():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _asked_of_driver() -> dict[str, str]:
    """Return what nvidia-smi says, nothing where it is not there."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return {}
    command = [program, f"--query-gpu={QUERY}", "--format=csv,noheader"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    lines = done.stdout.splitlines()
    if done.returncode or not lines:
        return {}
    return dict(zip(QUERY.split(","), (part.strip() for part in lines[0].split(",")), strict=False))


def _flags() -> dict[str, Any]:
    matmul = torch.backends.cuda.matmul
    names = ("OMP_NUM_THREADS", "PYTORCH_CUDA_ALLOC_CONF", "CUBLAS_WORKSPACE_CONFIG")
    return {
        "allow_bf16_reduced_precision_reduction": matmul.allow_bf16_reduced_precision_reduction,
        "allow_tf32": matmul.allow_tf32,
        "native_ops": native_problem() is None,
        **{name: os.environ[name] for name in names if name in os.environ},
    }


@dataclass(frozen=True, slots=True)
class Ceilings(Result):
    """What the device does at best: what fractions in results are of."""

    gemm_flops_per_s: float
    copy_bytes_per_s: float  # read and written

    def floor_s(self, flops: int, n_bytes: int) -> float:
        """Return the least time for some work."""
        return max(flops / self.gemm_flops_per_s, n_bytes / self.copy_bytes_per_s)


def measure_ceilings(device: torch.device, dtype: torch.dtype, seconds: float) -> Ceilings:
    """Time a large product of random numbers and a large copy; the best round counts."""
    watch = Stopwatch(device)
    return Ceilings(_gemm_rate(watch, dtype, seconds), _copy_rate(watch, seconds))


def _gemm_rate(watch: Stopwatch, dtype: torch.dtype, seconds: float) -> float:
    """On a CPU the product is the faster of the library's and our own."""
    n = GEMM_SIZE[watch.device.type]
    a, b = (torch.randn(n, n, device=watch.device, dtype=dtype) for _ in range(2))
    calls: dict[str, Call] = {"library": lambda: torch.mm(a, b)}
    if watch.device.type == "cpu":
        calls["own"] = lambda: mm(a, b)
    best = min(timing.least_s for timing in watch.measure(calls, seconds=seconds).values())
    return 2 * n**3 / best


def _copy_rate(watch: Stopwatch, seconds: float) -> float:
    n = COPY_BYTES[watch.device.type] // 2
    source = torch.randint(0, 99, (n,), dtype=torch.int8, device=watch.device)
    target = torch.empty_like(source)
    timing = watch.measure({"copy": lambda: target.copy_(source)}, seconds=seconds)["copy"]
    return 2 * n / timing.least_s


class Peak:
    """The most memory held since it was made, in bytes; on a CPU that of the whole process."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.before = self._held()
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
        else:
            with open("/proc/self/clear_refs", "w", encoding="ascii") as file:
                file.write("5")

    def total_bytes(self) -> int:
        """Return the peak."""
        if self.device.type == "cuda":
            return int(torch.cuda.max_memory_allocated(self.device))
        return _resident("VmHWM")

    def extra_bytes(self) -> int:
        """Return how much more that is than was held at first."""
        return max(0, self.total_bytes() - self.before)

    def _held(self) -> int:
        if self.device.type == "cuda":
            return int(torch.cuda.memory_allocated(self.device))
        return _resident("VmRSS")


def _resident(key: str) -> int:
    with open("/proc/self/status", encoding="ascii") as status:
        return next(int(line.split()[1]) * 1024 for line in status if line.startswith(key))
