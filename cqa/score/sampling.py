"""Texts drawn from a decoder, with what scoring says of their tokens.

Every context is run once, and its samples grow together, a row each in every pass. What is logged
of a token is what scoring gives: the model's own log-probability, without temperature and top_p, by
the same op on the same hidden state. On the native ops the two are equal to the bit, whatever else
is sampled at the same time.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from cqa.errors import NumericsError
from cqa.kernels.token_logprobs import CHUNK_ROWS, logits_of, token_stats
from cqa.layout import Tree, pack_trees
from cqa.model.decoder import Decoder
from cqa.model.forward_pass import RowBlocks
from cqa.model.kept_keys import KeptKeys
from cqa.score.draws import Law, draw_uniforms, stream_index

Ids = tuple[int, ...]
Stop = Literal["end", "max_tokens", "positions"]
KEPT_ROWS = 16_384  # of contexts and texts whose keys and values are kept at a time
_STATS_ROWS = 512  # hidden states that wait for their statistics, so that the head is read less


@dataclass(frozen=True, slots=True)
class Sample:
    """A text that was drawn after a context; all tuples have its length in tokens."""

    token_ids: Ids  # with the end token, if it came to one
    logp_nats: tuple[float, ...]  # ln P of each token under the model, as scoring gives it
    entropy_nats: tuple[float, ...]  # of the model's law at each token
    rank: tuple[int, ...]  # 0 is the model's most probable token
    varentropy_nats2: tuple[float, ...]  # variance of ln P under the model's law at each token
    stop: Stop  # an end token, the most tokens asked for, or the model's positions


@dataclass(slots=True)
class _Growing:
    """A sample that is being drawn."""

    context: Ids
    most_tokens: int
    index: int  # of the uniform numbers
    token_ids: list[int] = field(default_factory=list)
    logged: list[tuple[float, float, int, float]] = field(default_factory=list)


@torch.no_grad()
def sample(
    decoder: Decoder,
    contexts: Sequence[Ids],
    *,
    n_samples: int,
    max_tokens: int,
    temperature: float = 1.0,
    top_p: float = 1.0,
    seed: int = 0,
    end_ids: Collection[int] = (),
    kept_rows: int = KEPT_ROWS,
) -> list[list[Sample]]:
    """Draw texts after contexts; no number depends on what else is drawn, nor in which groups.

    Args:
        decoder: The model, with or without an adapter.
        contexts: Ids of each context: at least one, and fewer than the model has positions.
        n_samples: How many texts after each. Contexts with the same ids get the same texts.
        max_tokens: Most tokens of a text, the end token included.
        temperature: Logits are divided by it; 0 takes the most probable token.
        top_p: Mass of the smallest set of tokens that is drawn from; see `cqa.score.draws`.
        seed: Of everything random, from 0 to below 2^64.
        end_ids: Tokens that end a text.
        kept_rows: Tokens whose keys and values are kept at a time, if a text alone is not longer.

    Returns:
        For each context its samples, in the order of their numbers.

    Raises:
        NumericsError: A logit is not finite.
    """
    positions = decoder.config.max_positions
    growing = [
        _Growing(tuple(context), min(max_tokens, positions - len(context)), index)
        for context in contexts
        for index in (stream_index(context, number) for number in range(n_samples))
    ]
    law, ends = Law(temperature, top_p), frozenset(end_ids)
    for group in _groups(growing, kept_rows):
        _grow(decoder, group, law, seed, ends)
    samples = [_finished(text, ends, max_tokens) for text in growing]
    return [samples[i * n_samples : (i + 1) * n_samples] for i in range(len(contexts))]


@torch.no_grad()
def most_probable(decoder: Decoder, contexts: Sequence[Ids], n: int) -> list[Ids]:
    """Return the `n` tokens that are most probable after each of distinct contexts, falling.

    Raises:
        NumericsError: A logit is not finite.
    """
    batch, _ = pack_trees([Tree(tuple(context), ((0,),)) for context in contexts])
    logits = _logits(decoder, decoder.hidden_for_scoring(batch.to(decoder.device)))
    return [tuple((-row).argsort(kind="stable")[:n].tolist()) for row in logits]


def _groups(growing: Sequence[_Growing], kept_rows: int) -> Iterator[list[_Growing]]:
    """Cut the samples into groups that are drawn together."""
    group: list[_Growing] = []
    contexts: set[Ids] = set()
    n_rows = 0
    for text in growing:
        more = text.most_tokens + (0 if text.context in contexts else len(text.context))
        if group and n_rows + more > kept_rows:
            yield group
            group, contexts, n_rows = [], set(), 0
            more = text.most_tokens + len(text.context)
        group.append(text)
        contexts.add(text.context)
        n_rows += more
    if group:
        yield group


def _grow(
    decoder: Decoder, texts: Sequence[_Growing], law: Law, seed: int, ends: frozenset[int]
) -> None:
    """Draw some texts together, from their contexts to their ends."""
    trees = [Tree(context, ((0,),)) for context in dict.fromkeys(text.context for text in texts)]
    number = {tree.context: i for i, tree in enumerate(trees)}
    context_of = [number[text.context] for text in texts]
    batch, _ = pack_trees(trees)
    kept = KeptKeys([(s.start, s.stop) for s in batch.segments], context_of)
    of_contexts = decoder.hidden_for_scoring(batch.to(decoder.device), observer=kept)
    hidden = of_contexts[torch.tensor(context_of, device=decoder.device)]
    log, running = _Log(decoder), list(range(len(texts)))
    for position in range(max(text.most_tokens for text in texts)):
        grown = [texts[i] for i in running]
        uniforms = draw_uniforms(seed, position, [text.index for text in grown])
        rows = zip(_logits(decoder, hidden), uniforms, strict=True)
        drawn = [law.draw(logits, float(u)) for logits, u in rows]
        log.add(hidden, grown, drawn)
        for text, token in zip(grown, drawn, strict=True):
            text.token_ids.append(token)
        running = [i for i in running if not _has_ended(texts[i], ends)]
        if not running:
            break
        step = kept.feed(running, [texts[i].token_ids[-1] for i in running])
        hidden = decoder.hidden_for_scoring(step.to(decoder.device), earlier=kept)
    log.write()


def _has_ended(text: _Growing, ends: frozenset[int]) -> bool:
    return text.token_ids[-1] in ends or len(text.token_ids) == text.most_tokens


def _logits(decoder: Decoder, hidden: Tensor) -> npt.NDArray[np.float32]:
    """Return the logits of hidden states, shape (rows, V).

    Raises:
        NumericsError: One is not finite.
    """
    blocks = RowBlocks(CHUNK_ROWS, pad=decoder.backend != "native")
    product = partial(logits_of, head=decoder.head, backend=decoder.backend)
    logits = blocks(product, hidden)
    if not bool(torch.isfinite(logits).all()):
        raise NumericsError("expected finite logits, got others")
    array: npt.NDArray[np.float32] = logits.cpu().numpy()
    return array


class _Log:
    """Takes down what scoring says of tokens that were drawn, many of them at a time."""

    def __init__(self, decoder: Decoder) -> None:
        self._decoder = decoder
        self._hidden: list[Tensor] = []
        self._tokens: list[tuple[_Growing, int]] = []

    def add(self, hidden: Tensor, texts: Sequence[_Growing], drawn: Sequence[int]) -> None:
        """Take hidden states (rows, D) and the token that was drawn from each."""
        self._hidden.append(hidden)
        self._tokens += zip(texts, drawn, strict=True)
        if len(self._tokens) >= _STATS_ROWS:
            self.write()

    def write(self) -> None:
        """Append to each text what is known of its tokens."""
        if not self._tokens:
            return
        decoder, target = self._decoder, torch.tensor([token for _, token in self._tokens])
        stats = token_stats(
            torch.cat(self._hidden),
            decoder.head,
            target.to(decoder.device),
            backend=decoder.backend,
            varentropy=True,
        )
        assert stats.varentropy is not None
        fields = (stats.logp, stats.entropy, stats.rank, stats.varentropy)
        values = zip(*(column.tolist() for column in fields), strict=True)
        for (text, _), logged in zip(self._tokens, values, strict=True):
            text.logged.append(logged)
        self._hidden, self._tokens = [], []


def _finished(text: _Growing, ends: frozenset[int], max_tokens: int) -> Sample:
    stop: Stop = "max_tokens" if text.most_tokens == max_tokens else "positions"
    logp, entropy, rank, varentropy = zip(*text.logged, strict=True)
    return Sample(
        token_ids=tuple(text.token_ids),
        logp_nats=logp,
        entropy_nats=entropy,
        rank=rank,
        varentropy_nats2=varentropy,
        stop="end" if text.token_ids[-1] in ends else stop,
    )
