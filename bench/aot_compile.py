"""Launches compiled ahead of time, and what of the machine code must not be."""

from __future__ import annotations

import re
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

import triton
from aot_launch import Launch
from aot_sass import Code, Loop, parse_ptx, parse_sass, unrolled
from aot_ttir import Program, Work
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource


@dataclass(frozen=True)
class Architecture:
    """What an architecture has, by NVIDIA's tables of compute capabilities."""

    shared_bytes: int  # the most that a block can have; a multiprocessor has 1 KiB more
    warps: int  # the most on a multiprocessor
    multiprocessors: int  # of the largest common card


ARCHITECTURES = {
    80: Architecture(163 << 10, 64, 108), 86: Architecture(99 << 10, 48, 84),
    89: Architecture(99 << 10, 48, 128), 90: Architecture(227 << 10, 64, 132),
    100: Architecture(227 << 10, 64, 148), 120: Architecture(99 << 10, 48, 170),
}  # fmt: skip
REGISTERS = 65536  # of a multiprocessor
FENCED = (
    re.compile(  # in SASS: shares are stored, counted behind a fence, read past the first cache
        r"BAR\.SYNC.*?MEMBAR\.\w+\.GPU.*?ATOMG\S*\.STRONG\.GPU.*?CCTL\.IVALL.*?BAR\.SYNC.*?"
        r"LDG\.E\S*\.STRONG\.GPU",
        re.DOTALL,
    )
)
NARROW = 2  # loads of two bytes in a loop of tiles: a vector beside the tiles; a tile takes more


@dataclass(frozen=True)
class Compiled:
    """What became of a launch on an architecture."""

    registers: int
    stack_bytes: int
    shared_bytes: int
    code: Code
    ptx: Code
    program: Program
    resident: int  # programs on a multiprocessor at a time
    problems: tuple[str, ...]

    @property
    def groups(self) -> list[list[tuple[Loop, int]]] | None:
        """The machine's loops of each loop of the program, and how often each was unrolled.

        PTX has a loop for each of the program's; where it has not, but the machine code has, they
        are taken as they come. None where neither does.
        """
        n = len(self.program.loops)
        if len(self.ptx.loops) == n and (found := unrolled(self.code, self.ptx)) is not None:
            return found
        return [[(loop, 1)] for loop in self.code.loops] if len(self.code.loops) == n else None

    def per_program(self, work: Work) -> tuple[float, list[tuple[Loop, float]]]:
        """Return instructions of a warp, and how often each loop that waits for loads goes round.

        Where the loops do not match, each is taken to go round as often as the longest.
        """
        groups = self.groups
        if groups is None:
            trips = max([*work.trips, 1.0])
            inside = sum(loop.instructions for loop in self.code.loops)
            waiting = [(loop, trips) for loop in self.code.loops if loop.waits_for_loads]
            return self.code.outside + trips * inside, waiting
        total, waiting = float(self.code.outside), []
        for group, trips in zip(groups, work.trips, strict=True):
            left = trips
            for loop, times in group:
                rounds = left // times if len(group) > 1 else left / times
                left -= rounds * times
                total += rounds * loop.instructions
                if loop.waits_for_loads:
                    waiting.append((loop, rounds))
        return total, waiting


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
    code = parse_sass(sass)
    counts = dict(
        field.split(":", 1) for field in usage.split() if ":" in field and field[0].isalpha()
    )
    registers = int(counts["REG"])
    stack = int(counts["STACK"]) + int(counts["LOCAL"])
    shared, has = binary.metadata.shared, ARCHITECTURES[architecture]
    problems = [*_code_problems(launch, code, stack)]
    if launch.adds_shares and not FENCED.search(sass):
        problems.append("shares of a sum are read without a fence")
    if shared > has.shared_bytes:
        problems.append(f"shared memory over {has.shared_bytes} bytes")
    if binary.metadata.global_scratch_size:
        problems.append("needs scratch memory, which nothing gives it")
    resident = min(
        32,
        has.warps // launch.warps,
        REGISTERS // (launch.warps * 32 * -(-registers // 8) * 8),  # given out by eight
        (has.shared_bytes + 1024) // (shared + 1024),  # 1 KiB is the system's
    )
    return Compiled(
        registers, stack, shared, code, parse_ptx(binary.asm["ptx"]), Program(binary.asm["ttir"]),
        resident, tuple(problems),
    )  # fmt: skip


def _code_problems(launch: Launch, code: Code, stack: int) -> list[str]:
    problems = []
    if stack and launch.multiplies and spills_often(code):
        problems.append(f"{stack} bytes of spilled registers")
    if launch.multiplies in ("bf16", "fp16"):
        if not code.matrix_unit:
            problems.append("16-bit products without a matrix unit")
        widest = max(code.load_bytes, default=4)
        if widest < 16:
            problems.append(f"loads of {widest} bytes at most")
    if launch.sixteen_bits:
        problems += [problem for loop in code.loops if (problem := narrow(loop))]
    return problems


def spills_often(code: Code) -> bool:
    """Say whether spilled registers are stored or loaded in a loop, or there is no loop.

    A few that wait in memory while a loop runs cost nothing.
    """
    return not code.loops or any(loop.count("STL", "LDL") for loop in code.loops)


def narrow(loop: Loop) -> str:
    """Say that a loop of 16-bit tiles loads them number by number, or return ""."""
    alone = sum(width <= 2 for width in loop.load_bytes)
    if not loop.multiplies or alone <= NARROW:
        return ""
    return f"{alone} loads of 2 bytes in a loop of tiles of 16-bit numbers"


def _dump(cubin: Path, what: str) -> str:
    tool = triton.knobs.nvidia.cuobjdump.path
    return subprocess.run([tool, what, cubin], capture_output=True, text=True, check=True).stdout
