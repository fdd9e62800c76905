"""Compile every Triton kernel ahead of time, as the public ops launch it, and look at the result.

The ops run on tensors without data; each launch is recorded with its argument types and compiled
for GPUs that need not be here. Fails where a kernel with matrix products spills registers, where
shared memory exceeds what the architecture has, or where a 16-bit product uses no matrix unit.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
import triton
from aot_cases import CASES, SHAPES
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.runtime.jit import JITFunction

SHARED_BYTES = {80: 163 * 1024, 90: 227 * 1024, 100: 227 * 1024}  # the most a block can have
MATRIX_UNITS = ("HGMMA", "UTCHMMA", "HMMA")  # in SASS: sm_90, sm_100, sm_80 and later
TYPES = {
    torch.bfloat16: "bf16", torch.float16: "fp16", torch.float32: "fp32", torch.float64: "fp64",
    torch.int64: "i64", torch.int32: "i32", torch.bool: "i1",
}  # fmt: skip


@dataclass(frozen=True)
class Launch:
    """A kernel with everything that decides its code."""

    kernel: JITFunction
    signature: tuple[tuple[str, str], ...]
    constants: tuple[tuple[int, Any], ...]
    aligned: tuple[int, ...]  # arguments that are multiples of 16
    options: tuple[tuple[str, Any], ...]

    @property
    def name(self) -> str:
        """The kernel, and the constants that tell its variants apart."""
        names = [name for name, _ in self.signature]
        flags = [f"{names[i]}={value}" for i, value in self.constants if names[i].isupper()]
        return f"{self.kernel.fn.__name__.strip('_')} ({', '.join(flags)})"

    @property
    def multiplies(self) -> str:
        """The type of the factors of its matrix products, or "" where it has none."""
        named = {self.signature[i][0]: value for i, value in self.constants}
        used = named.get("LORA", True) and named.get("MEMBERS", 1)
        return str(named["DOT"]) if used and "DOT" in named else ""


def launches_of(call: Callable[[], None]) -> list[Launch]:
    """Return what an op launches, without launching it."""
    recorded: list[Launch] = []

    def record(self: JITFunction, *args: Any, grid: Any, warmup: bool, **kwargs: Any) -> None:
        recorded.append(_launch(self, args, kwargs))

    run, JITFunction.run = JITFunction.run, record
    try:
        call()
    finally:
        JITFunction.run = run
    return list(dict.fromkeys(recorded))


def _launch(kernel: JITFunction, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Launch:
    names = [p.name for p in kernel.params]
    values = dict(zip(names, args, strict=False)) | {n: kwargs[n] for n in names if n in kwargs}
    signature, constants, aligned = [], [], []
    for i, parameter in enumerate(kernel.params):
        value = values[parameter.name]
        number = type(value) is int and not parameter.do_not_specialize
        constant = parameter.is_constexpr or value is None or (number and value == 1)
        if constant:
            constants.append((i, value))
        if isinstance(value, torch.Tensor):
            offset = value.storage_offset() * value.itemsize
        else:
            offset = value if number else 1
        if not constant and offset % 16 == 0:
            aligned.append(i)
        signature.append((parameter.name, "constexpr" if constant else _type(value)))
    options = {n: v for n, v in kwargs.items() if n not in names}
    return Launch(
        kernel, tuple(signature), tuple(constants), tuple(aligned), tuple(options.items())
    )


def _type(value: Any) -> str:
    if isinstance(value, torch.Tensor):
        return "*" + TYPES[value.dtype]
    if isinstance(value, float):
        return "fp32"
    return "i32" if -(2**31) <= value < 2**31 else "i64"


@dataclass(frozen=True)
class Compiled:
    """What became of a launch on an architecture."""

    registers: int
    stack_bytes: int
    shared_bytes: int
    matrix_unit: str
    problems: tuple[str, ...]


def compile_launch(launch: Launch, architecture: int) -> Compiled:
    """Compile for one architecture and read the machine code."""
    source = ASTSource(
        launch.kernel,
        signature=dict(launch.signature),
        constexprs={(i,): value for i, value in launch.constants},
        attrs={(i,): [["tt.divisibility", 16]] for i in launch.aligned},
    )
    binary = triton.compile(
        source, target=GPUTarget("cuda", architecture, 32), options=dict(launch.options)
    )
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "kernel.cubin"
        path.write_bytes(binary.asm["cubin"])
        usage = _dump(path, "--dump-resource-usage")
        sass = _dump(path, "-sass")
    counts = dict(
        field.split(":", 1) for field in usage.split() if ":" in field and field[0].isalpha()
    )
    unit = next((unit for unit in MATRIX_UNITS if unit in sass), "")
    shared = binary.metadata.shared
    stack = int(counts["STACK"]) + int(counts["LOCAL"])
    problems = []
    if stack and launch.multiplies:
        problems.append(f"{stack} bytes of spilled registers")
    if shared > SHARED_BYTES[architecture]:
        problems.append(f"shared memory over {SHARED_BYTES[architecture]} bytes")
    if launch.multiplies in ("bf16", "fp16") and not unit:
        problems.append("16-bit products without a matrix unit")
    if binary.metadata.global_scratch_size:
        problems.append("needs scratch memory, which nothing gives it")
    return Compiled(int(counts["REG"]), stack, shared, unit, tuple(problems))


def _dump(cubin: Path, what: str) -> str:
    tool = triton.knobs.nvidia.cuobjdump.path
    return subprocess.run([tool, what, cubin], capture_output=True, text=True, check=True).stdout


def compiled_table(
    shapes: list[str], dtypes: list[torch.dtype], architectures: list[int], *, quick: bool
) -> Iterator[tuple[str, str, int, Compiled]]:
    """Yield kernel, pointer type, architecture and result of every distinct launch."""
    launches: dict[Launch, str] = {}
    for shape in shapes:
        for dtype in dtypes:
            for case in CASES:
                for launch in launches_of(partial(case, SHAPES[shape], dtype)):
                    launches.setdefault(launch, TYPES[dtype])
    if quick:
        first = {launch.kernel: launch for launch in reversed(launches)}
        launches = {launch: launches[launch] for launch in first.values()}
    jobs = [(launch, architecture) for launch in launches for architecture in architectures]
    with ThreadPoolExecutor(2) as pool:
        results = pool.map(lambda job: compile_launch(*job), jobs)
        for (launch, architecture), result in zip(jobs, results, strict=True):
            yield launch.name, launches[launch], architecture, result


def main() -> None:
    """Compile, print a table, exit 1 if anything is wrong."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shape", nargs="+", default=list(SHAPES), choices=list(SHAPES))
    parser.add_argument("--dtype", nargs="+", default=["bf16", "fp32"], choices=["bf16", "fp32"])
    parser.add_argument("--sm", nargs="+", type=int, default=list(SHARED_BYTES))
    parser.add_argument("--quick", action="store_true", help="one variant of each kernel")
    parser.add_argument("--out", type=Path, help="also write the table here, as Markdown")
    options = parser.parse_args()
    by_name = {name: dtype for dtype, name in TYPES.items()}
    lines = [
        f"Triton {triton.__version__}, shapes {', '.join(options.shape)}.",
        "",
        "| kernel | dtype | sm | registers | stack, bytes | shared, bytes | matrix unit |",
        "|---|---|---|---|---|---|---|",
    ]
    print("\n".join(lines))
    failures = 0
    dtypes = [by_name[d] for d in options.dtype]
    table = compiled_table(options.shape, dtypes, options.sm, quick=options.quick)
    for name, dtype, architecture, c in table:
        unit = c.matrix_unit or "–"
        line = f"| {name} | {dtype} | {architecture} | {c.registers} | {c.stack_bytes} | "
        lines.append(f"{line}{c.shared_bytes} | {unit} |")
        print(lines[-1], flush=True)
        for problem in c.problems:
            failures += 1
            print(f"error: {name}, {dtype}, sm_{architecture}: {problem}", file=sys.stderr)
    if options.out:
        options.out.write_text("\n".join(lines) + "\n", encoding="utf-8")
    sys.exit(failures > 0)


if __name__ == "__main__":
    main()
