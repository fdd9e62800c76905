"""Compile every Triton kernel ahead of time, as the public ops launch it, and look at the result.

The ops run on tensors without data; each launch is recorded with its argument types and compiled
for GPUs that need not be here. Fails where a kernel with matrix products spills registers, where
shared memory exceeds what the architecture has, or where a 16-bit product uses no matrix unit,
loads less than 16 bytes at a time, or loads a tile number by number in a loop. Ranks of LoRA decide
the code too: 8 to 256 are compiled.
"""

from __future__ import annotations

import argparse
import math
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import aot_cases
import torch
import triton
from aot_cases import CASES, SHAPES
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.runtime.jit import JITFunction


@dataclass(frozen=True)
class Card:
    """What an architecture has, by NVIDIA's tables of compute capabilities."""

    shared_bytes: int  # the most that a block can have; a multiprocessor has 1 KiB more
    warps: int  # the most on a multiprocessor
    multiprocessors: int  # of the largest common card


CARDS = {
    80: Card(163 << 10, 64, 108), 86: Card(99 << 10, 48, 84), 89: Card(99 << 10, 48, 128),
    90: Card(227 << 10, 64, 132), 100: Card(227 << 10, 64, 148), 120: Card(99 << 10, 48, 170),
}  # fmt: skip
# of SASS: where it is, what it does; a branch says where to
INSTRUCTION = re.compile(r"^\s+/\*([0-9a-f]{4,})\*/\s+(?!NOP)(\S.*?);", re.MULTILINE)
BRANCH = re.compile(r"\bBRA\b.*0x([0-9a-f]+)")
REGISTERS = 65536  # of a multiprocessor
LOADS = re.compile(r"\b(?:LDG|LDGSTS)\.E(?:\.\w+)*")  # of SASS, from global memory
WIDTHS = {"128": 16, "64": 8, "U16": 2, "S16": 2, "U8": 1, "S8": 1}  # bytes; 4 where none is said
MATRIX_UNITS = ("HGMMA", "UTCHMMA", "HMMA")  # in SASS: sm_90, sm_100, sm_80 and later
TYPES = {
    torch.bfloat16: "bf16", torch.float16: "fp16", torch.float32: "fp32", torch.float64: "fp64",
    torch.int64: "i64", torch.int32: "i32", torch.bool: "i1", torch.uint8: "u8",
}  # fmt: skip


@dataclass(frozen=True)
class Launch:
    """A kernel with everything that decides its code."""

    kernel: JITFunction
    signature: tuple[tuple[str, str], ...]
    constants: tuple[tuple[int, Any], ...]
    aligned: tuple[int, ...]  # arguments that are multiples of 16
    options: tuple[tuple[str, Any], ...]
    programs: int = field(compare=False)  # of the first launch like it

    @property
    def warps(self) -> int:
        """Warps of a program."""
        return int(dict(self.options).get("num_warps", 4))

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
        recorded.append(_launch(self, grid, args, kwargs))

    run, JITFunction.run = JITFunction.run, record
    try:
        call()
    finally:
        JITFunction.run = run
    return list(dict.fromkeys(recorded))


def _launch(
    kernel: JITFunction, grid: tuple[int, ...], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Launch:
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
        kernel, tuple(signature), tuple(constants), tuple(aligned), tuple(options.items()),
        math.prod(grid),
    )  # fmt: skip


def _type(value: Any) -> str:
    if isinstance(value, torch.Tensor):
        return "*" + TYPES[value.dtype]
    if isinstance(value, float):
        return "fp32"
    return "i32" if -(2**31) <= value < 2**31 else "i64"


@dataclass(frozen=True)
class Loop:
    """What of a loop the machine code tells; all 0 where there is none."""

    instructions: int = 0
    barriers: int = 0
    asynchronous: int = 0  # loads that go to shared memory by themselves
    narrow: int = 0  # loads of single 16-bit numbers


def longest_loop(sass: str) -> Loop:
    """Return the longest loop that holds no other: from where a branch goes back to, to it."""
    code = [(int(match[1], 16), match[2]) for match in INSTRUCTION.finditer(sass)]
    backward = [
        (int(target[1], 16), at)
        for at, what in code
        if (target := BRANCH.search(what)) and int(target[1], 16) < at
    ]
    bodies = [
        [what for at, what in code if first <= at <= last]
        for first, last in backward
        if not any(first <= a and b < last for a, b in backward)
    ]
    body = max(bodies, key=len, default=[])
    return Loop(
        len(body),
        sum("BAR.SYNC" in what for what in body),
        sum("LDGSTS" in what for what in body),
        sum(bool(re.search(r"\bLDG\.E.*\.[US]16\b", what)) for what in body),
    )


@dataclass(frozen=True)
class Compiled:
    """What became of a launch on an architecture."""

    registers: int
    stack_bytes: int
    shared_bytes: int
    matrix_unit: str
    load_bytes: int  # the widest load from global memory, by one thread
    instructions: int  # of the whole kernel, not executed ones
    loop: Loop  # the longest
    resident: int  # programs on a multiprocessor at a time
    waves: float  # that the grid takes on the card, 1 and a bit being the worst
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
    card, registers = CARDS[architecture], int(counts["REG"])
    if shared > card.shared_bytes:
        problems.append(f"shared memory over {card.shared_bytes} bytes")
    if launch.multiplies in ("bf16", "fp16") and not unit:
        problems.append("16-bit products without a matrix unit")
    if binary.metadata.global_scratch_size:
        problems.append("needs scratch memory, which nothing gives it")
    widths = [WIDTHS.get(part, 4) for load in LOADS.findall(sass) for part in load.split(".")[2:]]
    resident = min(
        32,
        card.warps // launch.warps,
        REGISTERS // (launch.warps * 32 * -(-registers // 8) * 8),  # given out by eight
        (card.shared_bytes + 1024) // (shared + 1024),  # 1 KiB is the system's
    )
    widest = max(widths, default=4)
    if launch.multiplies in ("bf16", "fp16") and widest < 16:
        problems.append(f"loads of {widest} bytes at most")
    loop = longest_loop(sass)
    if launch.multiplies in ("bf16", "fp16") and loop.narrow > 2:  # a tile takes more
        problems.append(f"{loop.narrow} loads of 2 bytes in a loop")
    return Compiled(
        registers,
        stack,
        shared,
        unit,
        widest,
        len(INSTRUCTION.findall(sass)),
        loop,
        resident,
        launch.programs / (card.multiprocessors * resident) if resident else math.inf,
        tuple(problems),
    )


def _dump(cubin: Path, what: str) -> str:
    tool = triton.knobs.nvidia.cuobjdump.path
    return subprocess.run([tool, what, cubin], capture_output=True, text=True, check=True).stdout


def compiled_table(
    shapes: list[str],
    dtypes: list[torch.dtype],
    ranks: list[int],
    architectures: list[int],
    *,
    quick: bool,
) -> Iterator[tuple[str, str, int, Compiled]]:
    """Yield kernel, pointer type, architecture and result of every distinct launch."""
    launches: dict[Launch, str] = {}
    for shape, dtype, rank in product(shapes, dtypes, ranks):
        aot_cases.RANK = rank
        found = {
            launch: TYPES[dtype]
            for case in CASES
            for launch in launches_of(partial(case, SHAPES[shape], dtype))
        }
        if quick:
            first = {launch.kernel: launch for launch in reversed(found)}
            found = {launch: found[launch] for launch in first.values()}
        launches = found | launches
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
    parser.add_argument("--rank", nargs="+", type=int, help="of LoRA (default: 8 to 256, or 32)")
    parser.add_argument("--sm", nargs="+", type=int, default=list(CARDS), choices=list(CARDS))
    parser.add_argument("--quick", action="store_true", help="one variant of each kernel and rank")
    parser.add_argument("--out", type=Path, help="also write the table here, as Markdown")
    options = parser.parse_args()
    ranks = options.rank or ([32] if options.quick else [8, 16, 32, 64, 128, 256])
    by_name = {name: dtype for dtype, name in TYPES.items()}
    lines = [
        f"Triton {triton.__version__}, shapes {', '.join(options.shape)}, LoRA ranks "
        f"{', '.join(map(str, ranks))}, {aot_cases.ROWS} rows. "
        "Read from machine code; nothing was run.",
        "",
        "| kernel | dtype | sm | registers | stack, bytes | shared, bytes | matrix unit "
        "| widest load, bytes | instructions | of the longest loop: instructions | barriers "
        "| asynchronous loads | programs a multiprocessor | waves |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    print("\n".join(lines))
    failures = 0
    dtypes = [by_name[d] for d in options.dtype]
    table = compiled_table(options.shape, dtypes, ranks, options.sm, quick=options.quick)
    for name, dtype, architecture, c in table:
        unit = c.matrix_unit or "–"
        line = f"| {name} | {dtype} | {architecture} | {c.registers} | {c.stack_bytes} | "
        line += f"{c.shared_bytes} | {unit} | {c.load_bytes} | {c.instructions} | "
        line += f"{c.loop.instructions} | {c.loop.barriers} | {c.loop.asynchronous} | "
        lines.append(f"{line}{c.resident} | {c.waves:.2f} |")
        print(lines[-1], flush=True)
        for problem in c.problems:
            failures += 1
            print(f"error: {name}, {dtype}, sm_{architecture}: {problem}", file=sys.stderr)
    if options.out:
        options.out.write_text("\n".join(lines) + "\n", encoding="utf-8")
    sys.exit(failures > 0)


if __name__ == "__main__":
    main()
