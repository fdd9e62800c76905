"""Rotary frequencies of the rope types that the configs of our architectures use.

Angles are formed in fp32 as position · inv_freq, as the models were trained.
Sources: linear: Position Interpolation, arXiv:2306.15595; yarn: arXiv:2309.00071, section 3;
llama3: Llama 3.1's frequency rule.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor


def inverse_frequencies(rope: dict[str, Any], head_dim: int) -> tuple[Tensor, float]:
    """Return (inv_freq of shape (head_dim / 2,) fp32, factor on cos and sin)."""
    theta: float = rope["rope_theta"]
    exponent = torch.arange(0, head_dim, 2, dtype=torch.float32) / head_dim
    inv_freq: Tensor = 1.0 / (theta**exponent)
    kind = rope["rope_type"]
    if kind == "linear":
        return inv_freq / rope["factor"], 1.0
    if kind == "llama3":
        return _llama3(inv_freq, rope), 1.0
    if kind == "yarn":
        return _yarn(inv_freq, rope, head_dim)
    return inv_freq, 1.0


def _llama3(inv_freq: Tensor, rope: dict[str, Any]) -> Tensor:
    """Long wavelengths are stretched by `factor`, short ones kept, those between interpolated."""
    low, high, stretch = rope["low_freq_factor"], rope["high_freq_factor"], rope["factor"]
    turns = rope["original_max_position_embeddings"] / (2 * math.pi / inv_freq)
    share_kept = ((turns - low) / (high - low)).clamp(0, 1)
    mixed: Tensor = (1 - share_kept) * inv_freq / stretch + share_kept * inv_freq
    return mixed


def _yarn(inv_freq: Tensor, rope: dict[str, Any], head_dim: int) -> tuple[Tensor, float]:
    """Interpolate dimensions that turn less than beta_slow times, keep those over beta_fast."""
    factor, length = rope["factor"], rope["original_max_position_embeddings"]

    def dimension(turns: float) -> float:
        return (
            head_dim * math.log(length / (turns * 2 * math.pi)) / (2 * math.log(rope["rope_theta"]))
        )

    low, high = dimension(rope.get("beta_fast") or 32), dimension(rope.get("beta_slow") or 1)
    if rope.get("truncate", True):
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, head_dim - 1)
    span = high - low or 0.001
    ramp = (torch.arange(head_dim // 2, dtype=torch.float32) - low) / span
    share_kept = 1 - ramp.clamp(0, 1)
    scaled = inv_freq / factor * (1 - share_kept) + inv_freq * share_kept
    return scaled, _yarn_attention_factor(rope, factor)


def _yarn_attention_factor(rope: dict[str, Any], factor: float) -> float:
    def mscale(weight: float) -> float:
        return 1.0 if factor <= 1 else 0.1 * weight * math.log(factor) + 1.0

    given = rope.get("attention_factor")
    if given is not None:
        return float(given)
    if rope.get("mscale") and rope.get("mscale_all_dim"):
        return mscale(rope["mscale"]) / mscale(rope["mscale_all_dim"])
    return mscale(1.0)


def rope_tables(inv_freq: Tensor, factor: float, positions: Tensor) -> tuple[Tensor, Tensor]:
    """Return cos and sin of each row's angles, shape (M, head_dim / 2), fp32."""
    angles = positions.to(torch.float32)[:, None] * inv_freq
    return angles.cos() * factor, angles.sin() * factor
