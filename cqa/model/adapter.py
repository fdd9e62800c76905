"""Adapter files in PEFT's format: written, read, and checked against a decoder."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor

from cqa.errors import ModelError
from cqa.model.adapter_files import CONFIG, WEIGHTS
from cqa.model.checkpoint import headers, opened
from cqa.model.config import FLOATS
from cqa.model.decoder import Decoder
from cqa.model.lora import Adapter, Key, LoraSpec
from cqa.model.peft_config import TABLES, PeftConfig, read_peft_config
from cqa.model.projection import MODULES

PEFT_PREFIX = "base_model.model.model.layers"
PARENTS = dict.fromkeys("qkvo", "self_attn") | dict.fromkeys(("gate", "up", "down"), "mlp")
PROJECTIONS = {f"{PARENTS[name]}.{name}_proj": name for name in MODULES}
OTHER_BASE = "the adapter was probably made for another base model"
# wrappers that programs leave in names: of PEFT, of DistributedDataParallel, of torch.compile, of
# FSDP and of recomputation; and, after A or B, the adapter's name in memory
WRAPPERS = "base_model|model|module|_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module"
INNER = rf"\.(?:(?:{WRAPPERS})\.)*"
TENSOR_NAME = re.compile(
    rf"(?:(?:{WRAPPERS})\.)*layers\.(?P<layer>\d{{1,6}}){INNER}(?P<parent>self_attn|mlp){INNER}"
    rf"(?P<name>\w+_proj){INNER}lora_(?P<ab>[AB])(?:\.(?P<adapter>[^.]+))?\.weight",
    re.ASCII,
)
TABLE_NAME = re.compile(
    rf"(?:(?:{WRAPPERS})\.)*(?P<module>{'|'.join(TABLES)})(?:\.base_layer)?\.weight"
)


def write_adapter(
    folder: Path,
    spec: LoraSpec,
    weights: Mapping[Key, tuple[Tensor, Tensor]],
    base: str,
    dropout: float,
) -> None:
    """Write an adapter in PEFT's format into an existing folder.

    Args:
        folder: Where adapter_config.json and adapter_model.safetensors go.
        spec: Its definition.
        weights: fp32 A and B of every adapted module.
        base: What the base model was called, for `base_model_name_or_path`.
        dropout: The dropout it was trained with.
    """
    tensors = {}
    for (layer, name), (a, b) in weights.items():
        prefix = f"{PEFT_PREFIX}.{layer}.{PARENTS[name]}.{name}_proj"
        tensors[f"{prefix}.lora_A.weight"] = a.detach().cpu().contiguous().clone()
        tensors[f"{prefix}.lora_B.weight"] = b.detach().cpu().contiguous().clone()
    alpha = int(spec.alpha) if float(spec.alpha).is_integer() else spec.alpha
    config = {
        "base_model_name_or_path": base,
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
        "init_lora_weights": True,
        "lora_alpha": alpha,
        "lora_dropout": dropout,
        "modules_to_save": None,
        "peft_type": "LORA",
        "r": spec.rank,
        "target_modules": [f"{name}_proj" for name in spec.targets],
        "task_type": "CAUSAL_LM",
        "use_dora": False,
        "use_rslora": spec.rslora,
    }
    save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})
    text = json.dumps(config, indent=2, sort_keys=True) + "\n"
    (folder / CONFIG).write_text(text, encoding="utf-8")


def adapter_folder(folder: Path) -> Path:
    """Return where an adapter's files lie: the folder, or the one folder in it that has them."""
    if (folder / CONFIG).exists() or not folder.is_dir():
        return folder
    inner = sorted(path.parent for path in folder.glob(f"*/{CONFIG}"))
    if len(inner) > 1:
        names = ", ".join(path.name for path in inner[:9])
        raise ModelError(
            f"expected one adapter, got {len(inner)} in folders of their own: {names:.200}",
            where=str(folder),
            hint="name one of them; score --run takes the epochs of a training run",
        )
    return inner[0] if inner else folder


@dataclass(frozen=True, slots=True)
class AdapterFile:
    """What an adapter's folder holds: its settings, and the names of its tensors by what they are.

    Attributes:
        path: The file of tensors.
        config: The settings.
        pairs: The names of A and B of every adapted module.
        shapes: The shape of every tensor.
        tables: The names of a saved embedding and head.
    """

    path: Path
    config: PeftConfig
    pairs: dict[Key, dict[str, str]]
    shapes: dict[str, tuple[int, ...]]
    tables: dict[str, str]

    @property
    def spec(self) -> LoraSpec:
        """The adapter as one of a single rank: the largest, with the scaling that it has there."""
        ranks = [self.shapes[pair["A"]][0] for pair in self.pairs.values()]
        held = {name for _, name in self.pairs}
        targets = tuple(name for name in MODULES if name in held)
        return LoraSpec(max(ranks), self.config.alpha, self.config.rslora, targets)


def read_spec(folder: Path) -> LoraSpec:
    """Read what an adapter is, from its config and the header of its weights.

    Raises:
        ModelError: A file is missing or malformed, or the adapter is more than LoRA of the
            decoder's projections.
    """
    return open_adapter(folder).spec


def open_adapter(folder: Path) -> AdapterFile:
    """Read an adapter's config and the header of its weights; see `read_spec`."""
    config = read_peft_config(folder)
    path = folder / WEIGHTS
    if not path.exists():
        hint = "pickle adapters (adapter_model.bin) are not read; save it as safetensors"
        raise ModelError(f"expected {WEIGHTS}, got none", where=str(folder), hint=hint)
    with opened(path) as file:
        names = sorted(file.keys())
    found = AdapterFile(path, config, {}, {}, {})
    named: set[str | None] = set()
    for name, shape, dtype in headers(dict.fromkeys(names, path)):
        found.shapes[name] = shape
        if table := TABLE_NAME.fullmatch(name):
            found.tables[table["module"]] = name
            continue
        matched = TENSOR_NAME.fullmatch(name)
        module = matched and PROJECTIONS.get(f"{matched['parent']}.{matched['name']}")
        if matched is None or module is None:
            raise ModelError(
                f"expected LoRA of the projections alone, got {name:.200}", where=str(path)
            )
        if 0 in shape:
            raise ModelError(
                f"expected {name} with values, got an empty tensor: saved by one process of a "
                "ZeRO-3 run, which holds a part of the weights",
                where=str(path),
                hint="gather the weights when saving (stage3_gather_16bit_weights_on_model_save)",
            )
        if len(shape) != 2 or dtype not in FLOATS:
            raise ModelError(
                f"expected {name} as a matrix of floats, got: {dtype} {shape}", where=str(path)
            )
        named.add(matched["adapter"])
        pair = found.pairs.setdefault((int(matched["layer"]), module), {})
        if matched["ab"] in pair:
            raise ModelError(
                f"expected each tensor once, got {pair[matched['ab']]} and {name}", where=str(path)
            )
        pair[matched["ab"]] = name
    if len(named) > 1:
        raise ModelError(
            f"expected one adapter, got several: {', '.join(sorted(map(str, named))):.200}",
            where=str(path),
        )
    if not found.pairs:
        raise ModelError("expected an adapter's tensors, got none", where=str(path))
    config.refuse_endless((module_name(*k) for k in found.pairs), str(folder / CONFIG))
    for (layer, module), pair in found.pairs.items():
        for ab in "AB":
            if ab not in pair:
                raise ModelError(
                    f"expected {module_name(layer, module)}.lora_{ab}, got none", where=str(path)
                )
        rank = config.rank_of(module_name(layer, module))
        held = (found.shapes[pair["A"]][0], found.shapes[pair["B"]][1])
        if held != (rank, rank):
            raise ModelError(
                f"expected {pair['A']} and its B of rank {rank} as {CONFIG} says, got: "
                f"{found.shapes[pair['A']]} and {found.shapes[pair['B']]}",
                where=str(path),
            )
    return found


def module_name(layer: int, module: str) -> str:
    """Name a projection as in the base model."""
    return f"model.layers.{layer}.{PARENTS[module]}.{module}_proj"


def read_adapter(folder: Path, decoder: Decoder) -> Adapter:
    """Read a PEFT adapter for this decoder, every tensor checked.

    Modules of a smaller rank are filled up with zeros, and where a module's scaling is not that of
    the whole, its B carries the difference: all have one rank and one scaling then.

    Raises:
        ModelError: Files are missing or malformed, keys are missing, unexpected or mis-shaped (made
            for another base), a value is not finite, or the adapter changes nothing.
    """
    found = open_adapter(folder)
    spec = found.spec
    shapes = {
        (p.layer, member.name): (member.width, p.columns.features)
        for p in decoder.projections()
        for member in p.members
    }
    tables = {"embed_tokens": decoder.table, "lm_head": decoder.head}
    weights: dict[Key, tuple[Tensor, Tensor]] = {}
    for key, a, b in read_pairs(found, shapes, tables):
        ratio = found.config.scaling_of(module_name(*key)) / spec.scaling
        weights[key] = _with_rank(a, b, spec.rank, ratio)
    if not any(bool(b.any()) and bool(a.any()) for a, b in weights.values()):
        raise ModelError(
            "expected an adapter that changes the model, got one whose B is all zero",
            where=str(found.path),
            hint="an epoch of one step learns nothing at the zero rate that a warm-up begins with; "
            "--epochs leaves it out",
        )
    return Adapter(spec, weights)


def read_pairs(
    found: AdapterFile,
    shapes: Mapping[Key, tuple[int, int]],
    tables: Mapping[str, Tensor],
) -> Iterator[tuple[Key, Tensor, Tensor]]:
    """Yield A (r, in) and B (out, r) of every adapted module, each with the rank of its own.

    Args:
        found: The adapter.
        shapes: (out, in) of every projection of the base.
        tables: The base's embedding and head, `embed_tokens` and `lm_head`.

    Raises:
        ModelError: The adapter does not fit this base, or a value is not finite.
    """
    _check_modules(found, shapes)
    with opened(found.path) as file:
        _check_tables(found, file, tables)
        for key, pair in sorted(found.pairs.items()):
            rank = found.config.rank_of(module_name(*key))
            out_features, in_features = shapes[key]
            a = _checked(file, pair["A"], (rank, in_features), found)
            yield key, a, _checked(file, pair["B"], (out_features, rank), found)


def _check_modules(found: AdapterFile, shapes: Mapping[Key, tuple[int, int]]) -> None:
    """Compare the modules that have tensors with those that the config names.

    Raises:
        ModelError: The base has no such module, or one is named and not there, or the reverse.
    """
    path, settings = str(found.path), str(found.path.with_name(CONFIG))
    tables = ("model.embed_tokens", "lm_head")
    found.config.refuse_endless((*tables, *(module_name(*key) for key in shapes)), settings)
    for module in TABLES:
        name = f"model.{module}" if module == "embed_tokens" else module
        if found.config.adapts(name):
            raise ModelError(
                f"expected LoRA of the projections alone, got target_modules with {module}",
                where=str(found.path.with_name(CONFIG)),
            )
    for key in found.pairs:
        if key not in shapes:
            n_layers = len({layer for layer, _ in shapes})
            raise ModelError(
                f"expected the {n_layers} layers of the base, got {module_name(*key)}",
                where=path,
                hint=OTHER_BASE,
            )
    for key in shapes:
        name, pair = module_name(*key), found.pairs.get(key)
        if found.config.adapts(name) and pair is None:
            raise ModelError(
                f"expected {name}.lora_A as {CONFIG} says, got none", where=path, hint=OTHER_BASE
            )
        if pair is not None and not found.config.adapts(name):
            raise ModelError(
                f"expected no tensor {pair['A']}: {CONFIG} does not name its module", where=path
            )


def _check_tables(found: AdapterFile, file: Any, tables: Mapping[str, Tensor]) -> None:
    """Refuse an embedding or head that was saved with the adapter, unless it is the base's own."""
    if others := [name for name in found.config.saved if name not in TABLES]:
        raise ModelError(
            f"expected LoRA of the projections alone, got modules_to_save: {others[0]:.80}",
            where=str(found.path.with_name(CONFIG)),
        )
    if missing := [name for name in found.config.saved if name not in found.tables]:
        raise ModelError(
            f"expected {missing[0]} as modules_to_save says, got none", where=str(found.path)
        )
    for module, name in found.tables.items():
        own = tables[module]
        if found.shapes[name] != tuple(own.shape):
            raise ModelError(
                f"expected the base's own {module} of shape {tuple(own.shape)}, got one of "
                f"{found.shapes[name]}: the adapter was trained with another vocabulary",
                where=str(found.path),
            )
        if own.is_meta:
            raise ModelError(
                f"expected an adapter without {module} of its own with --shard-base, got {name}: "
                "no process has the base's whole to compare it with",
                where=str(found.path),
                hint="without --shard-base, or leave the table out when the adapter is saved",
            )
        if not torch.equal(file.get_tensor(name).to(own.device, own.dtype), own):
            raise ModelError(
                f"expected the base's own {module}, got a trained one ({name}), which is not "
                "swapped with an adapter here",
                where=str(found.path),
                hint="merge adapter and base into one model folder, and name that with --model",
            )


def _checked(file: Any, name: str, shape: tuple[int, int], found: AdapterFile) -> Tensor:
    if found.shapes[name] != shape:
        raise ModelError(
            f"expected {name} of shape {shape}, got: {found.shapes[name]}",
            where=str(found.path),
            hint=OTHER_BASE,
        )
    tensor: Tensor = file.get_tensor(name)
    if not bool(torch.isfinite(tensor).all()):
        raise ModelError(f"expected finite floats in {name}, got others", where=str(found.path))
    return tensor


def _with_rank(a: Tensor, b: Tensor, rank: int, ratio: float) -> tuple[Tensor, Tensor]:
    """Return A (rank, in) and ratio·B (out, rank) for A (r, in) and B (out, r)."""
    if ratio != 1.0:
        b = (b.double() * ratio).float()
    if (missing := rank - a.shape[0]) > 0:
        a, b = F.pad(a, (0, 0, 0, missing)), F.pad(b, (0, missing))
    return a, b
