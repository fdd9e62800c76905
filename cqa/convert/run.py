"""A GGUF file to a model folder in Hugging Face format, a tensor at a time.

    open_gguf     gguf_file.py: the header, every offset checked
    read_hf       gguf_config.py: config, tokenizer, generation defaults, as transformers has them
    _places       where each tensor of the model lies in the file, all shapes compared
    _write        dequantised to fp32 by the library gguf, Llama's q and k put back in order

In fp32 the folder gives the logits of transformers' own reading of the file, bit for bit.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from cqa.convert.gguf_config import FREQUENCIES, HfReading, read_hf
from cqa.convert.gguf_file import FLOATS, GgufFile, GgufTensor, open_gguf
from cqa.convert.gguf_gemma import GEMMA
from cqa.data.tokenizer import Tokenizer
from cqa.errors import ConfigError, ModelError
from cqa.files import check_room, new_folder, write, write_json
from cqa.model.checkpoint import SINGLE, stream
from cqa.model.config import DecoderConfig, parse_config, read_checkpoint, tensor_shapes
from cqa.model.conversion import CONVERSION

Dtype = Literal["fp32", "bf16"]
STORED = {"fp32": ("F32", torch.float32), "bf16": ("BF16", torch.bfloat16)}


@dataclass(frozen=True, slots=True)
class Converted:
    """What was written."""

    out: Path
    n_tensors: int
    conversion: dict[str, Any]  # of conversion.json


def convert(path: Path, out: Path, *, dtype: Dtype = "fp32") -> Converted:
    """Write the model of a GGUF file as a folder; see the module.

    Args:
        path: The file: Llama, Mistral, Qwen2, Qwen3 or Gemma 3, in any quantisation the library
            reads.
        out: The folder to write.
        dtype: What the weights are written in: fp32 holds all that the file says, bf16 is rounded.

    Raises:
        ConfigError: `out` exists, or the library gguf is not installed.
        ModelError: The file is damaged or holds another kind of model, or what was written is not
            what was read.
        ResourceError: The disk cannot hold it.
    """
    if out.exists() or out.is_symlink():
        raise ConfigError(
            "expected a new folder, got one that exists", where=str(out), hint="name another one"
        )
    file = open_gguf(path)
    hf = read_hf(file)
    shape = parse_config(hf.config, str(path))
    places = _places(file, shape)
    n_values = sum(math.prod(size) for _, size in tensor_shapes(shape))
    nearest = next(parent for parent in out.absolute().parents if parent.is_dir())
    check_room(nearest, n_values * STORED[dtype][1].itemsize)
    conversion = _describe(file, dtype)
    with new_folder(out) as temporary:
        _write_beside(hf, conversion, temporary, dtype)
        sums = _write_weights(temporary / SINGLE, shape, _weights(file, shape, places), dtype)
        _check(temporary, shape, hf, sums)
    return Converted(out, len(places), conversion)


def _places(file: GgufFile, shape: DecoderConfig) -> dict[str, GgufTensor]:
    """Return where each tensor of the model lies in the file.

    Raises:
        ModelError: One is missing, has another shape, or belongs to another model.
    """
    import gguf

    arch = next(key for key, name in gguf.MODEL_ARCH_NAMES.items() if name == file.architecture)
    names = gguf.get_tensor_name_map(arch, shape.n_layers)
    places = {}
    for name, size in tensor_shapes(shape):
        module, _, part = name.rpartition(".")
        gguf_name = f"{names.get_name(module)}.{part}"
        tensor = file.tensors.get(gguf_name)
        if tensor is None:
            raise _other_model(file, f"no {gguf_name}")
        if tensor.shape != size:
            raise _other_model(file, f"{gguf_name} of shape {tensor.shape} instead of {size}")
        places[name] = tensor
    known = {tensor.name for tensor in places.values()} | {FREQUENCIES}
    if unknown := [name for name in file.tensors if name not in known]:
        raise _other_model(file, f"an unexpected {unknown[0]}")
    return places


def _other_model(file: GgufFile, got: str) -> ModelError:
    return ModelError(
        f"expected the tensors of a {file.architecture} model, got {got}", where=str(file.path)
    )


def _describe(file: GgufFile, dtype: Dtype) -> dict[str, Any]:
    """Return what conversion.json says."""
    with file.path.open("rb") as opened:
        sha256 = hashlib.file_digest(opened, "sha256").hexdigest()
    kinds = file.kinds()
    return {
        "file": file.path.name,
        "sha256": sha256,
        "n_bytes": file.path.stat().st_size,
        "format": "GGUF",
        "architecture": file.architecture,
        "name": file.fields.get("general.name"),
        "licence": file.fields.get("general.license"),
        "quantised": any(kind not in FLOATS for kind in kinds),
        "tensors_by_type": kinds,
        "dtype": dtype,
        "gguf": metadata.version("gguf"),
        "transformers": metadata.version("transformers"),
    }


def _write_beside(hf: HfReading, conversion: dict[str, Any], folder: Path, dtype: Dtype) -> None:
    named = str(STORED[dtype][1]).removeprefix("torch.")
    write_json(folder / "config.json", hf.config | {"dtype": named})
    hf.generation.save_pretrained(folder)
    hf.tokenizer.save_pretrained(folder)
    write_json(folder / CONVERSION, conversion)


def _write_weights(
    path: Path, shape: DecoderConfig, weights: Iterator[tuple[str, Tensor]], dtype: Dtype
) -> dict[str, int]:
    """Write a safetensors file, one tensor in memory at a time; return the crc32 of each.

    Args:
        path: The file to write.
        shape: Names and shapes of its tensors.
        weights: The tensors, fp32, in that order.
        dtype: What they are written in.
    """
    stored, torch_dtype = STORED[dtype]
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, size in tensor_shapes(shape):
        begin, end = end, end + math.prod(size) * torch_dtype.itemsize
        header[name] = {"dtype": stored, "shape": size, "data_offsets": [begin, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    sums = {}
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
    try:
        write(descriptor, len(text).to_bytes(8, "little") + text)
        for name, tensor in weights:
            data = _bytes_of(tensor.to(torch_dtype))
            sums[name] = zlib.crc32(data)
            write(descriptor, data)
    finally:
        os.close(descriptor)
    return sums


def _weights(
    file: GgufFile, shape: DecoderConfig, places: dict[str, GgufTensor]
) -> Iterator[tuple[str, Tensor]]:
    """Yield each tensor of the model, fp32.

    Raises:
        ModelError: A weight is not finite.
    """
    for name, tensor in places.items():
        values = tensor.read()
        if not np.isfinite(values).all():
            raise ModelError(
                f"expected finite weights, got others in {tensor.name} at byte {tensor.begin:,}",
                where=str(file.path),
                hint="the file is damaged; download it again",
            )
        heads = _permuted_heads(name, shape) if file.architecture == "llama" else None
        if heads is not None:
            values = _in_halves(values, heads)
        if file.architecture == GEMMA and name.endswith("norm.weight"):
            values = values - 1  # GGUF holds what is multiplied with, the checkpoint what is added
        yield name, torch.from_numpy(np.array(values, dtype=np.float32, order="C"))


def _permuted_heads(name: str, shape: DecoderConfig) -> int | None:
    """Return how many heads a tensor has whose rows GGUF's Llama stores in another order."""
    if ".self_attn.q_proj." in name:
        return shape.n_heads
    return shape.n_kv_heads if ".self_attn.k_proj." in name else None


def _in_halves(values: Any, heads: int) -> Any:
    """Put the rows of each head from pairs, as GGUF's Llama rotates them, into two halves."""
    pairs = values.reshape(heads, -1, 2, *values.shape[1:])
    return pairs.swapaxes(1, 2).reshape(values.shape)


def _bytes_of(tensor: Tensor) -> bytes:
    return bytes(tensor.reshape(-1).view(torch.uint8).numpy().data)


def _check(folder: Path, shape: DecoderConfig, hf: HfReading, sums: dict[str, int]) -> None:
    """Read everything back and compare.

    Raises:
        ModelError: What was written is not what was read of the file.
    """
    found, files = read_checkpoint(folder)
    tokenizer = Tokenizer(folder)
    tokenizer.limit_ids(shape.vocab_size)
    same = {
        "config": found == shape,
        "tokenizer": tokenizer.hf.backend_tokenizer.to_str()
        == hf.tokenizer.backend_tokenizer.to_str(),
        "chat template": tokenizer.hf.chat_template == hf.tokenizer.chat_template,
        "weights": sums == {name: zlib.crc32(_bytes_of(data)) for name, data in stream(files)},
    }
    if wrong := [part for part, is_same in same.items() if not is_same]:
        raise ModelError(f"expected the {wrong[0]} that was read, got another", where=str(folder))
