"""What this machine offers, and what to do about what is missing."""

from __future__ import annotations

import os
import platform
import shutil
from pathlib import Path
from typing import Any

import torch

from cqa.identity import versions
from cqa.kernels.backend import REBUILD, native_problem


def examine(folder: Path) -> dict[str, Any]:
    """Return versions, devices, memory and disk; `advice` names what could be better."""
    devices = [
        {
            "name": torch.cuda.get_device_name(i),
            "capability": "{}.{}".format(*torch.cuda.get_device_capability(i)),
            "memory_bytes": torch.cuda.get_device_properties(i).total_memory,
        }
        for i in range(torch.cuda.device_count())
    ]
    facts = {
        "versions": versions(),
        "platform": platform.platform(),
        "cpu_threads": torch.get_num_threads(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "cuda_build": torch.version.cuda,
        "cuda_devices": devices,
        "memory_bytes": _memory_bytes(),
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


def _memory_bytes() -> int:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _advice(facts: dict[str, Any]) -> list[str]:
    advice = []
    if not facts["cuda_devices"]:
        why = "this torch is a CPU build" if facts["cuda_build"] is None else "no device answers"
        advice.append(f"no GPU: {why}; models over about 1 B parameters will be slow")
    if facts["native_problem"]:
        advice.append(
            f"no native CPU ops: {facts['native_problem']}; training and scoring on the CPU take "
            f"several times as long without them; {REBUILD}"
        )
    if facts["free_disk_bytes"] < 10 * 10**9:
        advice.append("under 10 GB of disk are free: 12 epochs of a 7 B model's adapter take 4 GB")
    return advice


def report_text(facts: dict[str, Any]) -> str:
    """Return the examination as text."""
    lines = [f"{name:<14} {value}" for name, value in facts["versions"].items()]
    lines += [
        f"{'platform':<14} {facts['platform']}",
        f"{'cpu':<14} {facts['cpu_threads']} threads, {facts['cpu_capability']}",
        f"{'memory':<14} {facts['memory_bytes'] / 1e9:.1f} GB",
        f"{'free disk':<14} {facts['free_disk_bytes'] / 1e9:.1f} GB",
    ]
    lines += [
        f"{'gpu':<14} {d['name']}, {d['memory_bytes'] / 1e9:.0f} GB, sm {d['capability']}"
        for d in facts["cuda_devices"]
    ]
    lines += [f"{'ops on ' + k:<14} {v}" for k, v in facts["backends"].items()]
    return "\n".join([*lines, *(f"note: {text}" for text in facts["advice"])])
