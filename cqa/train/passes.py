"""Passes that fit the memory there is: where one runs out, its samples are split over more.

A window's loss is divided by the labels of the whole window, and dropout and noise are drawn by the
row of the window, so the split changes the result by no more than the order of its sums.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

from cqa.data.samples import EncodedSample
from cqa.errors import ResourceError
from cqa.model.memory import give_back, ran_out
from cqa.train.plan import split_passes

T = TypeVar("T")
HINT = "--recompute, --dtype bf16, or a lower --max-tokens with --too-long"


class PassLimit:
    """The most tokens that one pass may hold; lowered when memory runs out, never raised."""

    def __init__(self, tokens: int) -> None:
        self.tokens = tokens

    def run(
        self,
        samples: Sequence[EncodedSample],
        passes: Callable[[list[list[EncodedSample]]], T],
        undo: Callable[[], object] = lambda: None,
    ) -> T:
        """Call `passes` with the samples split by the limit, again with less where memory ran out.

        Args:
            samples: What has to be passed through.
            passes: Runs all of them; the list is of the samples of each pass.
            undo: Takes back what a failed call has left.

        Raises:
            ResourceError: There is not even enough for each sample alone.
        """
        while True:
            parts = split_passes(list(samples), self.tokens)
            try:
                return passes(parts)
            except (RuntimeError, MemoryError) as error:
                if not ran_out(error):
                    raise
                shared = [_n_tokens(part) for part in parts if len(part) > 1]
                if not shared:
                    longest = max(samples, key=lambda sample: len(sample.ids))
                    raise ResourceError(
                        f"expected enough memory for one sample a pass, got none with "
                        f"`{longest.id}` of {len(longest.ids)} tokens the longest",
                        where=longest.where,
                        hint=HINT,
                    ) from error
            self.tokens = max(shared) // 2
            give_back()
            undo()


def _n_tokens(samples: Sequence[EncodedSample]) -> int:
    return sum(len(sample.ids) for sample in samples)
