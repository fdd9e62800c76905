"""The decoder on packed tokens: one class for Qwen2/2.5, Qwen3, Llama and Mistral.

Training runs every op over all rows at once. Scoring runs them on blocks of rows, so that
intermediates stay the size of a block. A row's score depends on its own segment alone, not on how
many rows share the pass: the native product sums in an order of its own, and for a library's every
block has the same height, the last one padded. Scoring also keeps
the residual stream one precision wider than the weights: a sum over hundreds of tokens shows what
rounding it at every layer loses.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import TypeVar

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from cqa.kernels.attention import AttentionSpan, Gathered, attention
from cqa.kernels.backend import Backend, choose, compute_dtype, fastest
from cqa.kernels.copy_shrink import copy_shrink
from cqa.kernels.embed import Noise, embed
from cqa.kernels.philox import Dropout
from cqa.kernels.precision import wider
from cqa.kernels.rms_norm import norm_shrink, rms_norm
from cqa.kernels.rope import rope
from cqa.kernels.swiglu_shrink import swiglu_shrink
from cqa.layout import PackedBatch
from cqa.model.config import DecoderConfig
from cqa.model.projection import Projection
from cqa.model.rope import inverse_frequencies, rope_tables

Result = TypeVar("Result", Tensor, tuple[Tensor, ...])
Spans = tuple[AttentionSpan, ...] | Gathered
BLOCK_ROWS = {  # of scoring; weights are read once a block
    "native": 2048,
    "triton": 2048,  # padded, but a pass fills several
    "reference": 256,  # padded, so not too high
}


@dataclass(slots=True)
class Layer:
    """Weights of one decoder layer."""

    input_norm: Tensor
    qkv: Projection
    q_norm: Tensor | None
    k_norm: Tensor | None
    o: Projection
    post_norm: Tensor
    gate_up: Projection
    down: Projection
    window: int | None

    @property
    def projections(self) -> tuple[Projection, ...]:
        """The four groups, in the order in which they run."""
        return (self.qkv, self.o, self.gate_up, self.down)


def attention_spans(
    batch: PackedBatch,
) -> tuple[tuple[AttentionSpan, ...], tuple[AttentionSpan, ...]]:
    """Return what sees what in every layer but the last, and in the last."""
    spans, last, row = [], [], 0
    for s in batch.segments:
        prefix = (s.prefix_start, s.prefix_stop)
        spans.append(AttentionSpan((s.start, s.stop), (s.start, s.stop), prefix))
        n_kept = s.kept_stop - s.kept_start
        if n_kept:
            last.append(AttentionSpan((row, row + n_kept), (s.start, s.kept_stop), prefix))
        row += n_kept
    return tuple(spans), tuple(last)


@dataclass(frozen=True, slots=True)
class RowBlocks:
    """Applies a row-wise function to all rows at once, or to blocks of a fixed height."""

    height: int | None = None
    pad: bool = False  # the last block to that height

    def __call__(self, function: Callable[..., Result], *rows: Tensor) -> Result:
        """Call a function of row tensors (M, …) that returns one row tensor or several."""
        height, n_rows = self.height, rows[0].shape[0]
        if height is None or (n_rows <= height and not self.pad):
            return function(*rows)
        outs: tuple[Tensor, ...] = ()
        for start in range(0, n_rows, height):
            n = min(height, n_rows - start)
            block = [r[start : start + n] for r in rows]
            if n < height and self.pad:
                block = [torch.cat((r, r.new_zeros(height - n, *r.shape[1:]))) for r in block]
            result = function(*block)
            results = (result,) if isinstance(result, Tensor) else result
            outs = outs or tuple(r.new_empty(n_rows, *r.shape[1:]) for r in results)
            for out, r in zip(outs, results, strict=True):
                out[start : start + n] = r[:n]
        return outs[0] if isinstance(result, Tensor) else outs


ALL_ROWS = RowBlocks()


@dataclass(frozen=True, slots=True)
class ForwardPass:
    """What the layers of one pass are run with."""

    cos: Tensor  # (M, head_dim / 2), fp32
    sin: Tensor  # likewise
    spans: Spans  # what sees what
    dropout: Dropout | None
    blocks: RowBlocks
    kept: Tensor | None = None  # (L,) rows that queries and MLP are run for; None is all


class Decoder:
    """A frozen base model with room for an adapter; weights lie on one device in one dtype.

    The native ops compute in fp32 on bf16 weights too, with the digits of their fp32 copy.
    """

    def __init__(
        self,
        config: DecoderConfig,
        *,
        rank_columns: dict[str, int],
        dtype: torch.dtype,
        device: torch.device,
        backend: Backend | None = None,
    ) -> None:
        """Allocate all weights; `rank_columns` gives the most LoRA columns of each module."""
        self.config, self.dtype, self.device = config, dtype, device
        self.backend = choose(backend or fastest(device, dtype), device, dtype)
        self.compute_dtype = compute_dtype(self.backend, dtype)
        if device.type == "cuda":  # partial sums of a product stay in fp32, in this process
            torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction = False
        self.rank_columns = rank_columns
        self.table = self._new(config.vocab_size, config.hidden_size)
        self.head = self.table if config.tied else self._new(config.vocab_size, config.hidden_size)
        self.norm = self._new(config.hidden_size)
        self.layers = [self._layer(i) for i in range(config.n_layers)]
        inv_freq, self._rope_factor = inverse_frequencies(config.rope, config.head_dim)
        self._inv_freq = inv_freq.to(device)

    def _new(self, *shape: int) -> Tensor:
        return torch.empty(*shape, dtype=self.dtype, device=self.device)

    def _layer(self, index: int) -> Layer:
        c = self.config
        width, kv_width = c.n_heads * c.head_dim, c.n_kv_heads * c.head_dim

        def group(outputs: dict[str, int], in_features: int, bias: bool) -> Projection:
            return Projection(
                index,
                outputs,
                in_features,
                bias=bias,
                rank_columns=sum(self.rank_columns.get(name, 0) for name in outputs),
                dtype=self.dtype,
                compute_dtype=self.compute_dtype,
                device=self.device,
            )

        return Layer(
            input_norm=self._new(c.hidden_size),
            qkv=group({"q": width, "k": kv_width, "v": kv_width}, c.hidden_size, c.qkv_bias),
            q_norm=self._new(c.head_dim) if c.qk_norm else None,
            k_norm=self._new(c.head_dim) if c.qk_norm else None,
            o=group({"o": c.hidden_size}, width, c.o_bias),
            post_norm=self._new(c.hidden_size),
            gate_up=group(
                {"gate": c.intermediate_size, "up": c.intermediate_size}, c.hidden_size, c.mlp_bias
            ),
            down=group({"down": c.hidden_size}, c.intermediate_size, c.mlp_bias),
            window=c.windows[index],
        )

    def hidden(
        self,
        batch: PackedBatch,
        *,
        dropout: Dropout | None = None,
        noise: Noise | None = None,
        recompute: bool = False,
        spans: tuple[Spans, Spans] | None = None,
    ) -> Tensor:
        """Return the hidden state that predicts each of the batch's targets, final norm applied.

        Args:
            batch: Packed rows on this decoder's device.
            dropout: LoRA dropout of this step, in training.
            noise: NEFTune noise of this step, in training.
            recompute: Recompute each layer in backward instead of keeping its activations.
            spans: The batch's `attention_spans`, if they are available, perhaps laid out already.

        Returns:
            Shape (T, hidden_size).
        """
        h = embed(batch.input_ids, self.table, noise, backend=self.backend)
        return self._run_layers(
            batch, h, spans or attention_spans(batch), dropout=dropout, recompute=recompute
        )

    @torch.no_grad()
    def hidden_for_scoring(self, batch: PackedBatch) -> Tensor:
        """Return what `hidden` does, in blocks of rows, with a wider residual stream.

        Args:
            batch: Packed rows on this decoder's device.

        Returns:
            Shape (T, hidden_size), in the dtype that `cqa.kernels.precision.wider` gives.
        """
        h = embed(batch.input_ids, self.table, backend=self.backend)
        h = h.to(wider(self.compute_dtype))
        blocks = RowBlocks(BLOCK_ROWS[self.backend], pad=self.backend != "native")
        return self._run_layers(batch, h, attention_spans(batch), blocks=blocks)

    def _run_layers(
        self,
        batch: PackedBatch,
        h: Tensor,
        spans: tuple[Spans, Spans],
        *,
        dropout: Dropout | None = None,
        blocks: RowBlocks = ALL_ROWS,
        recompute: bool = False,
    ) -> Tensor:
        """Run every layer and the final norm, (M, D) to (T, D)."""
        cos, sin = rope_tables(self._inv_freq, self._rope_factor, batch.position_ids)
        forward = ForwardPass(cos, sin, spans[0], dropout, blocks)
        for layer in self.layers[:-1]:
            if recompute and torch.is_grad_enabled():
                h = checkpoint(self._run_layer, layer, h, forward, use_reentrant=False)
            else:
                h = self._run_layer(layer, h, forward)
        kept = batch.kept if batch.kept.shape[0] < batch.n_rows else None
        h = self._run_layer(self.layers[-1], h, replace(forward, spans=spans[1], kept=kept))
        norm = partial(
            rms_norm, weight=self.norm, eps=self.config.rms_norm_eps, backend=self.backend
        )
        return blocks(norm, h)[batch.target_rows]

    def _run_layer(self, layer: Layer, h: Tensor, forward: ForwardPass) -> Tensor:
        """Run a layer: keys and values of all rows (M, D), the rest for those it keeps."""
        dropout = forward.dropout
        project = partial(self._project, layer, dropout)
        q, k, v = forward.blocks(project, h, forward.cos, forward.sin)
        if forward.kept is not None:
            q, h = q[forward.kept], h[forward.kept]
            dropout = dropout.select(forward.kept) if dropout else None
        attended = attention(q, k, v, forward.spans, window=layer.window, backend=self.backend)
        return forward.blocks(partial(self._finish, layer, dropout), h, attended.flatten(1))

    def _project(
        self, layer: Layer, dropout: Dropout | None, h: Tensor, cos: Tensor, sin: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Norm, q/k/v projection, head norms and rotation: (M, D) to three (M, heads, head_dim)."""
        c, qkv, backend = self.config, layer.qkv, self.backend
        x_aug = norm_shrink(
            h,
            layer.input_norm,
            c.rms_norm_eps,
            qkv.columns,
            qkv.shrink(dropout),
            backend=backend,
        )
        heads = qkv(x_aug, backend=backend).view(h.shape[0], -1, c.head_dim)
        q, k, v = heads.split((c.n_heads, c.n_kv_heads, c.n_kv_heads), dim=1)
        if layer.q_norm is not None and layer.k_norm is not None:
            q = rms_norm(q, layer.q_norm, c.rms_norm_eps, backend=backend)
            k = rms_norm(k, layer.k_norm, c.rms_norm_eps, backend=backend)
        return rope(q, cos, sin, backend=backend), rope(k, cos, sin, backend=backend), v

    def _finish(self, layer: Layer, dropout: Dropout | None, h: Tensor, attended: Tensor) -> Tensor:
        """Output projection and MLP, each added to the residual: (M, D) to (M, D)."""
        o, gate_up, down, backend = layer.o, layer.gate_up, layer.down, self.backend
        x_aug = copy_shrink(attended, o.columns, o.shrink(dropout), backend=backend)
        h = o(x_aug, residual=h, backend=backend)
        x_aug = norm_shrink(
            h,
            layer.post_norm,
            self.config.rms_norm_eps,
            gate_up.columns,
            gate_up.shrink(dropout),
            backend=backend,
        )
        act_aug = swiglu_shrink(
            gate_up(x_aug, backend=backend), down.columns, down.shrink(dropout), backend=backend
        )
        return down(act_aug, residual=h, backend=backend)

    def projections(self) -> list[Projection]:
        """Every group of every layer, in the order in which they run."""
        return [projection for layer in self.layers for projection in layer.projections]

    def detach_adapter(self) -> None:
        """Go back to the base model."""
        for projection in self.projections():
            projection.detach()
