"""The setting of the second null context: a newline, or the contexts of other items."""

from __future__ import annotations

import re
from dataclasses import dataclass

from cqa.config import require

NEWLINE = "newline"
MOST_CONTEXTS = 1_000
EXPECTED = f"null2 to be {NEWLINE}, marginal:K or marginal:K:SEED"


@dataclass(frozen=True, slots=True)
class Marginal:
    """How many contexts of other items an item takes, and the seed by which they are drawn."""

    n_contexts: int
    seed: int = 0


def read_null2(text: str) -> Marginal | None:
    """Return what `marginal:8` or `marginal:8:1` asks for; None for the newline.

    Raises:
        ConfigError: It is neither, or out of range.
    """
    if text == NEWLINE:
        return None
    match = re.fullmatch(r"marginal:([0-9]{1,18})(?::([0-9]{1,18}))?", text)
    require(match is not None, EXPECTED, text)
    assert match is not None
    n_contexts = int(match[1])
    expected = f"null2 of 1 to {MOST_CONTEXTS:,} contexts"
    require(1 <= n_contexts <= MOST_CONTEXTS, expected, n_contexts)
    return Marginal(n_contexts, int(match[2] or 0))
