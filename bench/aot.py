"""Compile every Triton kernel ahead of time, look at the result, and predict how long all take.

The ops run on tensors without data; each launch is recorded with its argument types and compiled
for GPUs that need not be here. Fails where a kernel with matrix products spills registers in its
loop, where shared memory exceeds what the architecture has, where a 16-bit product uses no matrix
unit, where shares of a sum that other programs stored are read without a fence, or where a loop of
16-bit tiles loads them number by number. Ranks of LoRA decide the code too: 8 to 256 are compiled.
The predicted times are a model by arithmetic: docs/gpu-model.md.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import product
from pathlib import Path

import aot_cases
import torch
import triton
from aot_cases import CASES, SHAPES
from aot_compile import ARCHITECTURES, Compiled
from aot_launch import TYPES, Execution, Launch, executions_of
from aot_measured import compared
from aot_report import HELD, code_problems, goals, markdown, risen, write_held
from aot_sass import Loop
from aot_step import compiled, predict
from aot_time import CARDS, tail, waves

RANKS = [8, 16, 32, 64, 128, 256]
ROWS = (1400, 2048)  # of a training pass, of a block of scoring
HEADER = (
    "kernel", "dtype", "sm", "registers", "stack, bytes", "shared, bytes", "matrix unit",
    "widest load, bytes", "instructions", "loops", "programs a multiprocessor",
    *(f"grid, waves and tail at {rows:,} rows" for rows in ROWS),
)  # fmt: skip
Found = dict[Launch, dict[int, Execution]]  # the first execution at each number of rows


def launches_at(shape: str, dtype: torch.dtype, rank: int, *, quick: bool) -> Found:
    """Return every distinct launch of the cases, with its grid at each number of rows."""
    found: Found = {}
    aot_cases.RANK = rank
    for rows in ROWS:
        aot_cases.ROWS = rows
        for case in CASES:
            for execution in executions_of(partial(case, SHAPES[shape], dtype)):
                found.setdefault(execution.launch, {}).setdefault(rows, execution)
    aot_cases.ROWS = ROWS[0]
    if quick:
        first = {launch.kernel: launch for launch in reversed(found)}
        found = {launch: found[launch] for launch in first.values()}
    return found


def compiled_table(
    combinations: list[tuple[str, torch.dtype, int]], architectures: list[int], *, quick: bool
) -> Iterator[tuple[Launch, str, int, Compiled, dict[int, Execution]]]:
    """Yield launch, pointer type, architecture, result and grids of every distinct launch."""
    launches: Found = {}
    dtypes: dict[Launch, str] = {}
    for shape, dtype, rank in combinations:
        for launch, grids in launches_at(shape, dtype, rank, quick=quick).items():
            launches.setdefault(launch, grids)
            dtypes.setdefault(launch, TYPES[dtype])
    jobs = [(launch, architecture) for launch in launches for architecture in architectures]
    with ThreadPoolExecutor(2) as pool:
        results = pool.map(lambda job: compiled(*job), jobs)
        for (launch, architecture), result in zip(jobs, results, strict=True):
            yield launch, dtypes[launch], architecture, result, launches[launch]


def loop_cell(loop: Loop) -> str:
    """Say what is in a loop: instructions/barriers/loads of shared memory, widths, how it loads."""
    text = f"{loop.instructions}/{loop.barriers}/{loop.shared_loads}"
    if loop.load_bytes or loop.store_bytes:
        text += f" {max(loop.load_bytes, default=0)}→{max(loop.store_bytes, default=0)}"
    if loop.asynchronous:
        text += " async"
    return text + ("+wait" if loop.asynchronous and loop.waits_for_loads else "")


def row(
    launch: Launch, dtype: str, architecture: int, c: Compiled, grids: dict[int, Execution]
) -> str:
    """Return a line of the table."""
    n = ARCHITECTURES[architecture].multiprocessors
    cells = [
        launch.name, dtype, architecture, c.registers, c.stack_bytes, c.shared_bytes,
        c.code.matrix_unit or "–", max(c.code.load_bytes, default=4), len(c.code.instructions),
        "; ".join(map(loop_cell, c.code.loops)) or "–", c.resident,
    ]  # fmt: skip
    for rows in ROWS:
        execution = grids.get(rows)
        if execution is None:
            cells.append("–")
            continue
        grid = " × ".join(str(size) for size in execution.grid if size > 1) or "1"
        full = f"{waves(c, execution.programs, n):.2f}, {tail(execution.programs, n):.2f}"
        cells.append(f"{grid}, {full}")
    return f"| {' | '.join(map(str, cells))} |"


def combinations_of(options: argparse.Namespace) -> list[tuple[str, torch.dtype, int]]:
    """Return shapes, dtypes and ranks: those asked for, or one of the three varied at a time."""
    by_name = {name: dtype for dtype, name in TYPES.items()}
    dtypes = [by_name[name] for name in options.dtype or ["bf16", "fp32"]]
    shapes = options.shape or list(SHAPES)
    if options.rank or options.quick:
        return list(product(shapes, dtypes, options.rank or [32]))
    return [*product(shapes, dtypes, [32]), *product(shapes[:1], dtypes[:1], RANKS)]


def print_check() -> int:
    """Predict for what CI watches, beside what is held; return how much is wrong."""
    found = predict([CARDS["H200"]])
    print("\n".join(goals(found)))
    held = json.loads(HELD.read_text("utf-8"))
    problems = [*code_problems(found), *risen(found, held)]
    for problem in problems:
        print(f"error: {problem}", file=sys.stderr)
    return len(problems)


def main() -> None:
    """Compile, print tables, exit 1 if anything is wrong."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shape", nargs="+", choices=list(SHAPES))
    parser.add_argument("--dtype", nargs="+", choices=["bf16", "fp16", "fp32"])
    parser.add_argument("--rank", nargs="+", type=int, help="of LoRA (default: 8 to 256)")
    parser.add_argument("--sm", nargs="+", type=int, choices=list(ARCHITECTURES))
    parser.add_argument("--quick", action="store_true", help="one variant of each kernel and rank")
    parser.add_argument("--out", type=Path, help="also write the tables here, as Markdown")
    parser.add_argument("--held", type=Path, help="write the predicted sums here, as JSON")
    parser.add_argument(
        "--check", action="store_true", help="predict one card against what is held"
    )
    parser.add_argument("--measured", type=Path, help="JSON of cqa-fast bench, to stand beside it")
    options = parser.parse_args()
    if options.measured:
        print("\n".join(compared(options.measured)))
        return
    if options.check:
        sys.exit(print_check() > 0)
    architectures = options.sm or list(ARCHITECTURES)
    combinations = combinations_of(options)
    failures = 0
    lines: list[str] = []

    def tell(*texts: str) -> None:
        lines.extend(texts)
        print("\n".join(texts), flush=True)

    ranks = ", ".join(map(str, sorted({rank for _, _, rank in combinations})))
    told = f"shapes {', '.join(dict.fromkeys(shape for shape, _, _ in combinations))}"
    tell(f"Triton {triton.__version__}, {told}, LoRA ranks {ranks}. Nothing was run.", "")
    if not options.quick:
        found = predict([card for card in CARDS.values() if card.architecture in architectures])
        tell(*markdown(found), "## Compiled kernels", "", *EXPLAINED, "")
        if options.held:
            write_held(found, options.held)
        for problem in code_problems(found):
            failures += 1
            print(f"error: {problem}", file=sys.stderr)
    tell(f"| {' | '.join(HEADER)} |", "|---" * len(HEADER) + "|")
    for result in compiled_table(combinations, architectures, quick=options.quick):
        tell(row(*result))
        launch, dtype, architecture, code, _ = result
        for problem in code.problems:
            failures += 1
            print(f"error: {launch.name}, {dtype}, sm_{architecture}: {problem}", file=sys.stderr)
    if options.out:
        options.out.write_text("\n".join(lines) + "\n", encoding="utf-8")
    sys.exit(failures > 0)


EXPLAINED = (
    "A loop is told as instructions/barriers/loads of shared memory in its body, then the widest",
    "load and store of one thread in bytes; `async` where loads go to shared memory while others",
    "are worked on, `+wait` where some do not. Waves are how often the grid fills the",
    "architecture's largest common card, the tail is the mean multiprocessor's programs over those",
    "of the busiest.",
)


if __name__ == "__main__":
    main()
