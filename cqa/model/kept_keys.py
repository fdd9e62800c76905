"""Keys and values that stay in memory while texts grow token by token.

A context is run once, by a pass of scoring that these look at; then each pass feeds one row of
every text that is still growing, which sees its context's rows and its own earlier ones. Rows of a
layer's buffer are those of all contexts, then as many for each text as there is room for:

    context 0 ∥ context 1 ∥ … ∥ text 0, room ∥ text 1, room ∥ …

Texts of one context share its rows. All texts start together, so those that grow have the same
length, and room is doubled for all at once.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from cqa.kernels.attention import AttentionSpan
from cqa.layout import PackedBatch
from cqa.model.forward_pass import Observer

FIRST_ROOM = 16  # rows for each text to begin with


class KeptKeys(Observer):
    """What the rows of growing texts see: an `Observer` of the contexts' pass, then `EarlierKeys`.

    Attributes:
        spans: What each row of the pass sees, as rows of the buffers.
    """

    def __init__(self, contexts: Sequence[tuple[int, int]], context_of: Sequence[int]) -> None:
        """Keep nothing yet.

        Args:
            contexts: Rows [start, stop) of each context in the pass that runs them; they tile it.
            context_of: For each text the number of its context.
        """
        self._contexts, self._context_of = contexts, context_of
        self._n_context_rows = contexts[-1][1]
        self._length, self._room = 0, 0  # rows of each growing text: that there are, that fit
        self._rows = torch.empty(0, dtype=torch.int64)  # that the pass writes
        self._layers: dict[int, tuple[Tensor, Tensor]] = {}
        self.spans: tuple[AttentionSpan, ...] = ()

    def attended(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> None:
        """Keep the contexts' keys and values (M, H_kv, D)."""
        self._layers[layer] = (k.clone(), v.clone())

    def feed(self, texts: Sequence[int], token_ids: Sequence[int]) -> PackedBatch:
        """Lay out a pass of the next token of some texts, those that have grown in every pass.

        Args:
            texts: Their numbers.
            token_ids: The token of each.

        Returns:
            A batch on the CPU, whose rows' hidden states predict the tokens after these.
        """
        if self._length == self._room:
            self._make_room(max(FIRST_ROOM, 2 * self._room))
        self._length += 1
        starts = [self._n_context_rows + text * self._room for text in texts]
        prefixes = [self._contexts[self._context_of[text]] for text in texts]
        self._rows = torch.tensor(starts, dtype=torch.int64) + self._length - 1
        self.spans = tuple(
            AttentionSpan((row, row + 1), (start, start + self._length), prefix)
            for row, (start, prefix) in enumerate(zip(starts, prefixes, strict=True))
        )
        every = torch.arange(len(texts))
        depths = torch.tensor([stop - start for start, stop in prefixes], dtype=torch.int64)
        return PackedBatch(
            input_ids=torch.tensor(token_ids, dtype=torch.int64),
            position_ids=depths + self._length - 1,
            segments=(),  # `spans` stand for them
            kept=every,
            target_rows=every,
            target=torch.zeros_like(every),  # of which none is asked for
        )

    def extended(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Keep the pass's keys and values (texts, H_kv, D); return those of all rows."""
        rows = self._rows.to(k.device)
        for kept, new in zip(self._layers[layer], (k, v), strict=True):
            kept[rows] = new
        return self._layers[layer]

    def _make_room(self, room: int) -> None:
        """Move the rows to buffers with more room for each text."""
        n_texts, n_context_rows = len(self._context_of), self._n_context_rows

        def moved(kept: Tensor) -> Tensor:
            heads = kept.shape[1:]
            new = kept.new_zeros(n_context_rows + n_texts * room, *heads)
            new[:n_context_rows] = kept[:n_context_rows]
            texts = new[n_context_rows:].view(n_texts, room, *heads)
            texts[:, : self._room] = kept[n_context_rows:].view(n_texts, self._room, *heads)
            return new

        for layer, (k, v) in self._layers.items():
            self._layers[layer] = (moved(k), moved(v))
        self._room = room
