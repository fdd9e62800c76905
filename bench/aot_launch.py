"""What Triton kernels are launched with, recorded in place of running them."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from triton.runtime.jit import JITFunction

TYPES = {
    torch.bfloat16: "bf16", torch.float16: "fp16", torch.float32: "fp32", torch.float64: "fp64",
    torch.int64: "i64", torch.int32: "i32", torch.int16: "i16", torch.int8: "i8",
    torch.uint8: "u8", torch.bool: "i1",
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
    def warps(self) -> int:
        """Warps of a program."""
        return int(dict(self.options).get("num_warps", 4))

    @property
    def kernel_name(self) -> str:
        """The kernel alone."""
        return self.kernel.fn.__name__.strip("_")

    @property
    def name(self) -> str:
        """The kernel, and the constants that tell its variants apart."""
        names = [name for name, _ in self.signature]
        flags = [f"{names[i]}={value}" for i, value in self.constants if names[i].isupper()]
        return f"{self.kernel_name} ({', '.join(flags)})"

    @property
    def multiplies(self) -> str:
        """The type of the factors of its matrix products, or "" where it has none."""
        named = {self.signature[i][0]: value for i, value in self.constants}
        used = named.get("LORA", True) and named.get("MEMBERS", 1)
        return str(named["DOT"]) if used and "DOT" in named else ""

    @property
    def adds_shares(self) -> bool:
        """Whether it adds what other programs of the launch have stored (arrivals.py)."""
        return dict(self.signature).get("arrivals", "constexpr") != "constexpr"

    @property
    def sixteen_bits(self) -> bool:
        """Whether it works on 16-bit floats."""
        return any(kind in ("*bf16", "*fp16") for _, kind in self.signature)


@dataclass(frozen=True)
class Execution:
    """One launch with what decides its time: the grid, and the sizes it was given."""

    launch: Launch
    grid: tuple[int, int, int]
    integers: tuple[tuple[str, int], ...]
    n_bytes: tuple[tuple[str, int], ...]  # of each tensor, a view's own

    @property
    def programs(self) -> int:
        """Programs of the grid."""
        return math.prod(self.grid)


@contextmanager
def launches_to(note: Callable[[Execution], None]) -> Iterator[None]:
    """Note what is launched, without launching it."""

    def record(self: JITFunction, *args: Any, grid: Any, warmup: bool, **kwargs: Any) -> None:
        note(_execution(self, grid, args, kwargs))

    run, JITFunction.run = JITFunction.run, record
    try:
        yield
    finally:
        JITFunction.run = run


def executions_of(call: Callable[[], None]) -> list[Execution]:
    """Return what an op launches, each distinct launch once, without launching it."""
    recorded: list[Execution] = []
    with launches_to(recorded.append):
        call()
    return list(dict.fromkeys(recorded))


def launches_of(call: Callable[[], None]) -> list[Launch]:
    """Return the distinct compiled forms of what an op launches."""
    return list(dict.fromkeys(execution.launch for execution in executions_of(call)))


def _execution(
    kernel: JITFunction, grid: tuple[int, ...], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Execution:
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
    launch = Launch(
        kernel, tuple(signature), tuple(constants), tuple(aligned), tuple(options.items())
    )
    x, y, z = (*grid, 1, 1)[:3]
    return Execution(
        launch,
        (x, y, z),
        tuple((name, value) for name, value in values.items() if type(value) is int),
        tuple(
            (name, value.numel() * value.itemsize)
            for name, value in values.items()
            if isinstance(value, torch.Tensor)
        ),
    )


def _type(value: Any) -> str:
    if isinstance(value, torch.Tensor):
        return "*" + TYPES[value.dtype]
    if isinstance(value, float):
        return "fp32"
    return "i32" if -(2**31) <= value < 2**31 else "i64"
