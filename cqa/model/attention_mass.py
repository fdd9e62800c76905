"""How much of what options attend to is their context's text y: by layer and head, nothing kept.

Three numbers of a row, each a mean over an option's rows:

    mass                  Σ_{j in y} a_j
    mass without first    Σ_{j in y, j > 0} a_j / Σ_{j > 0} a_j       the first token is the sink
    contribution          W_h (Σ_{j in y} a_j v_j) · o / ‖o‖²         o = Σ_h W_h Σ_j a_j v_j

W_h are a head's columns of the output projection, an adapter's part included. Its bias, which no
key brings, is left out of o, and a norm after the projection is not applied. Over all heads and
keys the contributions sum to 1; one may be negative. W_h is not multiplied out: with u = Wᵀ o a
contribution is u_h · Σ a v / ‖o‖².
Values projected on the output of the layer, as a measure of what attention adds: arXiv:2606.07604.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from cqa.kernels.attention_mass import attention_mass, keys_seen
from cqa.layout import OptionRows, Tree, pack_whole_options
from cqa.model.decoder import Decoder
from cqa.model.forward_pass import Observer
from cqa.model.projection import LinearMap

SHARES = ("mass", "mass_without_first", "contribution")
FIRST, Y = 0, 2  # of the ranges: first token, before y, y without it, after y, the option's own


@dataclass(frozen=True, slots=True)
class OptionAttention:
    """What an option's rows take from y, all fp64 on the CPU."""

    shares: Tensor  # (n_layers, n_heads, 3) means over the rows, in the order of SHARES
    log_ratio: Tensor  # (n_layers, n_heads, 2) means of ln(mass / uniform), in nats
    uniform: Tensor  # (n_layers, rows, 2) the masses if a row saw all its keys alike
    in_sight: Tensor  # (n_layers,) mean over rows of the share of y that the window shows; else 1


def option_attention(
    decoder: Decoder, trees: Sequence[Tree], y: Sequence[tuple[int, int]]
) -> list[list[OptionAttention]]:
    """Return the attention of every option on its context's y, from one pass over some trees.

    A mass of a visible key is never zero here, as masses are kept as logarithms. In a layer with a
    window a row may see no token of y: its masses and its contribution count as 0 in `shares`; in
    `log_ratio` it does not count, as `uniform` is 0 too, and where no row counts the mean is NaN.
    `uniform` counts the keys that the window shows: |y| / (position + 1) where that is all.

    Args:
        decoder: The model, with or without an adapter attached.
        trees: Contexts and what follows each, as ids; every option has a token.
        y: Per tree the positions of y in the context, from the first up to the second: all of it,
            or what a template puts around y left out. Some token of y is not the context's first.

    Returns:
        Per tree and option its attention on y.

    Raises:
        ValueError: y is not within its context, or has no token besides the first.
    """
    for tree, (start, stop) in zip(trees, y, strict=True):
        if not (start >= 0 and max(start, 1) < stop <= len(tree.context)):
            raise ValueError(
                f"expected y within the {len(tree.context)} tokens of its context, with a token "
                f"besides the first, got {start} up to {stop}"
            )
    batch, rows = pack_whole_options(trees)
    options = [
        _Option(at, of_y, decoder) for of_tree, of_y in zip(rows, y, strict=True) for at in of_tree
    ]
    decoder.hidden_for_scoring(batch.to(decoder.device), observer=_OnY(decoder, options))
    results = iter(options)
    return [[next(results).result() for _ in of_tree] for of_tree in rows]


class _Option:
    """An option of the pass, and the means over its rows of the layers that have run."""

    def __init__(self, rows: OptionRows, y: tuple[int, int], decoder: Decoder) -> None:
        depth = rows.context.stop - rows.context.start
        n_rows = rows.own.stop - rows.own.start
        self.rows = rows
        self.cuts = (0, 1, max(y[0], 1), y[1], depth, depth + n_rows)
        self._with_first = y[0] == 0
        self._windows = [layer.window for layer in decoder.layers]
        self._seen = {w: keys_seen(n_rows, self.cuts, w).double() for w in set(self._windows)}
        self._uniform = {
            window: self._logs_of_y(seen.log()).to(decoder.device)
            for window, seen in self._seen.items()
        }
        self._means: list[tuple[Tensor, Tensor]] = []  # (n_heads, 3) and (n_heads, 2) by layer

    def _of_y(self, parts: Tensor) -> Tensor:
        """Sum what the ranges of y have, (…, ranges)."""
        return parts[..., Y] + parts[..., FIRST] if self._with_first else parts[..., Y]

    def _logs_of_y(self, log_mass: Tensor) -> Tensor:
        """Return the logarithms of both masses of y, (…, 2), from those of the ranges."""
        of_y = log_mass[..., Y]
        both = of_y.logaddexp(log_mass[..., FIRST]) if self._with_first else of_y
        without_first = of_y - log_mass[..., FIRST + 1 :].logsumexp(-1)
        return torch.stack((both - log_mass.logsumexp(-1), without_first), -1)

    def take(self, log_mass: Tensor, contribution: Tensor) -> None:
        """Take in the next layer: both (rows, n_heads, ranges), fp64."""
        logs = self._logs_of_y(log_mass)
        shares = torch.cat((logs.exp(), self._of_y(contribution)[..., None]), -1).mean(0)
        uniform = self._uniform[self._windows[len(self._means)]][:, None]
        visible = uniform.isfinite()
        ratio = torch.where(visible, logs - uniform, 0.0).sum(0) / visible.sum(0)
        self._means.append((shares, ratio))

    def result(self) -> OptionAttention:
        """Return what has been taken in of all layers."""
        n_y = self._of_y(torch.tensor(self.cuts).diff())
        in_sight = {w: (self._of_y(seen) / n_y).mean() for w, seen in self._seen.items()}
        return OptionAttention(
            shares=torch.stack([shares for shares, _ in self._means]).cpu(),
            log_ratio=torch.stack([ratio for _, ratio in self._means]).cpu(),
            uniform=torch.stack([self._uniform[w].exp().cpu() for w in self._windows]),
            in_sight=torch.stack([in_sight[w] for w in self._windows]),
        )


class _OnY(Observer):
    """Makes the weights of a layer again for the rows of options, one option at a time."""

    def __init__(self, decoder: Decoder, options: Sequence[_Option]) -> None:
        self._layers, self._options = decoder.layers, options

    def attended(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> None:
        o, window = self._layers[layer].o, self._layers[layer].window
        output = o.linear_map(torch.promote_types(o.weight.dtype, torch.float32))
        last = layer == len(self._layers) - 1
        for option in self._options:
            at = option.rows
            keys, values = (torch.cat((x[at.context], x[at.own])) for x in (k, v))
            queries = q[at.kept if last else at.own]
            log_mass, mixed = attention_mass(queries, keys, values, option.cuts, window=window)
            option.take(log_mass.double(), contributions(mixed, output))


def contributions(mixed: Tensor, output: LinearMap) -> Tensor:
    """Return what each range of keys adds to the output of attention, along that output.

    Args:
        mixed: Values mixed by the weights of each range, (rows, n_heads, ranges, head_dim).
        output: The output projection, in the dtype of `mixed`.

    Returns:
        Shape (rows, n_heads, ranges), fp64; a row's numbers sum to 1. NaN where the output is 0.
    """
    rows, n_heads, _, head_dim = mixed.shape
    o = output(mixed.sum(2).flatten(1))
    u = output.transposed(o).view(rows, n_heads, head_dim, 1)
    along = (mixed @ u).squeeze(-1).double()
    return along / o.double().square().sum(1)[:, None, None]
