"""The precision rule of the reference ops: compute one precision wider, round once."""

from __future__ import annotations

import torch

_WIDER = {torch.bfloat16: torch.float32, torch.float16: torch.float32}


def wider(dtype: torch.dtype) -> torch.dtype:
    """Return fp32 for half precisions, fp64 for fp32 and fp64."""
    return _WIDER.get(dtype, torch.float64)
