"""Rows of the study of attention; the numbers of all heads in few bytes, and read back exactly."""

from __future__ import annotations

import base64
import binascii
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from cqa.model.attention_mass import SHARES
from cqa.schema.claims import StudyRow

FORMS = ("own", "other")
_FP32 = np.dtype("<f4")
Shares = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True, kw_only=True)
class AttentionRow(StudyRow):
    """One item under one model: its good option after its own context y and after another's.

    A 7B model has 784 heads, whose 4,704 numbers would be 90 kB of decimals a row. They are kept as
    fp32, whose rounding is a thousand times below the smallest share that a mean over items tells.
    """

    n_layers: int
    n_heads: int
    shares_fp32: str  # base64 of little-endian (2, n_layers, n_heads, 3): FORMS; SHARES
    log_ratio_nats: tuple[tuple[float, ...], ...]  # by form: means over heads, of both masses
    in_sight: tuple[float, ...]  # by form: mean over layers of the share of y in their windows
    n_y: tuple[int, ...]  # by form: tokens of y
    n_fed: int  # tokens

    def problem(self) -> str | None:
        """Say whether the numbers are not those of all heads."""
        try:
            n_bytes = len(base64.b64decode(self.shares_fp32, validate=True))
        except binascii.Error:
            return "expected base64"
        expected = _FP32.itemsize * int(np.prod(self.shape))
        return None if n_bytes == expected else f"expected {expected} bytes, got {n_bytes}"

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """The shape of `shares`."""
        return len(FORMS), self.n_layers, self.n_heads, len(SHARES)

    def shares(self) -> Shares:
        """Return the shares that y has, (2, n_layers, n_heads, 3): by FORMS and SHARES."""
        held = base64.b64decode(self.shares_fp32)
        return np.frombuffer(held, dtype=_FP32).reshape(self.shape)


def packed(shares: npt.NDArray[np.float64]) -> str:
    """Return shares as rows keep them."""
    return base64.b64encode(shares.astype(_FP32).tobytes()).decode("ascii")
