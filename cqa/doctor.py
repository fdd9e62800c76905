"""What this machine offers, and what to do about what is missing."""

from __future__ import annotations

import os
import platform
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path

import torch

from cqa.identity import versions
from cqa.kernels.backend import REBUILD, compute_dtype, fastest, native_problem
from cqa.kernels.token_logprobs import token_stats
from cqa.model.load import DTYPES
from cqa.model.memory import free_memory_bytes
from cqa.schema.written import Result, merged
from cqa.text import counted

OLDEST_GPU = (8, 0)  # A100: the first with bf16 matrix units
TOLERANCE_NATS = {torch.float32: 1e-4, torch.bfloat16: 2e-2}  # of a tiny example
ROOMY_DISK_BYTES, ROOMY_MEMORY_BYTES = 10 * 10**9, 4 * 10**9


@dataclass(frozen=True, slots=True)
class Device(Result):
    """A GPU."""

    name: str
    capability: str
    memory_bytes: int
    free_memory_bytes: int
    bf16: bool


@dataclass(frozen=True, slots=True)
class Machine(Result):
    """What there is to compute with and to write to."""

    versions: dict[str, str]
    platform: str
    cpu_threads: int
    cpu_capability: str
    cuda_build: str | None
    cuda_devices: tuple[Device, ...]
    memory_bytes: int
    free_memory_bytes: int
    folder: str
    folder_writable: bool
    free_disk_bytes: int
    offline: bool
    backends: dict[str, str]  # by device and dtype, such as "cpu fp32"
    backend_problems: dict[str, str]  # of those that do not compute what they should
    native_problem: str | None


@dataclass(frozen=True, slots=True)
class Examination(Result):
    """A machine, and what could be better about it."""

    machine: Machine = field(metadata=merged())
    advice: tuple[str, ...]


def examine(folder: Path) -> Examination:
    """Look at versions, devices, backends, memory and disk.

    Args:
        folder: Where runs would be written; its disk is looked at.
    """
    backends = list(_backends())
    machine = Machine(
        versions={**versions(), "triton": version("triton")},
        platform=platform.platform(),
        cpu_threads=torch.get_num_threads(),
        cpu_capability=torch.backends.cpu.get_cpu_capability(),
        cuda_build=torch.version.cuda,
        cuda_devices=tuple(_device(i) for i in range(torch.cuda.device_count())),
        memory_bytes=os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        free_memory_bytes=free_memory_bytes(),
        folder=str(folder),
        folder_writable=os.access(folder, os.W_OK),
        free_disk_bytes=shutil.disk_usage(folder).free,
        offline=os.environ.get("HF_HUB_OFFLINE") == "1",
        backends={name: fastest(*place) for name, place in backends},
        backend_problems={
            name: problem for name, place in backends if (problem := backend_problem(*place))
        },
        native_problem=native_problem(),
    )
    return Examination(machine, tuple(_advice(machine)))


def _backends() -> Iterator[tuple[str, tuple[torch.device, torch.dtype]]]:
    """Yield every device and dtype that a run can have here, and what the two are called."""
    gpus = [torch.device("cuda", i) for i in range(torch.cuda.device_count())]
    for device in (torch.device("cpu"), *gpus):
        for name, dtype in DTYPES.items():
            yield f"{device} {name}", (device, dtype)


def backend_problem(device: torch.device, dtype: torch.dtype) -> str | None:
    """Score a tiny example by the ops that a run would choose; return what is wrong with them.

    Args:
        device: Where to run.
        dtype: Of the weights.

    Returns:
        None if the scores are those of the reference, computed on the CPU in fp64.
    """
    backend = fastest(device, dtype)
    hidden, head = (torch.linspace(-1, 1, n * 48).view(n, 48).sin().to(dtype) for n in (5, 37))
    hidden = hidden.to(compute_dtype(backend, dtype))
    target = torch.arange(5)
    expected = token_stats(hidden.double(), head.double(), target, backend="reference").logp
    try:
        found = token_stats(*(t.to(device) for t in (hidden, head, target)), backend=backend).logp
        error = (found.double().cpu() - expected).abs().max().item()
    except Exception as failure:  # driver, compiler and library each fail in ways of their own
        reason = str(failure) or type(failure).__name__
        return f"its {backend} ops fail: {reason.splitlines()[0]}"
    if error <= TOLERANCE_NATS[hidden.dtype]:
        return None
    return f"its {backend} ops are wrong by {error:.2g} nats in a tiny example"


def _device(index: int) -> Device:
    properties = torch.cuda.get_device_properties(index)
    free, total = torch.cuda.mem_get_info(index)
    return Device(
        name=properties.name,
        capability=f"{properties.major}.{properties.minor}",
        memory_bytes=total,
        free_memory_bytes=free,
        bf16=(properties.major, properties.minor) >= OLDEST_GPU,
    )


def _advice(machine: Machine) -> Iterator[str]:
    if not machine.cuda_devices:
        why = (
            "this torch is a CPU build; a CUDA build is at https://pytorch.org/get-started"
            if machine.cuda_build is None
            else "no device answers; nvidia-smi shows whether the driver runs"
        )
        yield f"no GPU: {why}; models over about 1 B parameters will be slow"
    if machine.native_problem:
        yield (
            f"no native CPU ops: {machine.native_problem}; training and scoring on the CPU take "
            f"several times as long without them; {REBUILD}"
        )
    for device in machine.cuda_devices:
        if not device.bf16:
            yield f"{device.name} has no bf16 matrix units: use --dtype fp32"
    for name, problem in machine.backend_problems.items():
        yield (
            f"{name} cannot be used: {problem}; "
            + (REBUILD if name.startswith("cpu") else "torch, triton and driver must go together")
        )
    if machine.free_memory_bytes < ROOMY_MEMORY_BYTES:
        yield "under 4 GB of memory are free: a 0.5 B model in fp32 takes 2 GB"
    if machine.free_disk_bytes < ROOMY_DISK_BYTES:
        yield "under 10 GB of disk are free: 12 epochs of a 7 B model's adapter take 4 GB"
    if not machine.folder_writable:
        yield f"{machine.folder} cannot be written: name another --out"
    if machine.offline:
        yield "HF_HUB_OFFLINE=1: hub ids are found only if they were downloaded before"


def report_text(found: Examination) -> str:
    """Return the examination as text."""
    machine = found.machine
    lines = [f"{name:<14} {value}" for name, value in machine.versions.items()]
    lines += [
        f"{'platform':<14} {machine.platform}",
        f"{'cpu':<14} {counted(machine.cpu_threads, 'thread')}, {machine.cpu_capability}",
        f"{'memory':<14} {_of(machine.free_memory_bytes, machine.memory_bytes)}",
        f"{'disk':<14} {machine.free_disk_bytes / 1e9:.1f} GB free in {machine.folder}",
    ]
    lines += [
        f"{'gpu':<14} {d.name}, sm {d.capability}, {_of(d.free_memory_bytes, d.memory_bytes)}"
        for d in machine.cuda_devices
    ] or [f"{'gpu':<14} none"]
    lines += [
        f"{name:<14} {backend} ops{', broken' if name in machine.backend_problems else ''}"
        for name, backend in machine.backends.items()
    ]
    return "\n".join([*lines, *(f"note: {text}" for text in found.advice)])


def _of(free_bytes: int, total_bytes: int) -> str:
    return f"{free_bytes / 1e9:.1f} of {total_bytes / 1e9:.1f} GB free"
