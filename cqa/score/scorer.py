"""Items to rows, a pass at a time: the walk from tokens to log-probabilities, downwards.

    score_rows           items as token ids -> rows of scores.jsonl, pass by pass
    scored_passes        groups items up to the token budget; halves it where memory runs out
      passes             prefix_batch.py: every context once, every text after it once
      run_prefix_batch   decoder_engine.py: one pass on the device; other engines have their own
        packed           prefix_batch.py: contexts and texts -> rows, segments, targets
        decoder.hidden   model/decoder.py: rows -> the hidden state that predicts each target
        token_stats      kernels/token_logprobs.py: head, log-softmax, entropy, per target
    item_row             sums per text: S(x|y), S(x|null), I(x; y), dI
      SequenceStats      engine.py: the exactly rounded sums of what a text's tokens score

A sequence is a text after a context, both as ids; in our decoder its score does not depend on what
else is in the pass, so neither order nor budget changes a row.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial

from cqa.data.items import Item
from cqa.data.tokenizer import Tokenizer
from cqa.errors import NumericsError, ResourceError
from cqa.model.memory import give_back, ran_out
from cqa.schema.rows import ItemRow, OptionScore
from cqa.score.engine import Run, SequenceScores
from cqa.score.prefix_batch import EncodedItem, PrefixBatch, passes
from cqa.score_folder import item_key
from cqa.stats.information import contrast, delta_i_best_wrong, log_mean_exp, rank_prob

Pass = tuple[list[EncodedItem], PrefixBatch]
OnUnscored = Callable[[Item, str], None]  # an item without a score, and why


def score_rows(
    run: Run,
    items: Iterable[EncodedItem],
    tokenizer: Tokenizer,
    *,
    batch_tokens: int,
    adapter: str | None,
    model_key: str = "",
    tokens: bool = False,
    on_unscored: OnUnscored | None = None,
    ahead: bool = False,
) -> Generator[tuple[list[ItemRow], int], None, None]:
    """Score items as they come; yield the rows of each pass, and how many tokens it fed.

    Args:
        run: What scores a pass, such as `Engine.run`.
        items: The items as token ids.
        tokenizer: What encoded them.
        batch_tokens: Token budget of one pass; our decoder's rows are bit-identical whatever it is.
        adapter: What the rows call the model; None is the base.
        model_key: What identifies the model in the rows.
        tokens: Whether the rows have per-token values.
        on_unscored: Called with each item that the engine could not score, which then has no row;
            without it such an item is an error.
        ahead: Whether a thread runs the passes; see `scored_passes`.

    Raises:
        NumericsError: A score is not finite.
        ResourceError: There is not enough memory for one item alone.
    """
    for group, sequences, n_fed in scored_passes(run, items, tokenizer, batch_tokens, ahead=ahead):
        rows = []
        for encoded in group:
            problem = _problem(encoded, sequences, tokenizer) if on_unscored else None
            if on_unscored is not None and problem is not None:
                on_unscored(encoded.item, problem)
                continue
            rows.append(
                item_row(
                    encoded, sequences, tokenizer,
                    adapter=adapter, model_key=model_key, tokens=tokens,
                )
            )  # fmt: skip
        yield rows, n_fed


def _problem(encoded: EncodedItem, sequences: SequenceScores, tokenizer: Tokenizer) -> str | None:
    """Return why the engine could not score an item, if it could not."""
    problems = (sequences[pair].problem for pair in encoded.sequences(tokenizer))
    return next((problem for problem in problems if problem is not None), None)


def scored_passes(
    run: Run,
    items: Iterable[EncodedItem],
    tokenizer: Tokenizer,
    batch_tokens: int,
    *,
    ahead: bool = False,
) -> Iterator[tuple[list[EncodedItem], SequenceScores, int]]:
    """Score items pass by pass; where memory runs out, halve the token budget and go on.

    In our decoder no result depends on what else is in its pass, so the budget changes none.

    Args:
        run: What scores a pass.
        items: The items as token ids.
        tokenizer: What encoded them.
        batch_tokens: Token budget of one pass.
        ahead: Whether a thread runs the passes, so that the next one is encoded and packed while
            one runs, and runs while the caller does its work with what this yields. A pass that
            runs when the caller stops is waited for and lost.

    Yields:
        The items of a pass, the statistics of their sequences, and how many tokens it fed.

    Raises:
        ResourceError: There is not enough memory for one item alone.
    """
    queue = _Queue(passes(items, tokenizer, batch_tokens), tokenizer, batch_tokens)
    with ThreadPoolExecutor(max_workers=1) as thread:

        def start(given: Pass) -> Callable[[], SequenceScores | None]:
            work = partial(_run_or_none, run, *given)
            return thread.submit(work).result if ahead else work

        now: Pass | None = None
        answer: Callable[[], SequenceScores | None] | None = None
        while (now := now or queue.take()) is not None:
            answer = answer or start(now)
            then = queue.take() if ahead else None
            if then is not None:
                then[1].packed()
            sequences = answer()
            if sequences is None:
                give_back()
                queue.halve(now, then)
                now = answer = None
                continue
            (group, prefixes), now = now, then
            answer = start(now) if now else None
            yield group, sequences, prefixes.n_rows


@dataclass(slots=True)
class _Queue:
    """The passes to come, divided where the budget is lower than when they were made."""

    source: Iterator[Pass]
    tokenizer: Tokenizer
    batch_tokens: int
    waiting: list[Pass] = field(default_factory=list)  # before those of the source; the first last

    def take(self) -> Pass | None:
        """Return the next pass, None after the last."""
        while (
            found := self.waiting.pop() if self.waiting else next(self.source, None)
        ) is not None:
            group, prefixes = found
            if prefixes.n_rows <= self.batch_tokens or len(group) == 1:
                return found
            self.waiting += reversed(list(passes(group, self.tokenizer, self.batch_tokens)))
        return None

    def halve(self, tried: Pass, following: Pass | None) -> None:
        """Lower the budget below a pass for which memory ran out; both come again."""
        self.batch_tokens = max(1, min(self.batch_tokens, tried[1].n_rows) // 2)
        self.waiting += [following, tried] if following else [tried]


def _run_or_none(
    run: Run, group: list[EncodedItem], prefixes: PrefixBatch
) -> SequenceScores | None:
    """Score a prefix batch; return None where memory ran out and there are items to divide."""
    try:
        return run(prefixes)
    except (RuntimeError, MemoryError) as error:
        if not ran_out(error):
            raise
        if len(group) > 1:
            return None
        raise ResourceError(
            f"expected enough memory for item `{group[0].item.id}` alone, got none for its "
            f"{prefixes.n_rows} tokens",
            where=group[0].item.where,
            hint="--dtype bf16, a shorter context, or a device with more memory",
        ) from error


def item_row(
    encoded: EncodedItem,
    sequences: SequenceScores,
    tokenizer: Tokenizer,
    *,
    adapter: str | None,
    model_key: str,
    tokens: bool,
) -> ItemRow:
    """Return an item's line of scores.jsonl.

    Raises:
        NumericsError: A score is not finite.
    """
    item = encoded.item
    options = [_option(encoded, k, sequences, tokenizer, tokens) for k in range(len(item.options))]
    if not all(_is_finite(option) for option in options):
        raise NumericsError(
            f"expected finite scores, got others in item `{item.id}`", where=item.where
        )
    delta_i = best_wrong = rank = None
    if item.answer is not None:
        pmi = [option.pmi_nats for option in options]
        logp = [option.logp_given_context_nats for option in options]
        delta_i = contrast(pmi, item.answer)
        best_wrong = delta_i_best_wrong(pmi, item.answer)
        rank = rank_prob(logp, [option.n_bytes for option in options], item.answer)
    return ItemRow(
        id=item.id,
        group=item.group,
        domain=item.labels.get("domain"),
        lang=item.labels.get("lang"),
        source_id=item.labels.get("source_id"),
        published_at=item.labels.get("published_at"),
        kind=item.kind,
        answer=item.answer,
        adapter=adapter,
        model_key=model_key,
        item_key=item_key(item),
        options=tuple(options),
        delta_i_nats=delta_i,
        delta_i_best_wrong_nats=best_wrong,
        rank_prob=rank,
    )


def _option(
    encoded: EncodedItem,
    index: int,
    sequences: SequenceScores,
    tokenizer: Tokenizer,
    tokens: bool,
) -> OptionScore:
    text, ids = encoded.item.options[index], encoded.options[index]
    given = sequences[ids.context_ids, ids.option_ids]
    null = sequences[tokenizer.null_ids, ids.option_ids]
    null2 = [sequences[c, ids.option_ids].total for c in encoded.null2_contexts(tokenizer)]
    return OptionScore(
        role=encoded.item.role(index),
        logp_given_context_nats=given.total,
        logp_null_nats=null.total,
        logp_null2_nats=log_mean_exp(null2) if null2 else None,
        pmi_nats=given.total - null.total,
        entropy_given_context_nats=given.total_entropy,
        entropy_null_nats=null.total_entropy,
        n_tokens=len(ids.option_ids),
        n_bytes=len(text.encode()),
        n_chars=len(text),
        boundary_mismatch=ids.boundary_mismatch,
        token_ids=ids.option_ids if tokens else None,
        token_char_ends=ids.option_char_ends if tokens else None,
        token_logp_given_context_nats=tuple(given.logp) if tokens else None,
        token_logp_null_nats=tuple(null.logp) if tokens else None,
    )


def _is_finite(option: OptionScore) -> bool:
    sums = (
        option.logp_given_context_nats,
        option.logp_null_nats,
        option.logp_null2_nats,
        option.entropy_given_context_nats,
        option.entropy_null_nats,
    )
    return all(total is None or math.isfinite(total) for total in sums)
