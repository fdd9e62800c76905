"""The controls that keep all but the match: another item's text, or a text's words shuffled."""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Sequence

import numpy as np
from scipy.optimize import linear_sum_assignment

# Thai, Lao, Burmese and Khmer; punctuation and letters of Chinese and Japanese; and their full
# widths. Korean has spaces.
_LETTERS = (
    "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3000-\u30ff\u3400-\u9fff\uf900-\ufaff\uff00-\uffef"
    "\U00020000-\U0003ffff"
)
_UNSPACED = re.compile(f"[{_LETTERS}]")
_WORD = re.compile(f"(?!\\s)[{_LETTERS}]|[^\\s{_LETTERS}]+")
_AT_A_TIME = 1000  # items dealt among each other: the table of costs is this squared


def dealt(
    texts: Sequence[str],
    sources: Sequence[str | None],
    lengths: Sequence[int],
    unfit: Callable[[int, int], bool] = lambda _, __: False,
) -> list[int] | None:
    """Deal the texts of items to other items: each once, to another source, of near length.

    A permutation: what matched and mismatched texts say by themselves is the same in the mean.
    Among all permutations in which nobody gets a text of its own source or its own text again,
    the sum of the differences in length is the least; of more than 1,000 items, within runs of
    neighbours in length.

    Args:
        texts: One of each item.
        sources: Of each item; one without is a source of its own.
        lengths: Of each text, in tokens.
        unfit: Whether an item cannot take another's text for a reason besides.

    Returns:
        The number of the item whose text each gets; None where there is no such permutation.
    """
    order = sorted(range(len(texts)), key=lambda k: (lengths[k], k))
    n_parts = max(1, -(-len(order) // _AT_A_TIME))
    found = [0] * len(texts)
    for part in np.array_split(np.asarray(order, dtype=np.intp), n_parts):
        own = np.array([[_alike(texts, sources, a, b) or unfit(a, b) for b in part] for a in part])
        size = np.array([lengths[k] for k in part], dtype=np.float64)
        cost = np.abs(size[:, None] - size[None, :])
        forbidden = cost.sum() + 1
        rows, columns = linear_sum_assignment(np.where(own, forbidden, cost))
        if own[rows, columns].any():
            return None
        for row, column in zip(rows, columns, strict=True):
            found[part[row]] = int(part[column])
    return found


def _alike(texts: Sequence[str], sources: Sequence[str | None], a: int, b: int) -> bool:
    same_source = sources[a] is not None and sources[a] == sources[b]
    return a == b or same_source or texts[a] == texts[b]


def shuffled(text: str, seed: str) -> str:
    """Return a text's words in another order, the same every time; its own if it has no other.

    In scripts that put no spaces between words a character is a word.
    """
    words = _WORD.findall(text)
    own, source = list(words), random.Random(seed)
    source.shuffle(words)
    while words == own and len(set(words)) > 1:
        source.shuffle(words)
    pairs = zip(["", *words], words, strict=False)
    return "".join(_between(before, word) + word for before, word in pairs)


def _between(before: str, word: str) -> str:
    return " " if before and not (_UNSPACED.fullmatch(before) or _UNSPACED.fullmatch(word)) else ""
