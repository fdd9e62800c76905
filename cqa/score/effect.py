"""Whether an adapter changes any score: one that changes none would pass for a null result."""

from __future__ import annotations

from collections.abc import Iterable

from cqa.data.tokenizer import Tokenizer
from cqa.errors import ModelError
from cqa.score.adapters import AdapterFolder
from cqa.score.engine import Engine, SequenceScores
from cqa.score.prefix_batch import EncodedItem
from cqa.score.scorer import scored_passes


def check_has_effect(
    engine: Engine, adapter: AdapterFolder, items: Iterable[EncodedItem], tokenizer: Tokenizer
) -> None:
    """Check that an adapter changes a score: one that is not the base's is enough.

    The base's is summed over as many columns as the adapter's, so that rounding is no change.

    Leaves the adapter in use. Without an item, as in the shards of a job that has none to score,
    there is nothing to check.

    Raises:
        ModelError: max |ΔS| over all items is 0.
    """
    n_items = 0

    def scored(item: EncodedItem) -> SequenceScores:
        ((_, sequences, _),) = scored_passes(engine.run, [item], tokenizer, 1)
        return sequences

    for item in items:
        n_items += 1
        engine.use_silenced(adapter)
        before = scored(item)
        engine.use(adapter)
        after = scored(item)
        if any(after[sequence].logp != before[sequence].logp for sequence in before):
            return
    if not n_items:
        return
    raise ModelError(
        "expected an adapter that changes a score, got one under which all are the base's",
        where=str(adapter.folder),
        hint="its B·A may be zero or below the rounding of the weights' dtype",
    )
