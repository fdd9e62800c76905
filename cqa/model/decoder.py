"""The decoder on packed tokens: one class for every architecture that `architectures.py` names.

Training runs every op over all rows at once. Scoring runs them on blocks of rows, so that
intermediates stay the size of a block. A row's score depends on its own segment alone, not on how
many rows share the pass: the native product sums in an order of its own, and for a library's every
block has the same height, the last one padded. Scoring also keeps
the residual stream one precision wider than the weights: a sum over hundreds of tokens shows what
rounding it at every layer loses.

Architectures differ in the norms of a layer (before attention and MLP, after them, or both), in
their gate, and in which layers rotate, and by which frequencies. Where a weight of a norm is kept
as 1 + w it is fp32, as it is summed there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from cqa.kernels.attention import attention
from cqa.kernels.backend import Backend, choose, compute_dtype, fastest
from cqa.kernels.copy_shrink import copy_shrink
from cqa.kernels.embed import Noise, embed
from cqa.kernels.experts import Experts, mixed_experts
from cqa.kernels.geglu import geglu
from cqa.kernels.logit_stats import TokenStats
from cqa.kernels.philox import Dropout
from cqa.kernels.precision import wider
from cqa.kernels.rms_norm import norm_shrink, norm_shrink_beside, rms_norm
from cqa.kernels.rope import rope, rope_projection
from cqa.kernels.swiglu_shrink import swiglu_shrink
from cqa.kernels.token_logprobs import token_logprobs, token_stats
from cqa.layout import PackedBatch
from cqa.model.architectures import Rotation
from cqa.model.block_rows import block_rows, pass_rows
from cqa.model.config import DecoderConfig
from cqa.model.forward_pass import (
    ALL_ROWS,
    EarlierKeys,
    ForwardPass,
    Observer,
    RowBlocks,
    Spans,
    attention_spans,
)
from cqa.model.layer import Layer
from cqa.model.projection import Projection
from cqa.model.rope import Rope, inverse_frequencies, rope_tables
from cqa.model.spread import Spread
from cqa.ranks import ALONE, Ranks


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
        ranks: Ranks = ALONE,
    ) -> None:
        """Allocate all weights; `rank_columns` gives the most LoRA columns of each module.

        They are spread over `ranks`.
        """
        self.config, self.dtype, self.device = config, dtype, device
        self.backend = choose(backend or fastest(device, dtype), device, dtype)
        self.compute_dtype = compute_dtype(self.backend, dtype)
        if device.type == "cuda":  # partial sums of a product stay in fp32, in this process
            torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction = False
        self.rank_columns = rank_columns
        self._without_data = ranks.count > 1  # large weights, until they are spread
        self.table = self._new(config.vocab_size, config.hidden_size)
        self.head = self.table if config.tied else self._new(config.vocab_size, config.hidden_size)
        self._norm_dtype = torch.promote_types(dtype, torch.float32) if config.one_plus else dtype
        self.norm = self._new_norm(config.hidden_size)
        self.layers = [self._layer(i) for i in range(config.n_layers)]
        # rounded to the dtype of the table, as the model was trained
        self._scale = float(torch.tensor(config.embedding_scale, dtype=dtype))
        self._frequencies: dict[Rotation, tuple[Tensor, float]] = {}
        ropes: dict[Rotation, Rope | None] = {"global": config.rope, "local": config.local_rope}
        for name, rotation in ropes.items():
            if rotation is not None:
                inv_freq, factor = inverse_frequencies(rotation, config.head_dim)
                self._frequencies[name] = (inv_freq.to(device), factor)
        self.spread = Spread(self, ranks) if self._without_data else None

    def _new(self, *shape: int) -> Tensor:
        place = torch.device("meta") if self._without_data else self.device
        return torch.empty(*shape, dtype=self.dtype, device=place)

    def _new_norm(self, features: int) -> Tensor:
        return torch.empty(features, dtype=self._norm_dtype, device=self.device)

    def _layer(self, index: int) -> Layer:
        c = self.config
        per_head = c.qk_norm == "head"
        wide = 0 if c.has_experts(index) else c.intermediate_size
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
                without_data=self._without_data,
            )

        def norm(name: str) -> Tensor | None:
            return self._new_norm(c.hidden_size) if name in c.norms else None

        return Layer(
            input_norm=norm("input_norm"),
            qkv=group({"q": width, "k": kv_width, "v": kv_width}, c.hidden_size, c.qkv_bias),
            q_norm=self._new_norm(c.head_dim if per_head else width) if c.qk_norm else None,
            k_norm=self._new_norm(c.head_dim if per_head else kv_width) if c.qk_norm else None,
            o=group({"o": c.hidden_size}, width, c.o_bias),
            o_norm=norm("o_norm"),
            post_norm=norm("post_norm"),
            gate_up=group({"gate": wide, "up": wide}, c.hidden_size if wide else 0, c.mlp_bias),
            down=group({"down": c.hidden_size if wide else 0}, wide, c.mlp_bias),
            experts=self._experts() if c.has_experts(index) else None,
            down_norm=norm("down_norm"),
            window=c.windows[index],
            rotation=c.rotations[index],
        )

    def _experts(self) -> Experts:
        found, features = self.config.experts, self.config.hidden_size
        assert found is not None
        return Experts(
            router=torch.empty(found.n_experts, features, dtype=self.dtype, device=self.device),
            gate_up=self._new(found.n_experts, 2 * found.width, features),
            down=self._new(found.n_experts, features, found.width),
            top_k=found.top_k,
            normalised=found.normalised,
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
        ids, table = self._looked_up(batch.input_ids)
        h = embed(ids, table, noise, scale=self._scale, backend=self.backend)
        return self._run_layers(
            batch, h, spans or attention_spans(batch), dropout=dropout, recompute=recompute
        )

    def _looked_up(self, ids: Tensor) -> tuple[Tensor, Tensor]:
        """Return the table, or the rows of it that ids name, and what they are called there."""
        if self.spread is None:
            return ids, self.table
        return torch.arange(ids.shape[0], device=self.device), self.spread.table.rows(ids)

    def token_stats(
        self, hidden: Tensor, target: Tensor, *, varentropy: bool = False
    ) -> TokenStats:
        """Return what the head says of each target; see `cqa.kernels.token_logprobs`."""
        if self.spread is not None:
            return self.spread.token_stats(hidden, target, varentropy=varentropy)
        return token_stats(hidden, self.head, target, backend=self.backend, varentropy=varentropy)

    def token_logprobs(self, hidden: Tensor, target: Tensor) -> Tensor:
        """Return each target's log-probability, differentiable in `hidden`; (T,) nats."""
        if self.spread is not None:
            return self.spread.token_logprobs(hidden, target)
        return token_logprobs(hidden, self.head, target, backend=self.backend)

    @property
    def pass_rows(self) -> int:
        """Rows of a pass of scoring at most, where nobody asks for another number."""
        return pass_rows(self.backend, self.device, self.config.hidden_size)

    @torch.no_grad()
    def hidden_for_scoring(
        self,
        batch: PackedBatch,
        *,
        observer: Observer | None = None,
        earlier: EarlierKeys | None = None,
    ) -> Tensor:
        """Return what `hidden` does, in blocks of rows, with a wider residual stream.

        Args:
            batch: Packed rows on this decoder's device.
            observer: Looks at every layer; no number depends on it.
            earlier: What else the rows see, in place of the batch's segments.

        Returns:
            Shape (T, hidden_size), in the dtype that `cqa.kernels.precision.wider` gives.
        """
        h = embed(*self._looked_up(batch.input_ids), backend=self.backend)
        h = h.to(wider(self.compute_dtype)) * self._scale
        height = block_rows(self.backend, self.device, self.config.hidden_size)
        blocks = RowBlocks(height, pad=self.backend != "native")
        spans = (earlier.spans, earlier.spans) if earlier else attention_spans(batch)
        return self._run_layers(batch, h, spans, blocks=blocks, observer=observer, earlier=earlier)

    def _run_layers(
        self,
        batch: PackedBatch,
        h: Tensor,
        spans: tuple[Spans, Spans],
        *,
        dropout: Dropout | None = None,
        blocks: RowBlocks = ALL_ROWS,
        recompute: bool = False,
        observer: Observer | None = None,
        earlier: EarlierKeys | None = None,
    ) -> Tensor:
        """Run every layer and the final norm, (M, D) to (T, D)."""
        angles = {
            name: rope_tables(*frequencies, batch.position_ids)
            for name, frequencies in self._frequencies.items()
        }
        forward = ForwardPass(angles, spans[0], dropout, blocks, earlier=earlier, observer=observer)
        if observer is not None:
            observer.embedded(h)
        run: Callable[[Layer, Tensor, ForwardPass], Tensor] = self._run_layer
        if recompute and torch.is_grad_enabled():
            run = partial(checkpoint, self._run_layer, use_reentrant=False)
        for layer in self.layers[:-1]:
            h = self._run_whole(run, layer, h, forward)
        kept = batch.kept if batch.kept.shape[0] < batch.n_rows else None
        forward = replace(forward, spans=spans[1], kept=kept)
        h = self._run_whole(self._run_layer, self.layers[-1], h, forward)
        return blocks(partial(self._norm, self.norm), h)[batch.target_rows]

    def _run_whole(
        self,
        run: Callable[[Layer, Tensor, ForwardPass], Tensor],
        layer: Layer,
        h: Tensor,
        forward: ForwardPass,
    ) -> Tensor:
        """Run a layer while its weights are whole."""
        if self.spread is None:
            return run(layer, h, forward)
        return self.spread.run(layer.qkv.layer, lambda x: run(layer, x, forward), h)

    def _norm(self, weight: Tensor, x: Tensor) -> Tensor:
        """Normalise the last dimension of x."""
        eps = self.config.rms_norm_eps
        return rms_norm(x, weight, eps, dtype=self.dtype, backend=self.backend)

    def _norm_shrink(
        self, weight: Tensor | None, h: Tensor, group: Projection, dropout: Dropout | None
    ) -> tuple[Tensor, Tensor]:
        """Make the augmented input of a group from the residual stream; return both."""
        shrink = group.shrink(dropout)
        if weight is None:
            x = h.to(self.compute_dtype)
            return copy_shrink(x, group.columns, shrink, backend=self.backend), h
        given = (h, weight, self.config.rms_norm_eps, group.columns, shrink)
        if torch.is_grad_enabled():
            return norm_shrink_beside(*given, dtype=self.dtype, backend=self.backend)
        return norm_shrink(*given, dtype=self.dtype, backend=self.backend), h

    def _add(
        self,
        h: Tensor,
        group: Projection,
        x_aug: Tensor,
        before: Tensor | None,
        norm: Tensor | None,
    ) -> Tensor:
        """Add a projection to the residual stream, through its own norm where it has one.

        In training a norm that came before has passed on a copy of the stream, which may be lost.
        """
        if norm is None:
            own = before is not None and torch.is_grad_enabled()
            return group(x_aug, residual=h, overwrite=own, backend=self.backend)
        return h + self._norm(norm, group(x_aug, backend=self.backend))

    def _run_layer(self, layer: Layer, h: Tensor, forward: ForwardPass) -> Tensor:
        """Run a layer: keys and values of all rows (M, D), the rest for those it keeps."""
        dropout, observer, number = forward.dropout, forward.observer, layer.qkv.layer
        project = partial(self._project, layer, dropout)
        angles = () if layer.rotation is None else forward.angles[layer.rotation]
        if torch.is_grad_enabled():  # what is added to comes from the norm then
            h, q, k, v = project(h, *angles)
        else:
            q, k, v = forward.blocks(lambda *rows: project(*rows)[1:], h, *angles)
        if forward.kept is not None:
            q, h = q[forward.kept], h[forward.kept]
            dropout = dropout.select(forward.kept) if dropout else None
        if forward.earlier is not None:
            k, v = forward.earlier.extended(number, k, v)
        if observer is not None:
            observer.attended(number, q, k, v)
        attended = attention(q, k, v, forward.spans, window=layer.window, backend=self.backend)
        h = forward.blocks(partial(self._finish, layer, dropout), h, attended.flatten(1))
        if observer is not None:
            observer.finished(number, h)
        return h

    def _project(
        self, layer: Layer, dropout: Dropout | None, h: Tensor, *angles: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Norm, q/k/v projection, head norms and rotation.

        Returns the residual stream (M, D) and three (M, heads, head_dim).
        """
        c, backend = self.config, self.backend
        x_aug, h = self._norm_shrink(layer.input_norm, h, layer.qkv, dropout)
        projected = layer.qkv(x_aug, backend=backend)
        if angles and layer.q_norm is None:
            cos, sin = angles
            return h, *rope_projection(
                projected, cos, sin, c.n_heads, c.n_kv_heads, backend=backend
            )
        heads = projected.view(h.shape[0], -1, c.head_dim)
        q, k, v = heads.split((c.n_heads, c.n_kv_heads, c.n_kv_heads), dim=1)
        if layer.q_norm is not None and layer.k_norm is not None:
            q, k = self._head_norm(layer.q_norm, q), self._head_norm(layer.k_norm, k)
        if not angles:
            return h, q, k, v
        return h, rope(q, *angles, backend=backend), rope(k, *angles, backend=backend), v

    def _head_norm(self, weight: Tensor, heads: Tensor) -> Tensor:
        """Normalise each head of (M, heads, head_dim), or all heads as one row."""
        if self.config.qk_norm == "row":
            return self._norm(weight, heads.flatten(1)).view(heads.shape)
        return self._norm(weight, heads)

    def _finish(self, layer: Layer, dropout: Dropout | None, h: Tensor, attended: Tensor) -> Tensor:
        """Output projection and MLP, each added to the residual: (M, D) to (M, D)."""
        o, down, backend = layer.o, layer.down, self.backend
        x_aug = copy_shrink(attended, o.columns, o.shrink(dropout), backend=backend)
        h = self._add(h, o, x_aug, layer.input_norm, layer.o_norm)
        if layer.experts is not None and layer.post_norm is not None:
            x = self._norm(layer.post_norm, h)
            return h + mixed_experts(x, layer.experts, backend=backend).to(h.dtype)
        x_aug, h = self._norm_shrink(layer.post_norm, h, layer.gate_up, dropout)
        gate_up, shrink = layer.gate_up(x_aug, backend=backend), down.shrink(dropout)
        if self.config.activation == "gelu_tanh":
            act_aug = copy_shrink(geglu(gate_up), down.columns, shrink, backend=backend)
        else:
            act_aug = swiglu_shrink(gate_up, down.columns, shrink, backend=backend)
        return self._add(h, down, act_aug, layer.post_norm, layer.down_norm)

    def projections(self) -> list[Projection]:
        """Every group of every layer, in the order in which they run."""
        return [projection for layer in self.layers for projection in layer.projections]

    def silence_adapter(self) -> None:
        """Compute the base's numbers, but summed over as many columns as with the adapter."""
        for projection in self.projections():
            projection.silence()

    @contextmanager
    def silenced_adapter(self) -> Iterator[None]:
        """Silence the adapter for a while; without one nothing changes."""
        self.silence_adapter()
        try:
            yield
        finally:
            for projection in self.projections():
                projection.unsilence()

    def detach_adapter(self) -> None:
        """Go back to the base model."""
        for projection in self.projections():
            projection.detach()
