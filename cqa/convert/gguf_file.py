"""A GGUF file, read through the library `gguf` with every offset checked.

The library maps the file and gives a tensor's bytes; `dequantize` turns them into fp32. What it
makes of a damaged file depends on where the damage is, so each of its reads is checked here first.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cqa.errors import ConfigError, ModelError
from cqa.reading import refuse_special

FLOATS = ("F32", "F16", "BF16", "F64")  # types that are not quantised


class Length(int):
    """How many values an array of the header has; they are not kept."""


@dataclass(frozen=True, slots=True)
class GgufTensor:
    """A tensor of the file: where it is, and what it is stored as."""

    name: str
    shape: tuple[int, ...]  # rows first, as torch has it
    kind: str  # such as Q4_1
    begin: int  # byte of the file
    read: Callable[[], Any]  # -> numpy array, fp32, of the shape


@dataclass(frozen=True, slots=True)
class GgufFile:
    """What a GGUF file says of its model, and its tensors by name."""

    path: Path
    architecture: str
    fields: dict[str, Any]  # numbers and texts; of an array its `Length`
    tensors: dict[str, GgufTensor]

    def kinds(self) -> dict[str, int]:
        """Count the tensors by what they are stored as, the most frequent first."""
        return dict(Counter(tensor.kind for tensor in self.tensors.values()).most_common())


def open_gguf(path: Path) -> GgufFile:
    """Read the header of a GGUF file; no tensor is read yet.

    Raises:
        ConfigError: The library `gguf` is not installed.
        ModelError: It is no GGUF file, is damaged or cut off, or is a part of several.
    """
    try:
        import gguf
    except ImportError:
        raise ConfigError(
            "expected the library gguf, got none", hint="pip install 'cqa-fast[gguf]'"
        ) from None
    try:
        refuse_special(path, ModelError)
        size = path.stat().st_size
    except OSError as error:
        raise ModelError(f"expected a GGUF file, got: {error.strerror}", where=str(path)) from None
    if size < 24:
        raise ModelError(f"expected a GGUF file, got {size} bytes", where=str(path))
    at = 0  # of the last read

    class Checked(gguf.GGUFReader):  # type: ignore[misc]
        def _get(self, offset: int, dtype: Any, count: int = 1, *order: Any, **named: Any) -> Any:
            nonlocal at
            import numpy as np

            at, end = int(offset), int(offset) + np.dtype(dtype).itemsize * int(count)
            if end > size:
                raise ModelError(
                    f"expected {end:,} bytes or more, got {size:,}: cut off in what begins at "
                    f"byte {at:,}",
                    where=str(path),
                    hint="download it again",
                )
            return super()._get(offset, dtype, count, *order, **named)

    try:
        reader = Checked(path)
        fields = {name: _value(field) for name, field in reader.fields.items()}
        tensors = {tensor.name: _tensor(tensor, gguf.dequantize, path) for tensor in reader.tensors}
    except (ValueError, KeyError, IndexError, TypeError, OverflowError) as error:
        reason = str(error.args[0] if error.args else error)
        raise ModelError(
            f"expected a GGUF file, got something else at byte {at:,}: {reason:.200}",
            where=str(path),
        ) from None
    if reader.endianess != gguf.GGUFEndian.LITTLE:
        raise ModelError(
            "expected a little-endian GGUF file, got a big-endian one", where=str(path)
        )
    parts = fields.get("split.count", 0)
    if isinstance(parts, int) and parts > 1:
        raise ModelError(
            f"expected a whole GGUF file, got one of {parts} parts",
            where=str(path),
            hint="join them with llama-gguf-split --merge",
        )
    architecture = fields.get("general.architecture")
    if not isinstance(architecture, str):
        raise ModelError("expected general.architecture, got none", where=str(path))
    return GgufFile(path, architecture, fields, tensors)


def _value(field: Any) -> Any:
    return Length(len(field.data)) if len(field.types) > 1 else field.contents()


def _tensor(tensor: Any, dequantize: Any, path: Path) -> GgufTensor:
    name, kind = str(tensor.name), str(tensor.tensor_type.name)

    def read() -> Any:
        try:
            return dequantize(tensor.data, tensor.tensor_type)
        except NotImplementedError:
            raise ModelError(
                f"expected a type that the library gguf reads, got {kind} in {name}",
                where=str(path),
            ) from None

    return GgufTensor(
        name, tuple(int(n) for n in reversed(tensor.shape)), kind, int(tensor.data_offset), read
    )
