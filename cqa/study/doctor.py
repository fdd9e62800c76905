"""What this machine offers, and what to do about what is missing."""

from __future__ import annotations

import os
import platform
import shutil
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from cqa.identity import versions
from cqa.kernels.backend import REBUILD, native_problem

OLDEST_GPU = (8, 0)  # A100: the first with bf16 matrix units
ROOMY_DISK_BYTES, ROOMY_MEMORY_BYTES = 10 * 10**9, 4 * 10**9
LIMITS = (  # a container's limit and use, version 2 and 1 of its interface
    ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current"),
    ("/sys/fs/cgroup/memory/memory.limit_in_bytes", "/sys/fs/cgroup/memory/memory.usage_in_bytes"),
)


def examine(folder: Path) -> dict[str, Any]:
    """Return versions, devices, memory and disk; `advice` names what could be better.

    Args:
        folder: Where runs would be written; its disk is looked at.
    """
    facts = {
        "versions": {**versions(), "triton": _version("triton")},
        "platform": platform.platform(),
        "cpu_threads": torch.get_num_threads(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "cuda_build": torch.version.cuda,
        "cuda_devices": [_device(i) for i in range(torch.cuda.device_count())],
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "free_memory_bytes": free_memory_bytes(),
        "folder": str(folder),
        "folder_writable": os.access(folder, os.W_OK),
        "free_disk_bytes": shutil.disk_usage(folder).free,
        "offline": os.environ.get("HF_HUB_OFFLINE") == "1",
        "backends": {
            "cpu fp32": "reference" if native_problem() else "native",
            "cpu bf16": "reference",
            "cuda": "reference",
        },
        "native_problem": native_problem(),
    }
    return {**facts, "advice": _advice(facts)}


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _device(index: int) -> dict[str, Any]:
    properties = torch.cuda.get_device_properties(index)
    free, total = torch.cuda.mem_get_info(index)
    return {
        "name": properties.name,
        "capability": f"{properties.major}.{properties.minor}",
        "memory_bytes": total,
        "free_memory_bytes": free,
        "bf16": (properties.major, properties.minor) >= OLDEST_GPU,
    }


def free_memory_bytes() -> int:
    """Return the memory that a new process can have: of the machine, or of its container."""
    free = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_AVPHYS_PAGES")
    meminfo = Path("/proc/meminfo")
    for line in meminfo.read_text().splitlines() if meminfo.exists() else ():
        if line.startswith("MemAvailable:"):
            free = int(line.split()[1]) * 1024
    for limit, used in LIMITS:
        values = [_number(Path(limit)), _number(Path(used))]
        if values[0] is not None and values[1] is not None:
            free = min(free, max(0, values[0] - values[1]))
    return free


def _number(path: Path) -> int | None:
    try:
        return int(path.read_text())
    except (OSError, ValueError):  # no such file, or "max"
        return None


def _advice(facts: dict[str, Any]) -> list[str]:
    advice = []
    if not facts["cuda_devices"]:
        why = (
            "this torch is a CPU build; a CUDA build is at https://pytorch.org/get-started"
            if facts["cuda_build"] is None
            else "no device answers; nvidia-smi shows whether the driver runs"
        )
        advice.append(f"no GPU: {why}; models over about 1 B parameters will be slow")
    if facts["native_problem"]:
        advice.append(
            f"no native CPU ops: {facts['native_problem']}; training and scoring on the CPU take "
            f"several times as long without them; {REBUILD}"
        )
    for device in facts["cuda_devices"]:
        if not device["bf16"]:
            advice.append(f"{device['name']} has no bf16 matrix units: use --dtype fp32")
    if facts["cuda_devices"] and facts["versions"]["triton"] is None:
        advice.append("triton is not installed: pip install triton")
    if facts["free_memory_bytes"] < ROOMY_MEMORY_BYTES:
        advice.append("under 4 GB of memory are free: a 0.5 B model in fp32 takes 2 GB")
    if facts["free_disk_bytes"] < ROOMY_DISK_BYTES:
        advice.append("under 10 GB of disk are free: 12 epochs of a 7 B model's adapter take 4 GB")
    if not facts["folder_writable"]:
        advice.append(f"{facts['folder']} cannot be written: name another --out")
    if facts["offline"]:
        advice.append("HF_HUB_OFFLINE=1: hub ids are found only if they were downloaded before")
    return advice


def report_text(facts: dict[str, Any]) -> str:
    """Return the examination as text."""
    lines = [f"{name:<14} {value or 'missing'}" for name, value in facts["versions"].items()]
    lines += [
        f"{'platform':<14} {facts['platform']}",
        f"{'cpu':<14} {facts['cpu_threads']} threads, {facts['cpu_capability']}",
        f"{'memory':<14} {_of(facts['free_memory_bytes'], facts['memory_bytes'])}",
        f"{'disk':<14} {facts['free_disk_bytes'] / 1e9:.1f} GB free in {facts['folder']}",
    ]
    lines += [
        f"{'gpu':<14} {d['name']}, sm {d['capability']}, "
        f"{_of(d['free_memory_bytes'], d['memory_bytes'])}"
        for d in facts["cuda_devices"]
    ] or [f"{'gpu':<14} none"]
    lines += [f"{'ops on ' + k:<14} {v}" for k, v in facts["backends"].items()]
    return "\n".join([*lines, *(f"note: {text}" for text in facts["advice"])])


def _of(free_bytes: int, total_bytes: int) -> str:
    return f"{free_bytes / 1e9:.1f} of {total_bytes / 1e9:.1f} GB free"
