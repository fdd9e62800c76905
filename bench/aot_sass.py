"""Machine code read: the loops of a kernel and what is in them, by the text of cuobjdump or PTX.

A loop is what lies between a branch and the earlier place that it goes to. Its own instructions
are those of no loop within it. What follows the last exit, and is reached by calls alone (the slow
paths of exact division), counts as never run.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

_SASS = re.compile(r"^\s+/\*([0-9a-f]{4,})\*/\s+(?:@!?U?P\w+\s+)?([A-Z][\w.]*)(.*?);", re.M)
_GUARDED = re.compile(r"^\s+/\*([0-9a-f]{4,})\*/\s+@", re.M)
_ADDRESS = re.compile(r"0x([0-9a-f]+)")
_PTX_LABEL = re.compile(r"^(\$L__BB\w+):")
_PTX = re.compile(r"^\s+(?:@!?%\w+\s+)?([a-z][\w.:]*)(.*?);")
_WIDTHS = {"128": 16, "64": 8, "U16": 2, "S16": 2, "U8": 1, "S8": 1}  # bytes; 4 where none is said
MATRIX_UNITS = ("HGMMA", "UTCHMMA", "HMMA")  # in SASS: sm_90, sm_100, sm_80 and later
_ASYNCHRONOUS = ("LDGSTS", "UTMALDG", "UBLKCP")


@dataclass(frozen=True)
class Instruction:
    """One instruction: where it is, its name, and where it jumps to."""

    place: int
    name: str
    target: int | None = None
    guarded: bool = False  # by a predicate

    @property
    def first(self) -> str:
        """The name without what qualifies it."""
        return self.name.partition(".")[0]


@dataclass(frozen=True)
class Loop:
    """A loop, by its own instructions."""

    start: int
    stop: int  # the place of the branch back
    depth: int  # loops around it
    code: tuple[Instruction, ...]  # without the loops within

    def count(self, *firsts: str) -> int:
        """Count instructions by name."""
        return sum(instruction.first in firsts for instruction in self.code)

    @property
    def instructions(self) -> int:
        """How many a warp issues each time round."""
        return len(self.code)

    @property
    def barriers(self) -> int:
        """Waits of all warps for each other."""
        return self.count("BAR")

    @property
    def shared_loads(self) -> int:
        """Loads from shared memory."""
        return self.count("LDS", "LDSM")

    @property
    def asynchronous(self) -> bool:
        """Whether loads go to shared memory while others are worked on."""
        return self.count(*_ASYNCHRONOUS) > 0

    @property
    def waits_for_loads(self) -> bool:
        """Whether there are loads to registers too, which the same time round waits for."""
        return self.count("LDG") > 0

    @property
    def multiplies(self) -> bool:
        """Whether matrix units work in it."""
        return self.count(*MATRIX_UNITS) > 0

    @property
    def load_bytes(self) -> tuple[int, ...]:
        """The widths of its loads from global memory, by one thread, the widest first."""
        return _widths(self.code, ("LDG", "LDGSTS"), 16 * self.count("UTMALDG"))

    @property
    def store_bytes(self) -> tuple[int, ...]:
        """The same of its stores."""
        return _widths(self.code, ("STG",), 16 * self.count("UTMASTG"))

    @property
    def marks(self) -> int:
        """What neither compiler adds or removes, to tell how often a loop was unrolled."""
        return self.count(
            "LDG", "LDGSTS", "STG", "UTMALDG", "RED", "ATOMG", *MATRIX_UNITS,
            "ld", "cp", "st", "mma", "wgmma", "tcgen05", "red", "atom",
        )  # fmt: skip


def _widths(code: tuple[Instruction, ...], firsts: tuple[str, ...], bulk: int) -> tuple[int, ...]:
    found = [
        next((_WIDTHS[part] for part in instruction.name.split(".") if part in _WIDTHS), 4)
        for instruction in code
        if instruction.first in firsts
    ]
    return tuple(sorted(found + [16] * (bulk > 0), reverse=True))


@dataclass(frozen=True)
class Code:
    """A kernel's instructions and loops, in order."""

    instructions: tuple[Instruction, ...]
    loops: tuple[Loop, ...]

    @property
    def outside(self) -> int:
        """Instructions of no loop."""
        return len(self.instructions) - sum(loop.instructions for loop in self.loops)

    @property
    def matrix_unit(self) -> str:
        """The one that is used, or ""."""
        names = {instruction.first for instruction in self.instructions}
        return next((unit for unit in MATRIX_UNITS if unit in names), "")

    @property
    def load_bytes(self) -> tuple[int, ...]:
        """As of a loop, of all."""
        return _widths(self.instructions, ("LDG", "LDGSTS"), 0)


def parse_sass(text: str) -> Code:
    """Read what `cuobjdump -sass` says of one kernel."""
    guarded = {int(place, 16) for place in _GUARDED.findall(text)}
    code = []
    for place, name, rest in _SASS.findall(text):
        if name == "NOP":
            continue
        address = _ADDRESS.search(rest) if name.startswith("BRA") else None
        target = int(address[1], 16) if address else None
        at = int(place, 16)
        code.append(Instruction(at, name, target, at in guarded))
    return _code(_run(code))


def _run(code: list[Instruction]) -> tuple[Instruction, ...]:
    """Leave out what follows the last exit: subroutines, and the branch to itself at the end."""
    exits = [i for i, c in enumerate(code) if c.first == "EXIT" and not c.guarded]
    return tuple(code[: exits[-1] + 1]) if exits else tuple(code)


def parse_ptx(text: str) -> Code:
    """Read PTX of one kernel: global loads and stores, copies and products stand out by name."""
    labels: dict[str, int] = {}
    lines = text.splitlines()
    for i, line in enumerate(lines):
        if label := _PTX_LABEL.match(line):
            labels[label[1]] = i
    code = []
    for i, line in enumerate(lines):
        found = _PTX.match(line)
        if not found or found[1].startswith("."):
            continue
        name, rest = found[1], found[2]
        target = labels.get(rest.strip().rpartition(" ")[2]) if name.startswith("bra") else None
        code.append(Instruction(i, _ptx_name(name), target))
    return _code(tuple(code))


def _ptx_name(name: str) -> str:
    """Call loads and stores of other memories, and waits for copies, by another name."""
    first, _, rest = name.partition(".")
    counted: dict[str, Callable[[str], bool]] = {
        "ld": lambda r: r.startswith("global"),
        "st": lambda r: r.startswith("global"),
        "cp": lambda r: r.startswith("async.c") and ".shared" in r and "group" not in r,
        "wgmma": lambda r: r.startswith("mma_async"),
        "tcgen05": lambda r: r.startswith("mma"),
    }
    return name if counted.get(first, lambda r: True)(rest) else f"other_{first}.{rest}"


def _code(instructions: tuple[Instruction, ...]) -> Code:
    stops: dict[int, int] = {}
    for instruction in instructions:
        if instruction.target is not None and instruction.target <= instruction.place:
            stops[instruction.target] = max(
                instruction.place, stops.get(instruction.target, instruction.place)
            )
    spans = sorted((start, stop) for start, stop in stops.items())
    loops = []
    for start, stop in spans:
        inner = [s for s in spans if start <= s[0] and s[1] <= stop and s != (start, stop)]
        depth = sum(s[0] <= start and stop <= s[1] for s in spans) - 1
        own = tuple(
            c
            for c in instructions
            if start <= c.place <= stop and not any(a <= c.place <= b for a, b in inner)
        )
        loops.append(Loop(start, stop, depth, own))
    return Code(instructions, tuple(loops))


def unrolled(machine: Code, ptx: Code) -> list[list[tuple[Loop, int]]] | None:
    """Find the machine's loops of each loop of PTX, and how often each was unrolled.

    A loop that was unrolled may have a second one for what is left over. None where the loops do
    not match.
    """
    found: list[list[tuple[Loop, int]]] = []
    rest = list(machine.loops)
    for i, loop in enumerate(ptx.loops):
        left = len(ptx.loops) - i - 1
        if len(rest) <= left:
            return None
        first = rest.pop(0)
        times = max(1, round(first.marks / loop.marks)) if loop.marks else 1
        group = [(first, times)]
        while len(rest) > left and times > 1 and rest[0].depth == first.depth:
            after = rest.pop(0)
            group.append((after, max(1, round(after.marks / loop.marks)) if loop.marks else 1))
        found.append(group)
    return None if rest else found
