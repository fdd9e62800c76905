"""From logits to a token: the law of a token, and what is drawn from it.

    temperature T > 0   p = softmax(z / T)
    T = 0               the token of the greatest logit, of equals that of the lowest id
    top_p < 1           p restricted to the smallest set of tokens whose mass is at least top_p, the
                        most probable first, of equals the lowest ids; and scaled to sum to 1

A token is drawn by the inverse of the cumulated law, in fp64 and in the order of ids, at one
uniform number. That is a function of the seed, the context's ids, the sample's number and the
token's position in it; so a text does not depend on what else is drawn, and two models are read
with the same numbers. Source of top_p: arXiv:1904.09751, section 3.1.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from cqa.kernels.philox import DRAW, stream_of, wide_uniforms

Floats64 = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Law:
    """What is drawn from, given logits."""

    temperature: float = 1.0  # 0 is the greatest logit
    top_p: float = 1.0

    def weights(self, logits: npt.NDArray[np.float32]) -> Floats64:
        """Return each token's probability times a constant, shape (V,), of finite logits (V,)."""
        z = logits.astype(np.float64)
        weights = np.zeros_like(z)
        if self.temperature == 0:
            weights[z.argmax()] = 1
            return weights
        with np.errstate(over="ignore", under="ignore"):  # to -inf, and to 0
            np.exp((z - z.max()) / self.temperature, out=weights)
        if self.top_p < 1:
            weights[~_nucleus(weights, self.top_p)] = 0
        return weights

    def draw(self, logits: npt.NDArray[np.float32], u: float) -> int:
        """Return the token whose part of [0, 1) holds `u`."""
        if self.temperature == 0:
            return int(logits.argmax())
        cumulated = self.weights(logits).cumsum()
        return int(cumulated.searchsorted(u * cumulated[-1], side="right"))


def _nucleus(weights: Floats64, top_p: float) -> npt.NDArray[np.bool_]:
    """Return which tokens are of the smallest set whose mass is at least `top_p`, shape (V,)."""
    falling = np.sort(weights)[::-1]
    cumulated = falling.cumsum()
    n = int(cumulated.searchsorted(top_p * cumulated[-1])) + 1
    least = falling[n - 1]
    inside: npt.NDArray[np.bool_] = weights > least
    inside[np.flatnonzero(weights == least)[: n - int(inside.sum())]] = True
    return inside


def stream_index(context: Sequence[int], number: int) -> int:
    """Return which counter of the generator a sample draws by: 32 bits of its context, its number.

    Contexts differ in theirs, so that their samples are independent.
    """
    digest = hashlib.sha256(np.asarray(context, dtype="<i8").tobytes()).digest()
    return int.from_bytes(digest[:4], "little") << 32 | number


def draw_uniforms(seed: int, position: int, indices: Sequence[int]) -> Floats64:
    """Return the number that the token at `position` of each sample is drawn by, in [0, 1)."""
    index = np.array(indices, dtype=np.uint64)
    return wide_uniforms(seed, position, stream_of(DRAW), index)
