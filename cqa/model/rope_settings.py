"""Which rotation a config.json asks for: one setting, whichever of the spellings it has.

transformers 5 writes `rope_parameters`; older files have `rope_theta` and `rope_scaling`. Where two
spellings of one setting differ, programs disagree on which counts, so such a file is refused.
"""

from __future__ import annotations

import math
from typing import Any

import torch

from cqa.model.numbers import number
from cqa.model.rope import Rope, inverse_frequencies

DEFAULT_THETA = 10_000.0
LARGEST = torch.finfo(torch.float32).max
ROPE_TYPES = {  # what each needs beside rope_theta
    "default": (),
    "linear": ("factor",),
    "llama3": (
        "factor",
        "low_freq_factor",
        "high_freq_factor",
        "original_max_position_embeddings",
    ),
    "yarn": ("factor", "original_max_position_embeddings"),
}
OPTIONAL = ("attention_factor", "beta_fast", "beta_slow", "mscale", "mscale_all_dim")  # of yarn
LENGTH = "original_max_position_embeddings"


def read_rope(raw: dict[str, Any], head_dim: int, default_theta: float = DEFAULT_THETA) -> Rope:
    """Return the rotation that a config.json asks for.

    Raises:
        ValueError: They are malformed, contradict each other, or are not computed here.
        KeyError: One is missing.
    """
    rope = _one_setting(raw, default_theta)
    kind = rope["rope_type"]
    if not isinstance(kind, str) or kind not in ROPE_TYPES:
        raise ValueError(f"rope type {kind!r}; known are {', '.join(ROPE_TYPES)}")
    for factor in (rope.get("partial_rotary_factor"), raw.get("partial_rotary_factor")):
        if factor not in (None, 1):
            raise ValueError(f"a partial_rotary_factor of {factor!r}; whole heads are rotated here")
    for key in ("rope_theta", *ROPE_TYPES[kind]):
        number(rope, key, most=LARGEST)
    if kind == "llama3" and rope["high_freq_factor"] <= rope["low_freq_factor"]:
        raise ValueError("a high_freq_factor that is not above low_freq_factor")
    if kind == "yarn":
        _check_yarn(rope)
    rotation = Rope.of(rope)
    _check_finite(rotation, head_dim)
    return rotation


def _one_setting(raw: dict[str, Any], default_theta: float) -> dict[str, Any]:
    """Merge the spellings, refusing two that differ."""
    new, old = raw.get("rope_parameters"), raw.get("rope_scaling")
    for given in (new, old):
        if given is not None and not isinstance(given, dict):
            raise ValueError(f"rope parameters {given!r:.80}")
    if new and old and new != old:
        raise ValueError("both rope_parameters and rope_scaling, which differ")
    rope = dict(new or old or {})
    if nested := [key for key, value in rope.items() if isinstance(value, dict)]:
        raise ValueError(f"rope parameters for each type of layer ({nested[0]:.80}, …)")
    _same(rope, "type", "rope_type", rope.get("rope_type"), "its rope_type")
    rope.setdefault("rope_type", rope.get("type", "default"))
    if "rope_theta" in raw:
        _same(
            raw, "rope_theta", "rope_theta", rope.get("rope_theta"), "that of the rope parameters"
        )
    rope.setdefault("rope_theta", raw.get("rope_theta", default_theta))
    if LENGTH in raw:
        _same(raw, LENGTH, LENGTH, rope.get(LENGTH), "that of the rope parameters")
    rope.setdefault(LENGTH, raw.get(LENGTH, raw["max_position_embeddings"]))
    return rope


def _same(raw: dict[str, Any], key: str, name: str, other: Any, where: str) -> None:
    """Refuse a setting that is given twice with two values."""
    if key in raw and other is not None and raw[key] != other:
        raise ValueError(f"{key} {raw[key]!r:.40} beside {name} {other!r:.40} ({where})")


def _check_yarn(rope: dict[str, Any]) -> None:
    for key in OPTIONAL:
        value = rope.get(key)
        if value is not None:
            number(rope, key, least=-LARGEST, most=LARGEST)
    if not isinstance(rope.get("truncate", True), bool):
        raise ValueError(f"truncate {rope['truncate']!r:.40}")


def _check_finite(rope: Rope, head_dim: int) -> None:
    """Refuse parameters that are numbers each, but of which no rotation comes."""
    try:
        inv_freq, factor = inverse_frequencies(rope, head_dim)
    except (ArithmeticError, ValueError, RuntimeError) as error:
        raise ValueError(f"rope parameters that give no angles ({error})") from None
    if not (math.isfinite(factor) and bool(torch.isfinite(inv_freq).all())):
        raise ValueError("rope parameters that give no finite angles")
