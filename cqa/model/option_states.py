"""What the residual stream holds of an option, layer by layer: the ground of probes.

Of each option two states are kept of every layer, the mean over its own tokens and the state at its
last token; the rows of a pass are looked at while they are there. The final norm is not applied:
the last entry is what it takes.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from cqa.layout import OptionRows, Tree, pack_whole_options
from cqa.model.decoder import Decoder
from cqa.model.forward_pass import Observer


class _OptionStates(Observer):
    """Keeps two states of every option of a pass."""

    def __init__(self, options: Sequence[OptionRows], n_layers: int, like: Tensor) -> None:
        self._own = [option.own for option in options]
        self._kept = [option.kept for option in options]
        self._last = n_layers - 1
        self.states = like.new_empty(
            len(options), n_layers + 1, 2, like.shape[1], dtype=torch.float32
        )

    def embedded(self, h: Tensor) -> None:
        self._keep(0, h, self._own)

    def finished(self, layer: int, h: Tensor) -> None:
        self._keep(layer + 1, h, self._kept if layer == self._last else self._own)

    def _keep(self, entry: int, h: Tensor, places: Sequence[slice]) -> None:
        for states, place in zip(self.states, places, strict=True):
            rows = h[place]
            states[entry, 0] = rows.mean(0, dtype=torch.float64)
            states[entry, 1] = rows[-1]


def option_states(decoder: Decoder, trees: Sequence[Tree]) -> list[list[Tensor]]:
    """Return the states of every option of some trees, from one pass over all of them.

    With the native ops a state's bits do not depend on the other trees of the pass.

    Args:
        decoder: The model, with or without an adapter attached.
        trees: Contexts and what follows each, as ids; every option has a token. All rows of the
            pass are in memory at once, as in scoring, so that `Decoder.pass_rows` is a good limit.

    Returns:
        Per tree and option a tensor (n_layers + 1, 2, hidden_size), fp32, on the decoder's device.
        Entry 0 is the embeddings, scaled where the model scales them, entry l the residual stream
        after layer l. Of the two states the first is the mean over the option's own tokens, the
        second that of its last token.
    """
    batch, rows = pack_whole_options(trees)
    options = [option for of_tree in rows for option in of_tree]
    observer = _OptionStates(options, decoder.config.n_layers, decoder.table)
    decoder.hidden_for_scoring(batch.to(decoder.device), observer=observer)
    states = iter(observer.states)
    return [[next(states) for _ in of_tree] for of_tree in rows]
