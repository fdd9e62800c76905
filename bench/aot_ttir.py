"""What a program of a Triton kernel does, by its intermediate language and the sizes it was given.

Scalar integers are computed as the program would: bounds of loops and conditions follow from the
arguments and the program's place in the grid. Of tensors only the traffic counts: which argument a
load or store goes to and how many bytes it asks for, masks not looked at, and the operations of
matrix products. What depends on loaded numbers is not known; such a condition counts as true.
"""

from __future__ import annotations

import math
import operator
import re
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import product

_LOCATION = re.compile(r"\s*loc\((?:[^()]|\((?:[^()]|\([^()]*\))*\))*\)")
_RESULT = re.compile(r"^(%[\w.$-]+)(?::(\d+))? = (.*)$")
_VALUE = re.compile(r"%[\w.$-]+(?:#\d+)?")
_TENSOR = re.compile(r"tensor<([\dx]*?)x?(!tt\.ptr<\w+>|[a-z]+\d+)>")
_POINTER = re.compile(r"!tt\.ptr<([a-z]+)(\d+)>")
_FOR = re.compile(
    r"scf\.for (?:unsigned )?(%\S+) = (%\S+) to (%\S+) step (%\S+)(?: iter_args\((.*?)\))?[ {]"
)
_BITS = re.compile(r"(\d+)$")

Number = int | None


def _quotient(a: int, b: int) -> int:
    return int(a / b) if abs(a) < 2**52 else (abs(a) // abs(b)) * (1 if a * b >= 0 else -1)


_SCALARS: dict[str, Callable[[int, int], int]] = {
    "arith.addi": operator.add, "arith.subi": operator.sub, "arith.muli": operator.mul,
    "arith.divsi": _quotient, "arith.divui": _quotient,
    "arith.remsi": lambda a, b: a - b * _quotient(a, b),
    "arith.remui": lambda a, b: a - b * _quotient(a, b),
    "arith.ceildivsi": lambda a, b: -(-a // b), "arith.floordivsi": operator.floordiv,
    "arith.minsi": min, "arith.maxsi": max, "arith.minui": min, "arith.maxui": max,
    "arith.andi": operator.and_, "arith.ori": operator.or_, "arith.xori": operator.xor,
    "arith.shli": operator.lshift, "arith.shrsi": operator.rshift, "arith.shrui": operator.rshift,
}  # fmt: skip
_COMPARISONS: dict[str, Callable[[int, int], bool]] = {
    "eq": operator.eq, "ne": operator.ne, "slt": operator.lt, "sle": operator.le,
    "sgt": operator.gt, "sge": operator.ge, "ult": operator.lt, "ule": operator.le,
    "ugt": operator.gt, "uge": operator.ge,
}  # fmt: skip
_SAME = (
    "arith.extsi", "arith.extui", "arith.trunci", "arith.index_cast", "tt.splat", "tt.broadcast",
    "tt.expand_dims", "tt.bitcast", "tt.int_to_ptr", "tt.reshape", "tt.trans", "ttg.convert_layout",
)  # fmt: skip


@dataclass
class Op:
    """An operation with its regions, each a list of operations."""

    results: list[str]
    text: str
    regions: list[list[Op]] = field(default_factory=list)

    @property
    def name(self) -> str:
        """What is done."""
        return self.text.split(" ", 1)[0].split("(", 1)[0].strip('"')

    @property
    def values(self) -> list[str]:
        """What it is done to."""
        return _VALUE.findall(self.text)


@dataclass
class Work:
    """What programs do, together."""

    read: Counter[str] = field(default_factory=Counter)  # bytes asked for, by argument
    written: Counter[str] = field(default_factory=Counter)
    flops: float = 0.0  # of matrix products
    trips: list[float] = field(default_factory=list)  # of each loop, in the order of the text
    unknown: bool = False  # a bound depends on loaded numbers

    def add(self, other: Work, share: float) -> None:
        """Add a share of another's."""
        for mine, theirs in ((self.read, other.read), (self.written, other.written)):
            for name, n in theirs.items():
                mine[name] += n * share  # type: ignore[assignment]
        self.flops += other.flops * share
        self.trips = [a + b * share for a, b in zip(self.trips, other.trips, strict=True)]
        self.unknown |= other.unknown


class Program:
    """A kernel's intermediate language, read once."""

    def __init__(self, ttir: str) -> None:
        """Parse the text of `asm["ttir"]`."""
        lines = iter([_LOCATION.sub("", line).strip() for line in ttir.splitlines()])
        header = next(line for line in lines if line.startswith("tt.func public"))
        inside = header[header.index("(") + 1 : header.rindex(")")] if ")" in header else header
        self.pointers = {
            name: int(bits) // 8 or 1
            for name, _, bits in re.findall(r"(%[\w.]+): !tt\.ptr<([a-z]+)(\d+)", inside)
        }
        self.body = _region(lines)
        self.loops = [op for op in _walk(self.body) if op.name in ("scf.for", "scf.while")]

    def work(self, grid: tuple[int, int, int], integers: dict[str, int]) -> Work:
        """Return what an average program does: y and z in full, of x the middle one."""
        total = Work(trips=[0.0] * len(self.loops))
        axes = [_sample(n) for n in grid[1:]]
        places = list(product(*axes))
        for (y, y_share), (z, z_share) in places:
            run = _Run(self, (grid[0] // 2, y, z), grid, integers)
            run.block(self.body, 1.0)
            total.add(run.work, y_share * z_share)
        total.trips = [round(trips, 6) for trips in total.trips]  # shares of thirds add up
        return total


def _sample(n: int) -> list[tuple[int, float]]:
    """Places along an axis with the share of programs that each stands for."""
    if n <= 16:
        return [(i, 1 / n) for i in range(n)]
    return [(0, 1 / n), (n // 2, 1 - 1 / n)]


def _region(lines: Iterator[str]) -> list[Op]:
    """Read operations up to the brace that closes them."""
    ops: list[Op] = []
    for line in lines:
        if not line or line.startswith(("#", "^")):
            continue
        if line.startswith("}"):
            if line.endswith("{") and ops is not None:  # else, or a second region of the same
                ops.append(Op([], "next_region"))
                continue
            return ops
        found = _RESULT.match(line)
        results, text = ([], line) if not found else ([found[1]], found[3])
        if found and found[2]:
            results = [f"{found[1]}#{i}" for i in range(int(found[2]))]
        op = Op(results, text)
        if line.endswith(("{", "({")):
            inner = _region(lines)
            op.regions.append([])
            for each in inner:
                if each.text == "next_region":
                    op.regions.append([])
                else:
                    op.regions[-1].append(each)
        ops.append(op)
    return ops


def _walk(ops: list[Op]) -> Iterator[Op]:
    for op in ops:
        yield op
        for region in op.regions:
            yield from _walk(region)


class _Run:
    """One program's run."""

    def __init__(
        self, program: Program, place: tuple[int, int, int], grid: tuple[int, ...],
        integers: dict[str, int],
    ) -> None:  # fmt: skip
        self.place, self.grid = place, grid
        self.numbers: dict[str, Number] = {f"%{name}": n for name, n in integers.items()}
        self.base: dict[str, str] = {name: name[1:] for name in program.pointers}
        self.order = {id(op): i for i, op in enumerate(program.loops)}
        self.work = Work(trips=[0.0] * len(program.loops))

    def block(self, ops: list[Op], times: float) -> list[str]:
        """Run operations, each counted `times`; return what they yield."""
        yielded: list[str] = []
        for op in ops:
            if op.name in ("scf.yield", "tt.return", "scf.condition"):
                yielded = op.values
            elif op.name == "scf.for":
                self._loop(op, times)
            elif op.name == "scf.while":
                self._while(op, times)
            elif op.name == "scf.if":
                self._condition(op, times)
            else:
                self._one(op, times)
        return yielded

    def _one(self, op: Op, times: float) -> None:
        name, values = op.name, op.values
        if name in ("tt.load", "tt.store") or name.startswith(("tt.atomic", "tt.descriptor")):
            self._traffic(op, values, times)
        elif name == "tt.dot":
            a, b = (m[1] for m in list(_TENSOR.finditer(op.text))[:2])
            rows, depth = map(int, a.split("x")[-2:])
            self.work.flops += 2.0 * rows * depth * int(b.split("x")[-1]) * times
        if not op.results:
            return
        result = op.results[0]
        if (base := next((self.base[v] for v in values if v in self.base), None)) and (
            name != "tt.load"
        ):
            self.base[result] = base
        if "tensor<" not in op.text or name in _SAME:
            self.numbers[result] = self._scalar(op, [self.numbers.get(v) for v in values])

    def _scalar(self, op: Op, known: list[Number]) -> Number:
        name = op.name
        if name == "arith.constant":
            found = re.match(r"arith\.constant (-?\d+|true|false)(?: :|$)", op.text)
            return {"true": 1, "false": 0}.get(found[1]) if found and found[1].isalpha() else (
                int(found[1]) if found else None
            )  # fmt: skip
        if name in ("tt.get_program_id", "tt.get_num_programs"):
            axis = "xyz".index(op.text.split()[1])
            return self.place[axis] if name == "tt.get_program_id" else self.grid[axis]
        if name in _SAME:
            return known[0] if known else None
        if name == "arith.select" and known[0] is not None:
            return known[1] if known[0] else known[2]
        if len(known) < 2 or known[0] is None or known[1] is None:
            return None
        a, b = known[0], known[1]
        if name == "arith.cmpi":
            return int(_COMPARISONS[op.text.split()[1].rstrip(",")](a, b))
        if name in _SCALARS and not (("div" in name or "rem" in name) and b == 0):
            return _SCALARS[name](a, b)
        return None

    def _traffic(self, op: Op, values: list[str], times: float) -> None:
        base = self.base.get(values[0])
        if base is None:
            return
        shapes = list(_TENSOR.finditer(op.text))
        pointer = _POINTER.search(op.text)
        bits = _BITS.search(shapes[-1][2]) if shapes and not pointer else None
        item = int(pointer[2]) // 8 or 1 if pointer else int(bits[1]) // 8 if bits else 4
        elements = math.prod(int(n) for n in shapes[0][1].split("x") if n) if shapes else 1
        n_bytes = elements * item * times
        stores = "store" in op.name or "atomic" in op.name
        if stores:
            self.work.written[base] += n_bytes  # type: ignore[assignment]
        if not stores or "atomic" in op.name:
            self.work.read[base] += n_bytes  # type: ignore[assignment]

    def _carry(self, names: list[str], values: list[str]) -> None:
        for name, value in zip(names, values, strict=False):
            self.numbers[name] = self.numbers.get(value)
            if value in self.base:
                self.base[name] = self.base[value]

    def _loop(self, op: Op, times: float) -> None:
        found = _FOR.match(op.text)
        assert found is not None, op.text
        index, first, stop, step, carried = found.groups()
        pairs = re.findall(r"(%[\w.$-]+) = (%[\w.$-]+(?:#\d+)?)", carried or "")
        inner = [name for name, _ in pairs]
        self._carry(inner, [value for _, value in pairs])
        start, end, by = (self.numbers.get(v) for v in (first, stop, step))
        if start is None or end is None or not by:
            self.work.unknown = True
            trips = 1.0
        else:
            trips = float(max(0, -(-(end - start) // by)))
        self.work.trips[self.order[id(op)]] += trips * times
        self.numbers[index] = None if trips > 1 else start
        for name in inner:
            if trips > 1:
                self.numbers[name] = None
        yielded = self.block(op.regions[0], times * trips)
        self._carry(op.results, yielded)

    def _while(self, op: Op, times: float) -> None:
        self.work.unknown = True
        self.work.trips[self.order[id(op)]] += times
        for region in op.regions:
            self.block(region, times)

    def _condition(self, op: Op, times: float) -> None:
        known = self.numbers.get(op.values[0])
        taken = 1 if known == 0 else 0
        for i, region in enumerate(op.regions):
            if i == taken:
                self._carry(op.results, self.block(region, times))
