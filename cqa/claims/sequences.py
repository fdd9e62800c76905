"""Sequences scored for a study: any number of texts after any number of contexts."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import partial

from cqa.data.tokenizer import Ids, Tokenizer
from cqa.errors import DataError, NumericsError
from cqa.score.decoder_engine import DecoderEngine, run_prefix_batch
from cqa.score.engine import Run, SequenceScores, SequenceStats
from cqa.score.prefix_batch import PrefixBatch

Pair = tuple[Ids, Ids]  # a context and a text after it
SEPARATOR = "\n\n"  # between what a text is conditioned on and its context


def conditioned(parts: Sequence[str], context: str) -> str:
    """Return a context after what it is conditioned on, each on lines of its own."""
    return SEPARATOR.join([*parts, context])


def encode(tokenizer: Tokenizer, context: str, text: str, max_positions: int, where: str) -> Pair:
    """Encode a text after a context as `score` does.

    Raises:
        DataError: A control token is written in one of them, or they are too long for the model.
    """
    tokenizer.refuse_special(context + text, where)
    rendered = tokenizer.render_context(context, text, where)
    encoded = tokenizer.encode_pair(rendered, text, "split", where)
    n_tokens = len(encoded.context_ids) + len(encoded.option_ids)
    if n_tokens > max_positions:
        raise DataError(
            f"expected at most {max_positions} tokens of context and text, got {n_tokens}",
            where=where, hint="shorten them; nothing is ever cut",
        )  # fmt: skip
    return encoded.context_ids, encoded.option_ids


def n_fed(pairs: Iterable[Pair]) -> int:
    """Return how many tokens a pass of these sequences feeds."""
    return PrefixBatch().cost(pairs)


def score_sequences(
    engine: DecoderEngine,
    pairs: Iterable[Pair],
    budget: int | None = None,
    *,
    varentropy: bool = False,
) -> SequenceScores:
    """Score sequences under the model in use, in passes of at most `budget` tokens.

    With `varentropy`, that of every token too.

    Raises:
        NumericsError: A log-probability is not finite.
    """
    budget = budget or engine.pass_rows
    run: Run = engine.run
    if varentropy:
        run = partial(run_prefix_batch, engine.base.decoder, varentropy=True)
    found: SequenceScores = {}
    prefixes = PrefixBatch()
    for pair in pairs:
        if prefixes.n_rows and prefixes.n_rows + prefixes.cost([pair]) > budget:
            found |= run(prefixes)
            prefixes = PrefixBatch()
        prefixes.add([pair])
    found |= run(prefixes)
    for stats in found.values():
        _check_finite(stats)
    return found


def _check_finite(stats: SequenceStats) -> None:
    if not abs(stats.total) < float("inf"):
        raise NumericsError("expected finite log-probabilities, got others")
