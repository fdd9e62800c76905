"""An adapter for other programs: with a plain alpha, or merged into its base.

Whatever is written is read back and compared before the folder has its name.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from cqa.errors import ConfigError, ModelError
from cqa.files import check_room, new_folder
from cqa.model.adapter import (
    PEFT_PREFIX,
    PROJECTIONS,
    AdapterFile,
    adapter_folder,
    module_name,
    open_adapter,
    read_pairs,
)
from cqa.model.adapter_files import CONFIG, WEIGHTS
from cqa.model.checkpoint import copy_file, locate, opened
from cqa.model.config import HEAD, TABLE, read_checkpoint, read_config, tensor_shapes
from cqa.model.digest import digest_files
from cqa.model.lora import Key
from cqa.model.origin import check_origin
from cqa.reading import CARD, read_object

BESIDE = (".json", ".txt", ".model", ".jinja")  # what a folder holds beside its weights
PLAIN_ALPHA = """
**A copy with a plain alpha** for programs that scale by alpha / r whatever `use_rslora` says:
`lora_alpha` is the alpha of the training times the root of the rank; so the scaling is the same.
"""


@dataclass(frozen=True, slots=True)
class Exported:
    """What was written."""

    out: Path
    n_modules: int
    base: str | None  # what was merged into


def export(
    adapter: Path, out: Path, *, plain_alpha: bool, merge: bool, model: str | None
) -> Exported:
    """Write an adapter in one of the two forms; see `export_plain_alpha` and `export_merged`.

    Raises:
        ConfigError: Not one form is asked for, or a base that is not needed.
        CqaError: As of the form.
    """
    if plain_alpha == merge:
        got = "both" if merge else "neither"
        raise ConfigError(
            f"expected --plain-alpha or --merge, got {got}",
            hint="a merged model has no alpha; an adapter as it is needs no export",
        )
    if merge:
        return export_merged(adapter, out, model=model)
    if model is not None:
        raise ConfigError("expected --model with --merge alone, got it with --plain-alpha")
    return export_plain_alpha(adapter, out)


def export_plain_alpha(adapter: Path, out: Path) -> Exported:
    """Write an adapter whose plain alpha / r is the scaling that it was trained with.

    For programs that scale by alpha / r whatever `use_rslora` says: alpha' = alpha·√r, in
    `alpha_pattern` too. The tensors stay as they are, under PEFT's own names; tokenizer and card go
    with them.

    Raises:
        ConfigError: `out` exists.
        ModelError: The adapter cannot be read, or what was written is not it.
        ResourceError: It cannot be written.
    """
    folder = adapter_folder(adapter)
    found = open_adapter(folder)
    _refuse_existing(out)
    with new_folder(out) as temporary:
        _write_plain(found, folder, temporary)
        _compare_adapters(found, open_adapter(temporary))
    return Exported(out, len(found.pairs), None)


def _write_plain(found: AdapterFile, folder: Path, out: Path) -> None:
    alphas = {
        module_name(*key): found.config.scaling_of(module_name(*key))
        * found.config.rank_of(module_name(*key))
        for key in found.pairs
    }
    raw = read_object(folder / CONFIG, ModelError) or {}
    common = next(iter(alphas.values()))
    changed = {
        "lora_alpha": _tidy(common),
        "alpha_pattern": {re.escape(n): _tidy(a) for n, a in alphas.items() if a != common},
        "use_rslora": False,
    }
    _copy_beside(folder, out)
    text = json.dumps(raw | changed, indent=2, sort_keys=True) + "\n"
    (out / CONFIG).write_text(text, encoding="utf-8")
    names = {
        name: f"{PEFT_PREFIX}{module_name(*key).removeprefix('model.layers')}.lora_{ab}.weight"
        for key, pair in found.pairs.items()
        for ab, name in pair.items()
    }
    with opened(found.path) as file:
        tensors = {names.get(name, name): file.get_tensor(name) for name in found.shapes}
    save_file(tensors, out / WEIGHTS, metadata={"format": "pt"})
    if (folder / CARD).is_file():
        copy_file(folder / CARD, out / CARD)
        with (out / CARD).open("a", encoding="utf-8") as card:
            card.write(PLAIN_ALPHA)


def _tidy(number: float) -> float:
    return int(number) if float(number).is_integer() else number


def _compare_adapters(one: AdapterFile, other: AdapterFile) -> None:
    """Compare two adapters' B·A, times its scaling, of every module."""
    same = one.pairs.keys() == other.pairs.keys()
    with opened(one.path) as a, opened(other.path) as b:
        for key in one.pairs if same else ():
            module = module_name(*key)
            scalings = [file.config.scaling_of(module) for file in (one, other)]
            same &= abs(scalings[0] - scalings[1]) <= 1e-12 * scalings[0]
            for ab in "AB":
                same &= _same_bits(
                    a.get_tensor(one.pairs[key][ab]), b.get_tensor(other.pairs[key][ab])
                )
    if not same or other.config.rslora:
        raise ModelError(
            "expected the adapter that was written, got another one", where=str(other.path)
        )


def _same_bits(a: Tensor, b: Tensor) -> bool:
    return a.dtype == b.dtype and torch.equal(
        a.reshape(-1).view(torch.uint8), b.reshape(-1).view(torch.uint8)
    )


def export_merged(adapter: Path, out: Path, *, model: str | None = None) -> Exported:
    """Write the base with an adapter merged in: a whole model folder, tokenizer included.

    A merged weight is W + scaling·B·A, summed in fp32 (fp64 for an fp64 base) and rounded once to
    the dtype of W. It goes through one file of the base after the other, whose names, index and
    config are kept.

    Args:
        adapter: The adapter's folder.
        out: The folder to write.
        model: The base's folder or hub id; by default what the adapter names.

    Raises:
        ConfigError: `out` exists.
        ModelError: Base or adapter cannot be read, do not belong together, or what was written is
            not their sum.
        ResourceError: The disk cannot hold it.
    """
    folder = adapter_folder(adapter)
    found = open_adapter(folder)
    base = locate(model or _base_of(folder))
    config, files = read_checkpoint(base)
    paths = sorted(set(files.values()))
    check_origin(folder, model_digest=digest_files([base / "config.json", *paths]))
    _refuse_existing(out)
    check_room(_nearest(out), sum(path.stat().st_size for path in paths))
    deltas = _Deltas(found, dict(tensor_shapes(config)), files)
    with new_folder(out) as temporary:
        for path in paths:
            with opened(path) as file:
                merged = {name: deltas.add(name, file.get_tensor(name)) for name in file.keys()}  # noqa: SIM118
                said = file.metadata() or {"format": "pt"}
            # out here, since a write that fails is no fault of the file that is read
            save_file(merged, temporary / path.name, metadata=said)
        _copy_beside(base, temporary)
        if read_config(temporary) != config:
            raise ModelError("expected the base's config, got another", where=str(temporary))
        for path in paths:
            deltas.check(path, temporary / path.name)
    return Exported(out, len(found.pairs), str(base))


class _Deltas:
    """What an adapter adds to the tensors of a base."""

    def __init__(
        self,
        found: AdapterFile,
        shapes: Mapping[str, tuple[int, ...]],
        files: Mapping[str, Path],
    ) -> None:
        projections: dict[Key, tuple[int, int]] = {}
        for name, shape in shapes.items():
            if len(shape) == 2 and (key := _key(name)):
                projections[key] = (shape[0], shape[1])
        tables = {}
        for module in found.tables:
            name = TABLE if module == "embed_tokens" or HEAD not in files else HEAD
            with opened(files[name]) as file:
                tables[module] = file.get_tensor(name)
        self._pairs = {
            key: (a, b, found.config.scaling_of(module_name(*key)))
            for key, a, b in read_pairs(found, projections, tables)
        }

    def add(self, name: str, weight: Tensor) -> Tensor:
        """Return a tensor of the base with what the adapter adds to it."""
        if (pair := self._pair(name)) is None:
            return weight
        a, b, scaling = pair
        wide = torch.promote_types(weight.dtype, torch.float32)
        return (weight.to(wide) + (b.to(wide) @ a.to(wide)) * scaling).to(weight.dtype)

    def check(self, base: Path, merged: Path) -> None:
        """Compare a merged file with the sum in fp64, and the rest with the base, bit by bit.

        Raises:
            ModelError: A weight is off by more than a rounding.
        """
        with opened(base) as before, opened(merged) as after:
            for name in before.keys():  # noqa: SIM118
                weight, written = before.get_tensor(name), after.get_tensor(name)
                pair = self._pair(name)
                if not (
                    _same_bits(weight, written) if pair is None else _is_sum(weight, pair, written)
                ):
                    raise ModelError(
                        f"expected {name} to be base and adapter within a rounding, got another "
                        f"tensor; it may not fit {str(weight.dtype).removeprefix('torch.')}",
                        where=str(merged),
                    )

    def _pair(self, name: str) -> tuple[Tensor, Tensor, float] | None:
        key = _key(name)
        return self._pairs.get(key) if key else None


def _is_sum(weight: Tensor, pair: tuple[Tensor, Tensor, float], written: Tensor) -> bool:
    """Whether a tensor is W + scaling·B·A but for its own rounding and that of sums in fp32."""
    a, b, scaling = pair[0].double(), pair[1].double(), pair[2]
    exact = weight.double() + (b @ a) * scaling
    sizes = weight.double().abs() + (b.abs() @ a.abs()) * scaling
    allowed = torch.finfo(weight.dtype).eps * exact.abs() + 1e-6 * sizes
    return weight.dtype == written.dtype and bool(
        ((written.double() - exact).abs() <= allowed).all()
    )


def _key(name: str) -> Key | None:
    """Return layer and module of a projection's weight."""
    parts = name.split(".")
    if parts[:2] != ["model", "layers"] or len(parts) != 6 or parts[5] != "weight":
        return None
    module = PROJECTIONS.get(f"{parts[3]}.{parts[4]}")
    return (int(parts[2]), module) if module else None


def _base_of(folder: Path) -> str:
    raw = read_object(folder / CONFIG, ModelError) or {}
    base = raw.get("base_model_name_or_path")
    if not isinstance(base, str) or not base:
        raise ModelError(
            "expected the base in base_model_name_or_path, got none", where=str(folder / CONFIG),
            hint="name it with --model",
        )  # fmt: skip
    return base


def _refuse_existing(out: Path) -> None:
    if out.exists() or out.is_symlink():
        raise ConfigError(
            "expected a new folder, got one that exists", where=str(out), hint="name another --out"
        )


def _nearest(path: Path) -> Path:
    """Return the nearest folder above a path that exists."""
    return next(parent for parent in path.absolute().parents if parent.is_dir())


def _copy_beside(base: Path, out: Path) -> None:
    """Copy config, tokenizer and whatever else of text lies in a folder."""
    for path in sorted(base.iterdir()):
        if path.suffix in BESIDE and path.is_file():
            copy_file(path, out / path.name)
