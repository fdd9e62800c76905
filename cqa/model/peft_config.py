"""What an adapter_config.json of PEFT asks for: which modules, with what rank and alpha each.

A module is named as in the base model: `model.layers.0.self_attn.q_proj`.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from cqa.errors import ModelError
from cqa.model.adapter_files import CONFIG
from cqa.model.numbers import count, flag, number
from cqa.reading import read_object

MOST_RANK = 100_000
LARGEST_ALPHA = 1e30
LONGEST_PATTERN = 2_000
SECONDS = 10.0  # for all expressions on all modules
INITS = (True, False, None, "gaussian", "eva", "orthogonal")  # others change the base
PLAIN = {
    "peft_type": ("LORA",),
    "bias": ("none", None),
    "task_type": ("CAUSAL_LM", None),
    "init_lora_weights": INITS,
}
# Settings that change nothing of a trained adapter's forward pass. `fan_in_fan_out` is for layers
# whose weights lie transposed; PEFT switches it off for those of the models that load here.
WITHOUT_EFFECT = {
    "auto_mapping", "base_model_name_or_path", "corda_config", "ensure_weight_tying", "eva_config",
    "fan_in_fan_out", "inference_mode", "loftq_config", "lora_dropout", "lora_ga_config",
    "megatron_core", "peft_version", "revision", "runtime_config",
}  # fmt: skip
READ = {
    *PLAIN, "r", "lora_alpha", "use_rslora", "target_modules", "exclude_modules", "rank_pattern",
    "alpha_pattern", "layers_to_transform", "layers_pattern", "modules_to_save",
}  # fmt: skip
TABLES = ("embed_tokens", "lm_head")
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class PeftConfig:
    """The settings that decide what a LoRA adapter of PEFT computes."""

    rank: int
    alpha: float
    rslora: bool
    targets: str | tuple[str, ...]  # an expression for whole names, or ends of names
    excluded: str | tuple[str, ...]
    layers: frozenset[int] | None  # those adapted, where `targets` are ends of names
    layers_patterns: tuple[str, ...]
    rank_pattern: Mapping[str, int]
    alpha_pattern: Mapping[str, float]
    saved: tuple[str, ...]  # modules that are trained whole

    def adapts(self, module: str) -> bool:
        """Whether PEFT puts a LoRA on a linear module."""
        if isinstance(self.excluded, str):
            if self.excluded and re.fullmatch(self.excluded, module):
                return False
        elif _ends(module, self.excluded):
            return False
        if isinstance(self.targets, str):
            if self.targets.lower() == "all-linear":
                return not _ends(module, ("lm_head",))
            return re.fullmatch(self.targets, module) is not None
        if module in self.targets:
            return True
        return _ends(module, self.targets) and (self.layers is None or self._layer_counts(module))

    def _layer_counts(self, module: str) -> bool:
        patterns = self.layers_patterns or (r"[^.]*",)
        for pattern in patterns:
            if found := re.match(_of_layers(pattern), module):
                return self.layers is not None and int(found["layer"]) in self.layers
        return False

    def expressions(self) -> Iterator[tuple[str, str]]:
        """Yield the expressions that modules are compared with, and the way: a method of `re`."""
        for names in (self.targets, self.excluded):
            if isinstance(names, str):
                yield "fullmatch", names
        yield from (("match", _of_layers(pattern)) for pattern in self.layers_patterns)
        yield from (("match", _of_end(p)) for p in (*self.rank_pattern, *self.alpha_pattern))

    def refuse_endless(self, modules: Iterable[str], where: str) -> None:
        """Refuse expressions that take too long on these modules, since `re` cannot be stopped.

        They are tried in a process of their own.

        Raises:
            ModelError: They do.
        """
        tried = [e for e in self.expressions() if re.search(r"[*+?{]", e[1].replace(_PLAIN, ""))]
        if not tried:
            return
        try:
            subprocess.run(
                [sys.executable, "-I", "-S", "-c", _TRY], text=True, capture_output=True,
                input=json.dumps([tried, list(modules)]), timeout=SECONDS, check=False,
            )  # fmt: skip
        except subprocess.TimeoutExpired:
            raise ModelError(
                f"expected expressions that match modules at once, got no end after {SECONDS:g} "
                f"seconds: {tried[0][1]!r:.120}",
                where=where,
                hint="a repetition within a repetition takes for ever; name the modules in a list",
            ) from None

    def rank_of(self, module: str) -> int:
        """Return the rank of an adapted module."""
        return _by_pattern(self.rank_pattern, module, self.rank)

    def scaling_of(self, module: str) -> float:
        """Return what B·A of an adapted module is multiplied by."""
        rank = self.rank_of(module)
        alpha = _by_pattern(self.alpha_pattern, module, self.alpha)
        return alpha / (rank**0.5 if self.rslora else rank)


_PLAIN = r"(.*\.)?("  # which is put before the ends of names
_TRY = """
import json, re, sys
expressions, modules = json.load(sys.stdin)
for way, expression in expressions:
    for module in modules:
        getattr(re, way)(expression, module)
"""


def _of_layers(pattern: str) -> str:
    return rf"(?:^|.*?\.){pattern}\.(?P<layer>\d+)\."


def _of_end(pattern: str) -> str:
    return rf"{_PLAIN}{pattern})$"


def _ends(module: str, ends: tuple[str, ...]) -> bool:
    return any(module == end or module.endswith(f".{end}") for end in ends)


def _by_pattern(patterns: Mapping[str, T], module: str, otherwise: T) -> T:
    for pattern, value in patterns.items():
        if re.match(_of_end(pattern), module):
            return value
    return otherwise


def read_peft_config(folder: Path) -> PeftConfig:
    """Read adapter_config.json of an adapter's folder.

    Raises:
        ModelError: It is missing or malformed, or asks for more than LoRA of linear modules.
    """
    path = folder / CONFIG
    if folder.exists() and not folder.is_dir():
        raise ModelError("expected an adapter folder, got a file", where=str(folder))
    raw = read_object(path, ModelError)
    if raw is None:
        within = sorted(folder.glob(f"*/{CONFIG}"))
        raise ModelError(
            f"expected an adapter folder with {CONFIG}, got none",
            where=str(folder),
            hint=f"it holds adapters, such as {within[-1].parent}" if within else None,
        )
    _refuse_unsupported(raw, str(path))
    try:
        return _parse(raw)
    except KeyError as error:
        raise ModelError(f"expected `{error.args[0]}`, got none", where=str(path)) from None
    except (ValueError, re.error, OverflowError, RecursionError) as error:
        raise ModelError(f"expected a consistent config, got: {error}", where=str(path)) from None


def _refuse_unsupported(raw: Mapping[str, Any], where: str) -> None:
    for key, allowed in PLAIN.items():
        value = raw.get(key)
        if isinstance(value, (list, dict)) or value not in allowed:
            raise ModelError(f"expected {key} {allowed[0]}, got: {value!r:.80}", where=where)
    for key, value in raw.items():
        known = key in READ or key in WITHOUT_EFFECT
        if known or not value or (type(value) in (int, float)):  # a number alone is no switch
            continue
        raise ModelError(
            f"expected LoRA of the projections alone, got {key:.80}: {value!r:.80}", where=where
        )


def _parse(raw: Mapping[str, Any]) -> PeftConfig:
    settings = dict(raw)
    rank = count(settings, "r", MOST_RANK)
    alpha = number(settings, "lora_alpha", most=LARGEST_ALPHA)
    rslora = {"use_rslora": False} if raw.get("use_rslora") is None else settings
    targets = _names(settings, "target_modules")
    if not targets:
        raise KeyError("target_modules")
    layers, patterns = raw.get("layers_to_transform"), _names(settings, "layers_pattern")
    if isinstance(targets, str) and layers is not None:
        raise ValueError("layers_to_transform beside target_modules that are one expression")
    if patterns and not layers and layers != 0:
        raise ValueError("layers_pattern without layers_to_transform")
    config = PeftConfig(
        rank=rank,
        alpha=float(alpha),
        rslora=flag(rslora, "use_rslora"),
        targets=targets,
        excluded=_names(settings, "exclude_modules"),
        layers=_layers(layers),
        layers_patterns=(patterns,) if isinstance(patterns, str) and patterns else tuple(patterns),
        rank_pattern={k: count(p, k, MOST_RANK) for k, p in _pattern(raw, "rank_pattern")},
        alpha_pattern={
            k: float(number(p, k, most=LARGEST_ALPHA)) for k, p in _pattern(raw, "alpha_pattern")
        },
        saved=tuple(_names(settings, "modules_to_save", listed=True)),
    )
    for _, expression in config.expressions():
        re.compile(expression)
    return config


def _names(raw: Mapping[str, Any], key: str, *, listed: bool = False) -> str | tuple[str, ...]:
    """Return an expression, or a list of names; nothing where there is none."""
    value = raw.get(key)
    if value is None:
        return ()
    if isinstance(value, str) and not listed:
        return _expression(value)
    if not isinstance(value, list) or not all(isinstance(name, str) for name in value):
        raise ValueError(f"{key} {value!r:.120}")
    return tuple(value)


def _expression(text: str) -> str:
    if len(text) > LONGEST_PATTERN:
        raise ValueError(f"an expression of {len(text)} characters")
    re.compile(text)
    return text


def _pattern(raw: Mapping[str, Any], key: str) -> list[tuple[str, dict[str, Any]]]:
    """Return the expressions of a pattern, each with the whole of it."""
    value = raw.get(key, {})
    if not isinstance(value, dict):
        raise ValueError(f"{key} {value!r:.120}")
    return [(_expression(name), value) for name in value]


def _layers(value: object) -> frozenset[int] | None:
    if value is None or value == []:
        return None
    numbers = value if isinstance(value, list) else [value]
    if not all(isinstance(n, int) and not isinstance(n, bool) for n in numbers):
        raise ValueError(f"layers_to_transform {value!r:.120}")
    return frozenset(numbers)
