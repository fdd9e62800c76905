"""Rotary frequencies of the rope types that the configs of our architectures use.

Angles are formed in fp32 as position · inv_freq, as the models were trained.
Sources: linear: Position Interpolation, arXiv:2306.15595; yarn: arXiv:2309.00071, section 3;
llama3: Llama 3.1's frequency rule.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Self

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Rope:
    """A rotation; fields are called as in the `rope_parameters` of a config.json."""

    rope_type: str  # default, linear, llama3, yarn
    rope_theta: float
    factor: float = 1.0  # of all types but default
    original_max_position_embeddings: int = 0  # of llama3 and yarn
    low_freq_factor: float = 1.0  # of llama3, as is the next
    high_freq_factor: float = 4.0
    attention_factor: float | None = None  # of yarn, as is all that follows
    beta_fast: float | None = None  # None is 32
    beta_slow: float | None = None  # None is 1
    mscale: float | None = None
    mscale_all_dim: float | None = None
    truncate: bool = True

    @classmethod
    def of(cls, settings: Mapping[str, Any]) -> Self:
        """Take what a rotation has of the settings in a config.json, which are checked already."""
        return cls(**{f.name: settings[f.name] for f in fields(cls) if f.name in settings})


def inverse_frequencies(rope: Rope, head_dim: int) -> tuple[Tensor, float]:
    """Return (inv_freq of shape (head_dim / 2,) fp32, factor on cos and sin)."""
    exponent = torch.arange(0, head_dim, 2, dtype=torch.float32) / head_dim
    inv_freq: Tensor = 1.0 / (rope.rope_theta**exponent)
    kind = rope.rope_type
    if kind == "linear":
        return inv_freq / rope.factor, 1.0
    if kind == "llama3":
        return _llama3(inv_freq, rope), 1.0
    if kind == "yarn":
        return _yarn(inv_freq, rope, head_dim)
    return inv_freq, 1.0


def _llama3(inv_freq: Tensor, rope: Rope) -> Tensor:
    """Long wavelengths are stretched by `factor`, short ones kept, those between interpolated."""
    low, high, stretch = rope.low_freq_factor, rope.high_freq_factor, rope.factor
    turns = rope.original_max_position_embeddings / (2 * math.pi / inv_freq)
    share_kept = ((turns - low) / (high - low)).clamp(0, 1)
    mixed: Tensor = (1 - share_kept) * inv_freq / stretch + share_kept * inv_freq
    return mixed


def _yarn(inv_freq: Tensor, rope: Rope, head_dim: int) -> tuple[Tensor, float]:
    """Interpolate dimensions that turn less than beta_slow times, keep those over beta_fast."""
    factor, length = rope.factor, rope.original_max_position_embeddings

    def dimension(turns: float) -> float:
        return head_dim * math.log(length / (turns * 2 * math.pi)) / (2 * math.log(rope.rope_theta))

    low, high = dimension(rope.beta_fast or 32), dimension(rope.beta_slow or 1)
    if rope.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, head_dim - 1)
    span = high - low or 0.001
    ramp = (torch.arange(head_dim // 2, dtype=torch.float32) - low) / span
    share_kept = 1 - ramp.clamp(0, 1)
    scaled = inv_freq / factor * (1 - share_kept) + inv_freq * share_kept
    return scaled, _yarn_attention_factor(rope, factor)


def _yarn_attention_factor(rope: Rope, factor: float) -> float:
    def mscale(weight: float) -> float:
        return 1.0 if factor <= 1 else 0.1 * weight * math.log(factor) + 1.0

    given = rope.attention_factor
    if given is not None:
        return float(given)
    if rope.mscale and rope.mscale_all_dim:
        return mscale(rope.mscale) / mscale(rope.mscale_all_dim)
    return mscale(1.0)


def rope_tables(inv_freq: Tensor, factor: float, positions: Tensor) -> tuple[Tensor, Tensor]:
    """Return cos and sin of each row's angles, shape (M, head_dim / 2), fp32."""
    angles = positions.to(torch.float32)[:, None] * inv_freq
    return angles.cos() * factor, angles.sin() * factor
